// The pass over memory of a selection from a whole tensor, and the passes over what it listed that
// find the exact k-th largest magnitude.
#pragma once

#include "topk/cuda_state.cuh"

namespace fedcomm::cuda::topk {

inline constexpr unsigned kNarrowThreads = kBinThreads, kNarrowBlocks = 264;

/// Writes acc; lists the candidates of each tile, as far as there is room, and counts all.
template <bool kFeedback>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ ListCounts counts;
  State& state = *args.state;
  const std::uint32_t begin = blockIdx.x * kTile;
  std::uint32_t lo = 0, width = 0;
  ScanTile tile{};
  // The first blocks come while the bracket is being looked for: kernels in front of that one are
  // over, so that their elements can be read and acc written, but not yet be compared.
  tile.load<kFeedback>(args.input, begin, min(kTile, args.n - begin), [&] {
    wait_for_previous();
    let_next_start();
    lo = state.guess.lo;
    width = state.guess.width;
  });
  const auto first = [&](std::uint32_t total) {
    std::uint32_t place = 0;
    if (threadIdx.x == 0) {
      place = total == 0 ? 0 : atomicAdd(&state.n_candidates, total);
      args.lists[blockIdx.x] = {place, total};
      if (total > kMaxCounted) state.is_uncounted = 1;
    }
    return __shfl_sync(kAllLanes, place, 0);
  };
  const unsigned shift = bin_shift(width);
  list(tile, static_cast<std::int32_t>(lo), counts, first,
       [&](std::uint32_t place, unsigned row, unsigned j) {
         const std::uint32_t from_lo = static_cast<std::uint32_t>(tile.key[row][j]) - lo;
         if (from_lo < width && counts.total <= kMaxCounted)
           atomicAdd(&state.bins[0][from_lo >> shift], 1);
         if (place >= args.capacity) return;
         args.candidate_indices[place] = begin + tile.at(row, j);
         args.candidate_values[place] = tile.value[row][j];
       });
}

/// Writes acc where there is feedback, and looks for what is not finite where nothing is selected.
template <bool kFeedback>
__global__ void __launch_bounds__(kScanThreads)
    sum_kernel(const __grid_constant__ SelectArgs args) {
  wait_for_previous();
  let_next_start();
  const std::uint32_t begin = blockIdx.x * kTile;
  ScanTile tile;
  tile.load<kFeedback>(args.input, begin, min(kTile, args.n - begin));
  if (args.k > 0) return;
  bool finite = true;
#pragma unroll
  for (unsigned r = 0; r < kScanRows; ++r)
#pragma unroll
    for (unsigned j = 0; j < kWide; ++j)
      finite = finite && tile.key[r][j] < static_cast<std::int32_t>(kInfinityBits);
  if (!finite) *args.non_finite = 1;
}

/// Shared memory of a pass.
struct NarrowScratch {
  std::uint32_t bins[kBins];
  std::uint32_t of_warps[kBinThreads / kWarp];
  Bracket bracket;
  bool is_last;
};

/// What a pass narrows: all magnitudes to begin with, or what the scan's bins leave of the guess.
__device__ __forceinline__ Bracket bracket_of(const SelectArgs& args, unsigned pass, bool listed,
                                              NarrowScratch& shared) {
  const State& state = *args.state;
  if (pass > 0) return state.bracket;
  const std::uint32_t n = listed ? state.n_candidates : args.n;
  if (!listed || state.is_uncounted != 0) return {0, kNoLimit, args.k, n};
  Bracket guess = state.guess;
  guess.count = n;
  find_bin(
      guess, [&](unsigned bin) { return state.bins[0][bin]; }, shared.of_warps, shared.bracket);
  __syncthreads();
  return shared.bracket;
}

/// Counts the magnitudes of the bracket in bins; the last block to finish chooses one.
__global__ void __launch_bounds__(kNarrowThreads, 2)
    narrow_kernel(const __grid_constant__ SelectArgs args, unsigned pass) {
  __shared__ NarrowScratch shared;
  constexpr unsigned kAtOnce = 8, kPiece = kAtOnce * kNarrowThreads;
  for (unsigned i = threadIdx.x; i < kBins; i += kNarrowThreads)
    shared.bins[i] = 0;
  wait_for_previous();
  let_next_start();
  State& state = *args.state;
  const bool listed = args.listed();
  const Bracket bracket = bracket_of(args, pass, listed, shared);
  if (bracket.width == 1) {
    if (pass == 0 && blockIdx.x == 0 && threadIdx.x == 0) state.bracket = bracket;
    return;
  }
  const unsigned shift = bin_shift(bracket.width);
  const std::uint32_t n = listed ? state.n_candidates : args.n;
  const float* values = listed ? args.candidate_values : args.input.data();
  __syncthreads();
  for (std::uint64_t begin = std::uint64_t{blockIdx.x} * kPiece; begin < n;
       begin += std::uint64_t{gridDim.x} * kPiece) {
    std::uint32_t from_lo[kAtOnce];
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u) {
      const std::uint64_t i = begin + u * kNarrowThreads + threadIdx.x;
      from_lo[u] = i < n ? magnitude(values[i]) - bracket.lo : kBelow;
    }
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u)
      add_to_bin(shared.bins, bracket, shift, from_lo[u]);
  }
  __syncthreads();
  std::uint32_t* bins = state.bins[1 + pass];
  for (unsigned i = threadIdx.x; i < kBins; i += kNarrowThreads)
    if (shared.bins[i] > 0) atomicAdd(&bins[i], shared.bins[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.is_last = atomicAdd(&state.n_done[pass], 1) == gridDim.x - 1;
  __syncthreads();
  if (!shared.is_last) return;
  find_bin(
      bracket, [&](unsigned bin) { return __ldcg(&bins[bin]); }, shared.of_warps, state.bracket);
}

}  // namespace fedcomm::cuda::topk
