// Narrowing down where the k-th largest magnitude is, by histograms of 2048 bins. No kernels here.
#pragma once

#include "base/cuda.cuh"
#include "topk/kernels.h"

namespace fedcomm::cuda::topk {

inline constexpr unsigned kBinThreads = 1024;  // of blocks that look for a bin
inline constexpr unsigned kBins = 2 * kBinThreads, kBinBits = 11;

/// Magnitudes from lo to below lo + width, and of `count` elements that reach lo the rank-th
/// largest (from 1) is wanted; it may lie above. Where width is 1, rank is how many of those that
/// equal lo are selected.
struct Bracket {
  std::uint32_t lo, width, rank, count;
};

/// What magnitude - lo is for magnitudes below lo, at least, and for elements that do not exist.
inline constexpr std::uint32_t kBelow = kNoLimit;

/// Bins of a bracket are 2^shift wide.
__device__ __forceinline__ unsigned bin_shift(std::uint32_t width) {
  const unsigned bits = kWarp - static_cast<unsigned>(__clz(static_cast<int>(width - 1)));
  return bits > kBinBits ? bits - kBinBits : 0;
}

/// All lanes of a warp call it.
__device__ __forceinline__ void add_to_bin(std::uint32_t* bins, const Bracket& bracket,
                                           unsigned shift, std::uint32_t from_lo) {
  const bool inside = from_lo < bracket.width;
  if (!__any_sync(kAllLanes, inside)) return;
  const unsigned bin = inside ? from_lo >> shift : kBins;
  // As in constant data, where lanes would wait for each other.
  if (__all_sync(kAllLanes, bin == __shfl_sync(kAllLanes, bin, 0))) {
    if (threadIdx.x % kWarp == 0) atomicAdd(&bins[bin], kWarp);
  } else if (inside) {
    atomicAdd(&bins[bin], 1);
  }
}

/// All kBinThreads threads of a block call it; one of them writes `next`: the bin that holds the
/// wanted rank, or all above the bracket.
template <typename CountOf>
__device__ __forceinline__ void find_bin(const Bracket& bracket, CountOf count_of,
                                         std::uint32_t (&of_warps)[kBinThreads / kWarp],
                                         Bracket& next) {
  const unsigned shift = bin_shift(bracket.width);
  const unsigned upper = kBins - 1 - 2 * threadIdx.x;
  const std::uint32_t in_upper = count_of(upper), in_lower = count_of(upper - 1);
  const auto prefix = block_prefix<kBinThreads>(in_upper + in_lower, of_warps);
  const std::uint32_t n_above = bracket.count - prefix.total;
  if (bracket.rank <= n_above) {
    const std::uint32_t lo = bracket.lo + bracket.width;
    if (threadIdx.x == 0) next = {lo, kNoLimit - lo, bracket.rank, n_above};
    return;
  }
  const std::uint32_t rank = bracket.rank - n_above;
  if (prefix.before >= rank || prefix.before + in_upper + in_lower < rank) return;
  const bool is_upper = prefix.before + in_upper >= rank;
  const std::uint32_t from_lo = (is_upper ? upper : upper - 1) << shift;
  next = {bracket.lo + from_lo, min(1u << shift, bracket.width - from_lo),
          rank - prefix.before - (is_upper ? 0 : in_upper), is_upper ? in_upper : in_lower};
}

}  // namespace fedcomm::cuda::topk
