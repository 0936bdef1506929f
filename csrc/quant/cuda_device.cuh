// What the CUDA kernels of quantization share: how a tile of elements lies on threads, loads and
// stores of four consecutive elements, and random bits. No kernels here.
//
// A thread block works on one tile of kTile elements, a multiple of any block of a format; a thread
// on four chunks of four consecutive elements. Neighbouring lanes have neighbouring chunks, so that
// whole sectors of 32 bytes are read and written.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/cuda.cuh"
#include "base/dtype.h"
#include "quant/philox.h"

// scale.h calls host functions for compile-time constants of device functions, which is harmless.
#pragma nv_diagnostic push
#pragma nv_diag_suppress 20013
#include "quant/registry.h"
#include "quant/scale.h"
#pragma nv_diagnostic pop

namespace fedcomm::cuda {

inline constexpr unsigned kThreads = 256;
inline constexpr unsigned kChunk = 4;   // consecutive elements of a thread
inline constexpr unsigned kChunks = 4;  // of a thread
inline constexpr unsigned kPerThread = kChunk * kChunks;
inline constexpr unsigned kPerThreadShift = std::countr_zero(kPerThread);
inline constexpr unsigned kTile = kThreads * kPerThread;
inline constexpr std::uint32_t kMagnitude = 0x7fffffffu;

/// How many of the `n` elements of a tile lie in the four from `at` on; all if the tile is whole.
template <bool kWhole>
__device__ __forceinline__ unsigned count_at(unsigned at, unsigned n) {
  if constexpr (kWhole) return kChunk;
  return at >= n ? 0 : n - at < kChunk ? n - at : kChunk;
}

/// A thread's chunks, `stride` apart from `first` on; elements that do not exist are zero. `wide`
/// (one answer for a whole tensor): x is a multiple of 16.
template <bool kWhole>
__device__ __forceinline__ void load_chunks(const float* x, unsigned first, unsigned stride,
                                            unsigned n, bool wide, float (&v)[kChunks][kChunk]) {
  if (kWhole && wide) {
#pragma unroll
    for (unsigned k = 0; k < kChunks; ++k) {
      const float4 four = *reinterpret_cast<const float4*>(x + (first + k * stride));
      v[k][0] = four.x, v[k][1] = four.y, v[k][2] = four.z, v[k][3] = four.w;
    }
  } else {
#pragma unroll
    for (unsigned k = 0; k < kChunks; ++k)
#pragma unroll
      for (unsigned j = 0; j < kChunk; ++j) {
        const unsigned at = first + k * stride + j;
        v[k][j] = kWhole || at < n ? x[at] : 0.0f;
      }
  }
}

/// One chunk, of which `count` elements exist. The caches need not keep it. (That hint on loads was
/// measured to cost encoders 3% on an H100.)
template <bool kWhole>
__device__ __forceinline__ void store_chunk(float* out, unsigned count, bool wide,
                                            const float (&v)[kChunk]) {
  if (kWhole && wide) {
    __stcs(reinterpret_cast<float4*>(out), make_float4(v[0], v[1], v[2], v[3]));
  } else {
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j)
      if (kWhole || j < count) __stcs(out + j, v[j]);
  }
}

/// The entries of a tile that a thread scatters: neighbouring lanes have neighbouring ones. Each
/// goes to a sector of its own, but neighbours to the same page of memory, which takes a fifth less
/// time on an H100 than the four neighbours of a chunk one after the other.
template <bool kWhole>
class OwnEntries {
 public:
  /// Reads where they go.
  __device__ __forceinline__ OwnEntries(const std::uint32_t* indices, unsigned n) : n_(n) {
#pragma unroll
    for (unsigned i = 0; i < kPerThread; ++i)
      if (exists(at(i))) index_[i] = indices[at(i)];
  }

  /// Calls f(index, place in the tile, i), i from 0 to kPerThread - 1.
  template <typename F>
  __device__ __forceinline__ void for_each(F f) const {
#pragma unroll
    for (unsigned i = 0; i < kPerThread; ++i)
      if (exists(at(i))) f(index_[i], at(i), i);
  }

