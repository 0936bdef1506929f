// What CUDA files of all layers share: errors of the runtime as ours, and sums over a warp or a
// thread block. No kernels here.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace fedcomm::cuda {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would be blamed for it
  fail(ErrorKind::cuda, std::string("[cuda] ") + what + ": " + cudaGetErrorString(status));
}

inline void check_launch(const char* what) {
  check(cudaGetLastError(), what);
}

/// The sum over this lane and those below it.
template <typename T>
__device__ __forceinline__ T warp_prefix(T value) {
  const unsigned lane = threadIdx.x % kWarp;
#pragma unroll
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

/// A value's place in a sum over a thread block: what the threads before it have, and all of them.
template <typename T>
struct BlockPrefix {
  T before, total;
};

/// All kThreads threads of a block call it. `of_warps` is shared memory, free again after the next
/// barrier.
template <unsigned kThreads, typename T>
__device__ __forceinline__ BlockPrefix<T> block_prefix(T value, T (&of_warps)[kThreads / kWarp]) {
  const T prefix = warp_prefix(value);
  const unsigned warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == kWarp - 1) of_warps[warp] = prefix;
  __syncthreads();
  T before = 0, total = 0;
#pragma unroll
  for (unsigned w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += of_warps[w];
    total += of_warps[w];
  }
  return {before + (prefix - value), total};
}

}  // namespace fedcomm::cuda
