// Narrowing down where the k-th largest magnitude is, by histograms of 2048 bins. No kernels here.
#pragma once

#include "base/cuda.cuh"
#include "topk/kernels.h"

namespace fedcomm::cuda::topk {

inline constexpr unsigned kBinThreads = 1024;  // of blocks that look for a bin
inline constexpr unsigned kBins = 2 * kBinThreads, kBinBits = 11;

/// Magnitudes from lo to below lo + width, among which the rank-th largest (from 1) is wanted.
/// Where width is 1, rank is how many of the elements that equal lo are selected.
struct Bracket {
  std::uint32_t lo, width, rank;
};

/// What magnitude - lo is for magnitudes below lo, at least, and for elements that do not exist.
inline constexpr std::uint32_t kBelow = kNoLimit;

/// Bins are 2^shift wide.
__device__ __forceinline__ unsigned bin_shift(const Bracket& bracket) {
  const unsigned bits = kWarp - static_cast<unsigned>(__clz(bracket.width - 1));
  return bits > kBinBits ? bits - kBinBits : 0;
}

/// All lanes of a warp call it.
__device__ __forceinline__ void add_to_bin(std::uint32_t* bins, const Bracket& bracket,
                                           unsigned shift, std::uint32_t from_lo) {
  const bool inside = from_lo < bracket.width;
  const unsigned bin = inside ? from_lo >> shift : kBins;
  // As in constant data, where lanes would wait for each other.
  if (__all_sync(kAllLanes, bin == __shfl_sync(kAllLanes, bin, 0))) {
    if (inside && threadIdx.x % kWarp == 0) atomicAdd(&bins[bin], kWarp);
  } else if (inside) {
    atomicAdd(&bins[bin], 1);
  }
}

/// All kBinThreads threads of a block call it; one of them finds the bin and writes `next`.
template <typename CountOf>
__device__ __forceinline__ void find_bin(const Bracket& bracket, CountOf count_of,
                                         std::uint32_t (&of_warps)[kBinThreads / kWarp],
                                         Bracket& next) {
  const unsigned shift = bin_shift(bracket);
  const unsigned upper = kBins - 1 - 2 * threadIdx.x;
  const std::uint32_t in_upper = count_of(upper);
  const std::uint32_t in_both = in_upper + count_of(upper - 1);
  const std::uint32_t before = block_prefix<kBinThreads>(in_both, of_warps).before;
  if (before >= bracket.rank || before + in_both < bracket.rank) return;
  const bool is_upper = before + in_upper >= bracket.rank;
  const std::uint32_t from_lo = (is_upper ? upper : upper - 1) << shift;
  next = {bracket.lo + from_lo, min(1u << shift, bracket.width - from_lo),
          bracket.rank - before - (is_upper ? 0 : in_upper)};
}

}  // namespace fedcomm::cuda::topk
