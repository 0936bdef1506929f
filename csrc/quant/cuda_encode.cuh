// The encoding kernel of every format whose step comes from the largest magnitude of a block, or
// that has no steps; cuda_sign.cuh has the other one. Written to be bound by memory: every element
// is read once and stays in registers.
//
// A block of 32 to 512 elements lies on the 2 to 32 lanes of a warp that share it, 16 elements
// each; a larger one on several warps, which exchange their maxima through shared memory.
//
// The same for entries that were chosen from a tensor, of which the device alone may know how many
// there are: each block finds out by itself, and those beyond the last entry end.
#pragma once

#include "quant/cuda_device.cuh"
#include "quant/quant.h"

namespace fedcomm::cuda {

/// What becomes of the residual: there is none; it is as long as x, and x is without the old one;
/// or x has it already, and after[indices[i]] gets what is left of x[i].
enum class Rest : std::uint8_t { none, dense, scattered };

struct EncodeArgs {
  const float* x;
  const float* before;           // of a dense rest
  float* after;                  // unless there is no rest
  const std::uint32_t* indices;  // of a scattered one
  float beta;
  std::size_t n;
  std::byte* steps;
  std::byte* codes;
  unsigned block_shift;  // of an unscaled format: unused
  ScaleType scale;
  bool wide;           // x, before and after are multiples of 16
  bool codes_aligned;  // codes are a multiple of kCodeUnit
  Draw draw;
  PhiloxKeys keys;
  std::int32_t* non_finite;
};

/// Entries to be encoded: `encode` is for all that `range` may take from; where it is given, x,
/// indices, n and codes are yet to be found.
struct EntryArgs {
  EncodeArgs encode;
  const std::uint32_t* range;  // may be null
  std::uint32_t* n_entries;
  std::uint64_t* n_bytes;  // may be null
};

/// Which entries there are: the first of those that `range` takes, and how many.
struct EntryRange {
  std::size_t first, n;

  __device__ EntryRange(const std::uint32_t* range, std::size_t n_in_all) : first(0), n(n_in_all) {
    if (range == nullptr) return;
    first = min(std::size_t{range[0]}, n_in_all);
    const std::size_t last = min(std::size_t{range[1]}, n_in_all);
    n = last > first ? last - first : 0;
  }
};

template <typename F>
__device__ __forceinline__ std::size_t step_bytes_of(const EncodeArgs& args, std::size_t n) {
  if constexpr (!F::kScaled) return 0;
  return ((n + (1u << args.block_shift) - 1) >> args.block_shift) *
         (args.scale == ScaleType::fp32 ? 4 : 2);
}

/// Of the count of entries and of their payload.
template <typename F>
__device__ __forceinline__ std::uint64_t entries_bytes(const EncodeArgs& args, std::size_t n) {
  return sizeof(std::uint32_t) + step_bytes_of<F>(args, n) + n / 8 * F::kBits +
         (n % 8 * F::kBits + 7) / 8;
}

template <typename F>
__device__ __forceinline__ EncodeArgs find_entries(const EntryArgs& given) {
  EncodeArgs args = given.encode;
  const EntryRange range(given.range, args.n);
  if (given.range != nullptr) {
    args.x += range.first;
    args.indices += range.first;
    args.n = range.n;
    args.wide = reinterpret_cast<std::uintptr_t>(args.x) % sizeof(float4) == 0;
  }
  args.codes = args.steps + step_bytes_of<F>(args, args.n);
  args.codes_aligned = reinterpret_cast<std::uintptr_t>(args.codes) % kCodeUnit<F> == 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *given.n_entries = static_cast<std::uint32_t>(args.n);
    if (given.n_bytes != nullptr) *given.n_bytes = entries_bytes<F>(args, args.n);
  }
  return args;
}

/// One thread.
template <typename F>
__global__ void measure_entries_kernel(const __grid_constant__ EntryArgs given) {
  const EntryRange range(given.range, given.encode.n);
  *given.n_bytes = entries_bytes<F>(given.encode, range.n);
}

/// What is left of an entry. One that cannot be sent must not come again in the next round.
__device__ __forceinline__ float rest_of_entry(float value, float decoded) {
  const bool finite = (float_bits(decoded) & kMagnitude) < 0x7f800000u;
  return finite ? value - decoded : 0.0f;
}

