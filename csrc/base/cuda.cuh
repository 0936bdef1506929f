// What CUDA files of all layers share: errors of the runtime as ours, kernels that start while the
// one before them ends, and sums over a warp or a thread block. No kernels here.
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

// --- kernels in a row ----------------------------------------------------------------------------
// From sm_90 on, a kernel's blocks may be in place before the kernel in front of it has ended
// (programmatic dependent launch), which saves a microsecond or more each time.

/// What comes after it happens after all kernels in front. To be called by every thread, first of
/// all, or at least before anything that they write is read, or that they read is written.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/// Once all blocks have called it, those of the next kernel come, as far as there is room. To be
/// called after wait_for_previous(), so that they too are behind all that this kernel waits for.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/// Whether code was compiled for the current device in which wait_for_previous() waits: not where
/// the driver has translated that of an older device. All kernels are compiled for the same ones.
inline bool can_start_early(const void* kernel) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "a launch");
  if (major < 9) return false;
  static const bool is_own = [kernel] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "a launch");
    return attributes.ptxVersion >= 90;
  }();
  return is_own;
}

/// Launches a kernel that calls wait_for_previous(). The one in front of it may be any.
template <typename... Params, typename... Args>
void launch_next(void (*kernel)(Params...), unsigned n_blocks, unsigned n_threads,
                 cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(n_blocks);
  config.blockDim = dim3(n_threads);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = can_start_early(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args...), "a launch");
}

// --- sums ----------------------------------------------------------------------------------------

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
