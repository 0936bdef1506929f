// Where a piece of a range begins and ends in an array of increasing indices.
#pragma once

#include "base/cuda.cuh"

namespace fedcomm::cuda::coding {

/// How many of k increasing indices are below `bound`. A warp looks at 32 places at once.
__device__ __forceinline__ std::uint64_t count_below(const std::uint32_t* indices, std::uint64_t k,
                                                     std::uint64_t bound) {
  std::uint64_t low = 0, high = k;  // the answer is one of these or between
  while (low < high) {
    const std::uint64_t step = (high - low + kWarp - 1) / kWarp;
    const std::uint64_t at = low + threadIdx.x % kWarp * step;
    const unsigned below = __ballot_sync(kAllLanes, at < high && indices[at] < bound);
    const auto n_below = static_cast<unsigned>(__popc(below));
    if (n_below == 0) return low;
    high = min(low + n_below * step, high);
    low += (n_below - 1) * step + 1;
  }
  return low;
}

/// One block of two warps.
__global__ void find_range_kernel(const std::uint32_t* indices, std::uint64_t k,
                                  std::uint64_t begin, std::uint64_t end, std::uint32_t* range) {
  const unsigned warp = threadIdx.x / kWarp;
  const std::uint64_t count = count_below(indices, k, warp == 0 ? begin : end);
  if (threadIdx.x % kWarp == 0) range[warp] = static_cast<std::uint32_t>(count);
}

}  // namespace fedcomm::cuda::coding