/// Four codes from `out` on, of which `count` exist (and the others are zero).
template <unsigned kBits, bool kWhole>
__device__ __forceinline__ void put_codes(std::byte* out, unsigned count,
                                          const std::uint32_t (&codes)[kChunk], bool aligned) {
  if constexpr (kBits == 32) {
    if (kWhole && aligned) {
      put(out, make_uint4(codes[0], codes[1], codes[2], codes[3]));
    } else {
#pragma unroll
      for (unsigned j = 0; j < kChunk; ++j)
        if (kWhole || j < count) put(out + 4 * j, codes[j]);
    }
  } else if constexpr (kBits == 16) {
    if constexpr (kWhole) {
      const uint2 words = make_uint2(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
      if (aligned) {
        put(out, words);
      } else {
        put(out, words.x);
        put(out + 4, words.y);
      }
    } else {
#pragma unroll
      for (unsigned j = 0; j < kChunk; ++j)
        if (j < count) put(out + 2 * j, static_cast<std::uint16_t>(codes[j]));
    }
  } else {
    static_assert(kBits == 8 || kBits == 4 || kBits == 2);
    const std::uint32_t word =
        codes[0] | codes[1] << kBits | codes[2] << (2 * kBits) | codes[3] << (3 * kBits);
    if constexpr (!kWhole) {
      put_bytes(out, word, (count * kBits + 7) / 8);
    } else if constexpr (kBits == 8) {
      put_word(out, word, aligned);
    } else if constexpr (kBits == 4) {
      put(out, static_cast<std::uint16_t>(word));
    } else {
      put(out, static_cast<std::uint8_t>(word));
    }
  }
}

template <typename F>
__device__ __forceinline__ std::uint32_t code_bits(typename F::Code code) {
  if constexpr (F::kBits == 32) {
    return float_bits(code);
  } else {
    return code;
  }
}

/// The random bits of a thread's chunks, two words each. Eight elements, the chunks of two
/// neighbouring lanes, share a counter: each lane draws for one of two chunks, and they exchange
/// halves. `index` is the first element of this lane's chunk 0, `stride` leads to the next chunk.
__device__ __forceinline__ void draw_chunks(const Draw& draw, const PhiloxKeys& keys,
                                            std::uint64_t index, unsigned stride,
                                            uint2 (&random)[kChunks]) {
  const unsigned odd = threadIdx.x & 1u;
#pragma unroll
  for (unsigned k = 0; k < kChunks; k += 2) {
    const uint4 drawn = philox(draw, keys, index + (k + odd) * stride);
    const uint2 own = odd ? make_uint2(drawn.z, drawn.w) : make_uint2(drawn.x, drawn.y);
    const uint2 other = odd ? make_uint2(drawn.x, drawn.y) : make_uint2(drawn.z, drawn.w);
    const uint2 received =
        make_uint2(__shfl_xor_sync(kAllLanes, other.x, 1), __shfl_xor_sync(kAllLanes, other.y, 1));
    random[k] = odd ? received : own;
    random[k + 1] = odd ? own : received;
  }
}

/// The largest value among the lanes (a power of two of them, at most 32) that share a block.
__device__ __forceinline__ std::uint32_t largest_of_lanes(std::uint32_t value, unsigned lanes) {
#pragma unroll
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, value, offset);
    if (offset < lanes) value = max(value, other);
  }
  return value;
}

/// Shared memory of a tile: the warps' maxima, and what is left of entries.
template <Rest rest>
struct TileScratch {
  std::uint32_t of_warps[kThreads / kWarp];
  alignas(16) float left[rest == Rest::scattered ? kTile : 1];
};

template <typename F, Rounding rounding, Rest rest, bool kWhole>
__device__ __forceinline__ void encode_tile(const EncodeArgs& args, std::size_t base, unsigned n,
                                            TileScratch<rest>& shared) {
  // Where this thread's chunks lie in the tile.
  const unsigned lane_shift = F::kScaled ? min(args.block_shift - kPerThreadShift, 5u) : 5u;
  const unsigned group = threadIdx.x >> lane_shift;
  const unsigned first =
      group * (kPerThread << lane_shift) + (threadIdx.x & ((1u << lane_shift) - 1)) * kChunk;
  const unsigned stride = kChunk << lane_shift;

  float v[kChunks][kChunk];
  load_chunks<kWhole>(args.x + base, first, stride, n, args.wide, v);
  if constexpr (rest == Rest::dense) {
    float before[kChunks][kChunk];
    load_chunks<kWhole>(args.before + base, first, stride, n, args.wide, before);
#pragma unroll
    for (unsigned k = 0; k < kChunks; ++k)
#pragma unroll
      for (unsigned j = 0; j < kChunk; ++j)
        v[k][j] = v[k][j] + args.beta * before[k][j];
  }
  uint2 random[kChunks];
  if constexpr (rounding == Rounding::stochastic) {
    const std::uint64_t index = args.draw.first + base + (first & ~7u);
    draw_chunks(args.draw, args.keys, index, stride, random);
  }

  std::uint32_t largest = 0;
#pragma unroll
  for (unsigned k = 0; k < kChunks; ++k)
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j)
      largest = max(largest, float_bits(v[k][j]) & kMagnitude);
  float step = 0, inverse = 0;
  if constexpr (F::kScaled) {
    largest = largest_of_lanes(largest, 1u << lane_shift);
    const unsigned block = 1u << args.block_shift;
    if (block > kWarp * kPerThread) {
      const unsigned warp = threadIdx.x / kWarp, n_warps = block / (kWarp * kPerThread);
      if (threadIdx.x % kWarp == 0) shared.of_warps[warp] = largest;
      __syncthreads();
      for (unsigned i = 0; i < n_warps; ++i)
        largest = max(largest, shared.of_warps[(warp & ~(n_warps - 1)) + i]);
    }
    step = largest < F::kOverflow ? step_from_absmax<F>(bits_float(largest), args.scale)
                                  : bits_float(kNonFiniteStep);
    inverse = inverse_of(step);
    if ((first & (block - 1)) == 0 && (kWhole || first < n)) {
      put_step(args.steps, (base + first) >> args.block_shift, step, args.scale);
    }
  }
  const bool finite = largest < F::kOverflow;
  if (!finite) *args.non_finite = 1;

  std::byte* tile_codes = args.codes + base / 8 * F::kBits;
