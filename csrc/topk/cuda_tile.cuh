// What the CUDA kernels of selection share: how a tile of elements lies on the threads of a block,
// the sum with the residual, and listing the elements of a tile that reach a threshold. No kernels
// here.
//
// A tile is a few rows; in a row a thread has four consecutive elements, and neighbouring threads
// neighbouring ones, so that whole sectors of memory are read and written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cuda.cuh"
#include "topk/kernels.h"

namespace fedcomm::cuda::topk {

inline constexpr unsigned kRows = 4, kWide = 4;
inline constexpr unsigned kPerThread = kRows * kWide;

/// `before` and `after` are null where there is no feedback.
struct Input {
  const float* x;
  const float* before;
  float* after;
  float beta;

  /// Where acc is once it was computed.
  __device__ const float* data() const { return before == nullptr ? x : after; }
};

__device__ __forceinline__ std::uint32_t magnitude(float value) {
  return __float_as_uint(value) & 0x7fffffffu;
}

/// x + beta * before. The GPU forgets what a NaN looked like, CPUs keep it: so do we.
__device__ __forceinline__ float sum_of(float x, float before, float beta) {
  const float product = beta * before;
  const float sum = x + product;
  if (sum == sum) return sum;
  constexpr std::uint32_t kQuiet = 0x00400000u, kDefaultNan = 0xffc00000u;
  if (x != x) return __uint_as_float(__float_as_uint(x) | kQuiet);
  if (beta != beta) return __uint_as_float(__float_as_uint(beta) | kQuiet);
  if (before != before) return __uint_as_float(__float_as_uint(before) | kQuiet);
  return __uint_as_float(kDefaultNan);
}

template <bool kFeedback>
__device__ __forceinline__ float sum_at(const Input& input, std::size_t i) {
  if constexpr (!kFeedback) return input.x[i];
  return sum_of(input.x[i], input.before[i], input.beta);
}

/// Of a thread in a tile: acc, and its magnitudes, -1 where the tensor has no such element.
template <unsigned kThreads, unsigned kHeight = kRows>
struct Tile {
  static constexpr unsigned kRow = kThreads * kWide;
  static constexpr unsigned kSize = kHeight * kRow;

  float value[kHeight][kWide];
  std::int32_t key[kHeight][kWide];

  static __device__ __forceinline__ unsigned at(unsigned row, unsigned j) {
    return row * kRow + threadIdx.x * kWide + j;
  }

  /// Reads the n elements from `begin` on, and writes acc where there is feedback.
  template <bool kFeedback>
  __device__ __forceinline__ void load(const Input& input, std::size_t begin, unsigned n) {
    load<kFeedback>(input, begin, n, [] {});
  }

  /// Calls meanwhile() once the memory of a whole tile has been asked for.
  template <bool kFeedback, typename Meanwhile>
  __device__ __forceinline__ void load(const Input& input, std::size_t begin, unsigned n,
                                       Meanwhile meanwhile) {
    const float* x = input.x + begin;
    const float* before = kFeedback ? input.before + begin : nullptr;
    float* after = kFeedback ? input.after + begin : nullptr;
    const auto address = reinterpret_cast<std::uintptr_t>(x) |
                         reinterpret_cast<std::uintptr_t>(before) |
                         reinterpret_cast<std::uintptr_t>(after);
    if (n == kSize && address % sizeof(float4) == 0) {
      load_wide<kFeedback>(x, before, after, input.beta, meanwhile);
    } else {
      meanwhile();
      load_any<kFeedback>(x, before, after, input.beta, n);
    }
  }

 private:
  template <bool kFeedback, typename Meanwhile>
  __device__ __forceinline__ void load_wide(const float* x, const float* before, float* after,
                                            float beta, Meanwhile meanwhile) {
    float4 a[kHeight], b[kHeight];
#pragma unroll
    for (unsigned r = 0; r < kHeight; ++r) {
      a[r] = *reinterpret_cast<const float4*>(x + at(r, 0));
      if constexpr (kFeedback) b[r] = *reinterpret_cast<const float4*>(before + at(r, 0));
    }
    meanwhile();
#pragma unroll
    for (unsigned r = 0; r < kHeight; ++r) {
      value[r][0] = a[r].x, value[r][1] = a[r].y, value[r][2] = a[r].z, value[r][3] = a[r].w;
      if constexpr (kFeedback) {
        value[r][0] = sum_of(a[r].x, b[r].x, beta), value[r][1] = sum_of(a[r].y, b[r].y, beta);
        value[r][2] = sum_of(a[r].z, b[r].z, beta), value[r][3] = sum_of(a[r].w, b[r].w, beta);
        __stcs(reinterpret_cast<float4*>(after + at(r, 0)),
               make_float4(value[r][0], value[r][1], value[r][2], value[r][3]));
      }
#pragma unroll
      for (unsigned j = 0; j < kWide; ++j)
        key[r][j] = static_cast<std::int32_t>(magnitude(value[r][j]));
    }
  }

