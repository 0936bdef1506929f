// The decoding kernel of every format: chunks of four elements, neighbouring lanes having
// neighbouring chunks. Entries of a sparse tensor are scattered by the same kernel.
#pragma once

#include "quant/cuda_device.cuh"

namespace fedcomm::cuda {

struct DecodeArgs {
  const std::byte* steps;
  const std::byte* codes;
  std::size_t n;
  float* out;
  float weight;
  unsigned block_shift;  // of an unscaled format: unused
  ScaleType scale;
  bool wide;                     // out is a multiple of 16
  bool codes_aligned;            // codes are a multiple of kCodeUnit
  const std::uint32_t* indices;  // where elements go, if they are scattered
  const std::int32_t* corrupt;   // and whether those may be anything
};

/// What becomes of element i: out[i] or out[indices[i]] is set to it, or it is added there.
enum class Into : std::uint8_t { dense, dense_sum, scattered, scattered_sum };

/// The codes of four elements as they lie in memory; narrow ones in the low bits of the first word.
template <unsigned kBits, bool kWhole>
__device__ __forceinline__ void get_codes(const std::byte* tile_codes, unsigned at, unsigned count,
                                          bool aligned, std::uint32_t (&words)[kBits / 8 + 1]) {
  const std::byte* in = tile_codes + at * kBits / 8;
  if constexpr (kBits == 32) {
    if (kWhole && aligned) {
      const uint4 four = get<uint4>(in);
      words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    } else {
#pragma unroll
      for (unsigned j = 0; j < kChunk; ++j)
        words[j] = kWhole || j < count ? get<std::uint32_t>(in + 4 * j) : 0u;
    }
  } else if constexpr (kBits == 16) {
    if (kWhole && aligned) {
      const uint2 two = get<uint2>(in);
      words[0] = two.x, words[1] = two.y;
    } else if constexpr (kWhole) {
      words[0] = get<std::uint32_t>(in), words[1] = get<std::uint32_t>(in + 4);
    } else {
      words[0] = get_bytes(in, min(count, 2u) * 2);
      words[1] = get_bytes(in + 4, (max(count, 2u) - 2) * 2);
    }
  } else if constexpr (kBits == 1) {
    words[0] = kWhole || count > 0 ? std::uint32_t{get<std::uint8_t>(in)} >> (at & 4u) : 0u;
  } else if constexpr (!kWhole) {
    words[0] = get_bytes(in, (count * kBits + 7) / 8);
  } else if constexpr (kBits == 8) {
    words[0] = get_word(in, aligned);
  } else if constexpr (kBits == 4) {
    words[0] = get<std::uint16_t>(in);
  } else {
    static_assert(kBits == 2);
    words[0] = get<std::uint8_t>(in);
  }
}

template <typename F>
__device__ __forceinline__ float decode_one(const std::uint32_t* words, unsigned j, float step) {
  if constexpr (F::kBits == 32) {
    return F::dequantize(bits_float(words[j]));
  } else {
    constexpr std::uint32_t kMask = (1u << F::kBits) - 1;
    const std::uint32_t code = words[j * F::kBits / 32] >> (j * F::kBits % 32) & kMask;
    if constexpr (F::kScaled) {
      return F::dequantize(static_cast<std::uint8_t>(code), step);
    } else {
      return F::dequantize(static_cast<typename F::Code>(code));
    }
  }
}

__host__ __device__ constexpr bool is_scattered(Into into) {
  return into == Into::scattered || into == Into::scattered_sum;
}

/// Writes the tile's values, which lie in shared memory, to where its entries go.
template <Into into, bool kWhole>
__device__ __forceinline__ void scatter_tile(const DecodeArgs& args, std::size_t base, unsigned n,
                                             const float* values) {
  const OwnEntries<kWhole> own(args.indices + base, n);
  [[maybe_unused]] float sum[kPerThread];
  if constexpr (into == Into::scattered_sum)
    own.for_each([&](std::uint32_t index, unsigned, unsigned i) { sum[i] = args.out[index]; });
  __syncthreads();
  own.for_each([&](std::uint32_t index, unsigned at, unsigned i) {
    if constexpr (into == Into::scattered) {
      args.out[index] = values[at];
    } else {
      args.out[index] = sum[i] + args.weight * values[at];
    }
  });
}

/// `scattered_values` is shared memory for a tile, if entries are scattered.
template <typename F, Into into, bool kWhole>
__device__ __forceinline__ void decode_tile(const DecodeArgs& args, std::size_t base, unsigned n,
                                            float* scattered_values) {
  constexpr unsigned kStride = kThreads * kChunk;
  const unsigned first = threadIdx.x * kChunk;
  const std::byte* tile_codes = args.codes + base / 8 * F::kBits;
  [[maybe_unused]] float* out = args.out + base;
  // All loads first.
  std::uint32_t words[kChunks][F::kBits / 8 + 1];
  float step[kChunks] = {};
  float sum[kChunks][kChunk];
#pragma unroll
  for (unsigned k = 0; k < kChunks; ++k) {
    const unsigned at = first + k * kStride, count = count_at<kWhole>(at, n);
    get_codes<F::kBits, kWhole>(tile_codes, at, count, args.codes_aligned, words[k]);
    if constexpr (F::kScaled) {
      if (kWhole || count > 0) {
        step[k] = get_step(args.steps, (base + at) >> args.block_shift, args.scale);
      }
    }
  }
  if constexpr (into == Into::dense_sum) {
    load_chunks<kWhole>(out, first, kStride, n, args.wide, sum);
  }
#pragma unroll
  for (unsigned k = 0; k < kChunks; ++k) {
    const unsigned at = first + k * kStride, count = count_at<kWhole>(at, n);
    float values[kChunk];
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j) {
      values[j] = decode_one<F>(words[k], j, step[k]);
      if constexpr (into == Into::dense_sum) values[j] = sum[k][j] + args.weight * values[j];
    }
    if constexpr (is_scattered(into)) {
      *reinterpret_cast<float4*>(scattered_values + at) =
          make_float4(values[0], values[1], values[2], values[3]);
    } else {
      store_chunk<kWhole>(out + at, count, args.wide, values);
    }
  }
  if constexpr (is_scattered(into)) scatter_tile<into, kWhole>(args, base, n, scattered_values);
}

template <typename F, Into into>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ DecodeArgs args) {
  __shared__ alignas(16) float scattered_values[is_scattered(into) ? kTile : 1];
  if constexpr (is_scattered(into)) {
    if (*args.corrupt != 0) return;
  }
  const std::size_t base = std::size_t{blockIdx.x} * kTile;
  if (args.n - base >= kTile) {
    decode_tile<F, into, true>(args, base, kTile, scattered_values);
  } else {
    const auto n = static_cast<unsigned>(min(args.n - base, std::size_t{kTile}));
    decode_tile<F, into, false>(args, base, n, scattered_values);
  }
}

}  // namespace fedcomm::cuda