#pragma unroll
  for (unsigned k = 0; k < kChunks; ++k) {
    const unsigned at = first + k * stride, count = count_at<kWhole>(at, n);
    std::uint32_t codes[kChunk];
    float after[kChunk];
#pragma unroll
    for (unsigned j = 0; j < kChunk; ++j) {
      const std::uint32_t pair = j < 2 ? random[k].x : random[k].y;
      const auto bits = static_cast<std::uint16_t>(j % 2 == 0 ? pair : pair >> 16);
      const float value = v[k][j];
      if constexpr (F::kScaled) {
        std::uint8_t code;
        if constexpr (rounding == Rounding::stochastic) {
          code = F::quantize(value * inverse, bits);
        } else {
          code = F::quantize(value * inverse);
        }
        const bool kept = finite && (kWhole || j < count);
        codes[j] = kept ? code : 0u;
        if constexpr (rest != Rest::none) {
          after[j] = finite ? value - F::dequantize(code, step) : 0.0f;
        }
      } else {
        typename F::Code code;
        if constexpr (rounding == Rounding::stochastic) {
          code = F::quantize(value, bits);
        } else {
          code = F::quantize(value);
        }
        codes[j] = code_bits<F>(code);
        if constexpr (rest == Rest::dense) after[j] = value - F::dequantize(code);
        if constexpr (rest == Rest::scattered) {
          after[j] = rest_of_entry(value, F::dequantize(code));
        }
      }
    }
    put_codes<F::kBits, kWhole>(tile_codes + at * F::kBits / 8, count, codes, args.codes_aligned);
    if constexpr (rest == Rest::dense) {
      store_chunk<kWhole>(args.after + base + at, count, args.wide, after);
    } else if constexpr (rest == Rest::scattered) {
      *reinterpret_cast<float4*>(shared.left + at) =
          make_float4(after[0], after[1], after[2], after[3]);
    }
  }
  if constexpr (rest == Rest::scattered) {
    const OwnEntries<kWhole> own(args.indices + base, n);
    __syncthreads();
    own.for_each(
        [&](std::uint32_t index, unsigned at, unsigned) { args.after[index] = shared.left[at]; });
  }
}

template <typename F, Rounding rounding, Rest rest>
__device__ __forceinline__ void encode_tile_of_block(const EncodeArgs& args) {
  __shared__ TileScratch<rest> shared;
  const std::size_t base = std::size_t{blockIdx.x} * kTile;
  if (args.n - base >= kTile) {
    encode_tile<F, rounding, rest, true>(args, base, kTile, shared);
  } else {
    const auto n = static_cast<unsigned>(min(args.n - base, std::size_t{kTile}));
    encode_tile<F, rounding, rest, false>(args, base, n, shared);
  }
}

/// Thread blocks that a multiprocessor shall hold: enough to hide the latency of memory, and for
/// stochastic rounding, which computes much, as many as go without spilling registers.
template <typename F, Rest rest>
inline constexpr unsigned kResident = rest != Rest::none || !F::kScaled ? 4 : 6;

template <typename F, Rounding rounding, Rest rest>
__global__ void __launch_bounds__(kThreads, kResident<F, rest>)
    encode_kernel(const __grid_constant__ EncodeArgs args) {
  encode_tile_of_block<F, rounding, rest>(args);
}

template <typename F, Rounding rounding, Rest rest>
__global__ void __launch_bounds__(kThreads)
    encode_entries_kernel(const __grid_constant__ EntryArgs given) {
  wait_for_previous();
  const EncodeArgs args = find_entries<F>(given);
  if (std::size_t{blockIdx.x} * kTile >= args.n) return;
  encode_tile_of_block<F, rounding, rest>(args);
}

}  // namespace fedcomm::cuda
