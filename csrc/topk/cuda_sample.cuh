// Where the k-th largest magnitude probably is: a sample of the tensor, and the bracket between two
// of its ranks. A wrong guess costs time and changes nothing.
#pragma once

#include "topk/cuda_state.cuh"

namespace fedcomm::cuda::topk {

/// One element of each kSample-th part of the tensor, somewhere in it, so that no period of the
/// data is met in step. How many of them reach a threshold then spreads no more than if they were
/// drawn at random, however alike neighbours are.
template <bool kFeedback>
__global__ void __launch_bounds__(kClearThreads)
    sample_kernel(const __grid_constant__ SelectArgs args) {
  let_next_start();
  clear_state(args);
  const unsigned i = blockIdx.x * kClearThreads + threadIdx.x;
  const std::uint64_t begin = std::uint64_t{args.n} * i / kSample;
  const std::uint64_t end = std::uint64_t{args.n} * (i + 1) / kSample;
  const std::uint64_t random = (i + 1) * 0x9e3779b97f4a7c15u >> 32;
  args.sample[i] = sum_at<kFeedback>(args.input, begin + (random * (end - begin) >> 32));
}

/// A magnitude that at least the low_rank largest of the sample reach, and not many more: that many
/// of the threads' largest do. Ranks must not exceed the number of threads.
__device__ __forceinline__ std::uint32_t bound_of(const std::uint32_t (&keys)[kPerThread],
                                                  std::uint32_t rank) {
  constexpr unsigned kLowestBit = 15;  // no need to know it better
  std::uint32_t largest = 0, bound = 0;
#pragma unroll
  for (unsigned i = 0; i < kPerThread; ++i)
    largest = max(largest, keys[i]);
  for (unsigned bit = 31; bit-- > kLowestBit;) {
    const std::uint32_t trial = bound | 1u << bit;
    if (static_cast<unsigned>(__syncthreads_count(largest >= trial)) >= rank) bound = trial;
  }
  return bound;
}

/// The rank-th largest of n keys in shared memory, bit by bit. All lanes of a warp call it.
__device__ __forceinline__ std::uint32_t ranked_of(const std::uint32_t (&keys)[kMaxRanked],
                                                   unsigned n, std::uint32_t rank) {
  std::uint32_t own[kMaxRanked / kWarp];
#pragma unroll
  for (unsigned i = 0; i < kMaxRanked / kWarp; ++i) {
    const unsigned at = i * kWarp + threadIdx.x % kWarp;
    own[i] = at < n ? keys[at] : 0;
  }
  std::uint32_t found = 0;
  for (unsigned bit = 31; bit-- > 0;) {
    const std::uint32_t trial = found | 1u << bit;
    std::uint32_t reach = 0;
#pragma unroll
    for (unsigned i = 0; i < kMaxRanked / kWarp; ++i)
      reach += own[i] >= trial ? 1 : 0;
    if (__reduce_add_sync(kAllLanes, reach) >= rank) found = trial;
  }
  return found;
}

/// The low_rank-th and the high_rank-th largest of the sample, bit by bit.
__device__ __forceinline__ uint2 ranked_by_bits(const std::uint32_t (&keys)[kPerThread],
                                                const SelectArgs& args) {
  __shared__ SumCounts<kSampleThreads> counts;
  std::uint32_t low = 0, high = 0;
  for (unsigned bit = 31; bit-- > 0;) {
    const std::uint32_t low_trial = low | 1u << bit, high_trial = high | 1u << bit;
    std::uint32_t reach = 0;
#pragma unroll
    for (unsigned i = 0; i < kPerThread; ++i)
      reach += (keys[i] >= low_trial ? 1u : 0u) + (keys[i] >= high_trial ? 0x10000u : 0u);
    static_assert(kSample < 0x10000);
    const std::uint32_t total = block_sum(reach, bit, counts);
    if ((total & 0xffffu) >= args.low_rank) low = low_trial;
    if (total >> 16 >= args.high_rank) high = high_trial;
  }
  return make_uint2(low, high);
}

/// One block: the bracket from the low_rank-th to the high_rank-th largest of the sample. Usually
/// few reach the first one; then a warp holds them all.
__global__ void __launch_bounds__(kSampleThreads)
    bracket_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ std::uint32_t ranked[kMaxRanked];
  __shared__ std::uint32_t n_ranked;
  __shared__ uint2 found;
  std::uint32_t keys[kPerThread];
  wait_for_previous();
  let_next_start();
#pragma unroll
  for (unsigned i = 0; i < kPerThread; ++i)
    keys[i] = magnitude(args.sample[i * kSampleThreads + threadIdx.x]);
  if (threadIdx.x == 0) n_ranked = 0;
  __syncthreads();
  bool all_listed = false;
  if (args.low_rank <= kSampleThreads) {
    const std::uint32_t bound = bound_of(keys, args.low_rank);
#pragma unroll
    for (unsigned i = 0; i < kPerThread; ++i) {
      if (keys[i] < bound) continue;
      const std::uint32_t place = atomicAdd(&n_ranked, 1);
      if (place < kMaxRanked) ranked[place] = keys[i];
    }
    __syncthreads();
    all_listed = n_ranked <= kMaxRanked;
  }
  if (all_listed) {
    if (threadIdx.x < 2 * kWarp) {
      const bool is_low = threadIdx.x < kWarp;
      const std::uint32_t end =
          ranked_of(ranked, n_ranked, is_low ? args.low_rank : args.high_rank);
      if (threadIdx.x % kWarp == 0) (is_low ? found.x : found.y) = end;
    }
    __syncthreads();
  } else {
    const uint2 ends = ranked_by_bits(keys, args);
    if (threadIdx.x == 0) found = ends;
  }
  if (threadIdx.x != 0) return;
  const std::uint32_t low = found.x;
  args.state->guess = {low, max(found.y, low + 1) - low, args.k, 0};
}

}  // namespace fedcomm::cuda::topk