  template <bool kFeedback>
  __device__ __forceinline__ void load_any(const float* x, const float* before, float* after,
                                           float beta, unsigned n) {
#pragma unroll
    for (unsigned r = 0; r < kHeight; ++r)
#pragma unroll
      for (unsigned j = 0; j < kWide; ++j) {
        const unsigned i = at(r, j);
        value[r][j] = 0.0f;
        key[r][j] = -1;
        if (i >= n) continue;
        value[r][j] = x[i];
        if constexpr (kFeedback) {
          value[r][j] = sum_of(x[i], before[i], beta);
          after[i] = value[r][j];
        }
        key[r][j] = static_cast<std::int32_t>(magnitude(value[r][j]));
      }
  }
};

__device__ __forceinline__ unsigned lanes_below() {
  return (1u << threadIdx.x % kWarp) - 1u;
}

/// Shared memory of list().
struct ListCounts {
  std::uint32_t of_row[kWarp];
  std::uint32_t total;
};

/// Calls put(place, row, j) for the thread's elements whose key is at least `lowest`. Their places
/// count up in the order of the tile from first(total) on, which one warp calls. Returns the total.
template <unsigned kThreads, unsigned kHeight, typename First, typename Put>
__device__ __forceinline__ std::uint32_t list(const Tile<kThreads, kHeight>& tile,
                                              std::int32_t lowest, ListCounts& shared, First first,
                                              Put put) {
  constexpr unsigned kWarps = kThreads / kWarp;
  static_assert(kHeight * kWarps <= kWarp, "one warp adds up the counts");
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  unsigned before[kHeight];
#pragma unroll
  for (unsigned r = 0; r < kHeight; ++r) {
    unsigned total = 0;
    before[r] = 0;
#pragma unroll
    for (unsigned j = 0; j < kWide; ++j) {
      const unsigned reach = __ballot_sync(kAllLanes, tile.key[r][j] >= lowest);
      before[r] += static_cast<unsigned>(__popc(reach & lanes_below()));
      total += static_cast<unsigned>(__popc(reach));
    }
    if (lane == 0) shared.of_row[r * kWarps + warp] = total;
  }
  __syncthreads();
  if (warp == 0) {
    const std::uint32_t count = lane < kHeight * kWarps ? shared.of_row[lane] : 0;
    const std::uint32_t prefix = warp_prefix(count);
    const std::uint32_t total = __shfl_sync(kAllLanes, prefix, kWarp - 1);
    shared.of_row[lane] = first(total) + prefix - count;
    if (lane == 0) shared.total = total;
  }
  __syncthreads();
#pragma unroll
  for (unsigned r = 0; r < kHeight; ++r) {
    std::uint32_t place = shared.of_row[r * kWarps + warp] + before[r];
#pragma unroll
    for (unsigned j = 0; j < kWide; ++j)
      if (tile.key[r][j] >= lowest) put(place++, r, j);
  }
  return shared.total;
}

/// Shared memory of block_sum(): two sets, so that one barrier a sum is enough.
template <unsigned kThreads>
struct SumCounts {
  std::uint32_t of_warps[2][kThreads / kWarp];
};

/// The sum over all threads; `turn` differs in its lowest bit from one call to the next.
template <unsigned kThreads>
__device__ __forceinline__ std::uint32_t block_sum(std::uint32_t value, unsigned turn,
                                                   SumCounts<kThreads>& shared) {
  const unsigned lane = threadIdx.x % kWarp;
  auto& of_warps = shared.of_warps[turn % 2];
  const std::uint32_t of_warp = __reduce_add_sync(kAllLanes, value);
  if (lane == 0) of_warps[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  return __reduce_add_sync(kAllLanes, lane < kThreads / kWarp ? of_warps[lane] : 0);
}

/// The elements larger than the threshold, or equal to it, before some place.
struct Ranks {
  std::uint32_t above, ties;
};

/// Of the elements that equal the threshold, the first n_ties are selected: then this is where an
/// element goes that has `before` before it.
__device__ __forceinline__ std::uint32_t output_place(const Ranks& before, std::uint32_t n_ties) {
  return before.above + min(before.ties, n_ties);
}

}  // namespace fedcomm::cuda::topk