 private:
  static __device__ __forceinline__ unsigned at(unsigned i) { return i * kThreads + threadIdx.x; }
  __device__ __forceinline__ bool exists(unsigned place) const { return kWhole || place < n_; }

  unsigned n_;
  std::uint32_t index_[kPerThread];
};

template <typename T>
__device__ __forceinline__ void put(std::byte* out, T value) {
  *reinterpret_cast<T*>(out) = value;
}

template <typename T>
__device__ __forceinline__ T get(const std::byte* in) {
  return *reinterpret_cast<const T*>(in);
}

/// Where codes are at a multiple of this, a thread's are written and read at once: four of them, or
/// a row of single bits.
template <typename F>
inline constexpr unsigned kCodeUnit = F::kBits == 1 ? 4 : F::kBits / 2;

/// A word at an address that is a multiple of 4, or else (one answer for a whole payload) of 2.
__device__ __forceinline__ void put_word(std::byte* out, std::uint32_t word, bool aligned) {
  if (aligned) {
    put(out, word);
  } else {
    put(out, static_cast<std::uint16_t>(word));
    put(out + 2, static_cast<std::uint16_t>(word >> 16));
  }
}

__device__ __forceinline__ std::uint32_t get_word(const std::byte* in, bool aligned) {
  if (aligned) return get<std::uint32_t>(in);
  return get<std::uint16_t>(in) | std::uint32_t{get<std::uint16_t>(in + 2)} << 16;
}

__device__ __forceinline__ void put_bytes(std::byte* out, std::uint32_t word, unsigned n_bytes) {
  for (unsigned i = 0; i < n_bytes; ++i)
    put(out + i, static_cast<std::uint8_t>(word >> (8 * i)));
}

__device__ __forceinline__ std::uint32_t get_bytes(const std::byte* in, unsigned n_bytes) {
  std::uint32_t word = 0;
  for (unsigned i = 0; i < n_bytes; ++i)
    word |= std::uint32_t{get<std::uint8_t>(in + i)} << (8 * i);
  return word;
}

__device__ __forceinline__ void put_step(std::byte* steps, std::size_t index, float step,
                                         ScaleType type) {
  if (type == ScaleType::fp32) {
    put(steps + index * 4, step);
  } else {
    put(steps + index * 2, static_cast<std::uint16_t>(float_bits(step) >> 16));
  }
}

__device__ __forceinline__ float get_step(const std::byte* steps, std::size_t index,
                                          ScaleType type) {
  if (type == ScaleType::fp32) return get<float>(steps + index * 4);
  return bf16_to_float(get<std::uint16_t>(steps + index * 2));
}

/// The keys of Philox's rounds, the same for all elements of an encoding.
struct PhiloxKeys {
  std::uint32_t of_round[Philox::kRounds][2];
};

inline PhiloxKeys philox_keys(std::uint64_t seed) {
  PhiloxKeys keys;
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (auto& each : keys.of_round) {
    each[0] = key0;
    each[1] = key1;
    key0 += Philox::kWeyl0;
    key1 += Philox::kWeyl1;
  }
  return keys;
}

/// The eight 16-bit parts, in four words, for the eight elements from `index` on.
__device__ __forceinline__ uint4 philox(const Draw& draw, const PhiloxKeys& keys,
                                        std::uint64_t index) {
  std::uint32_t a = static_cast<std::uint32_t>(index >> 3), b = philox_high(draw, index);
  std::uint32_t c = draw.bucket, d = draw.round;
#pragma unroll
  for (int round = 0; round < Philox::kRounds; ++round) {
    const std::uint64_t product0 = std::uint64_t{a} * Philox::kMultiplier0;
    const std::uint64_t product1 = std::uint64_t{c} * Philox::kMultiplier1;
    a = static_cast<std::uint32_t>(product1 >> 32) ^ b ^ keys.of_round[round][0];
    c = static_cast<std::uint32_t>(product0 >> 32) ^ d ^ keys.of_round[round][1];
    b = static_cast<std::uint32_t>(product1);
    d = static_cast<std::uint32_t>(product0);
  }
  return make_uint4(a, b, c, d);
}

}  // namespace fedcomm::cuda
