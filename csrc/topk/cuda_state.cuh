// What the kernels that select from a whole tensor are given, and tell each other. In order:
// sample and bracket (cuda_sample.cuh): where the k-th largest probably is; left out where
//   everything is a candidate.
// scan (cuda_scan.cuh): the one pass over memory. It writes acc, lists what reaches the bracket and
//   counts in bins what lies in it.
// narrow, kPasses times: the exact k-th largest, among the candidates, or all where the guess was
//   wrong.
// count and emit (cuda_emit.cuh): how many entries precede each group of tiles, and writing them.
// Every kernel reads from the state whether the guess was right; nobody else needs to know.
#pragma once

#include "topk/cuda_bins.cuh"
#include "topk/cuda_tile.cuh"

namespace fedcomm::cuda::topk {

// One row: on an H100, four rows of 256 threads took 4 % longer for the same tile.
inline constexpr unsigned kScanThreads = 1024, kScanRows = 1;
using ScanTile = Tile<kScanThreads, kScanRows>;
inline constexpr unsigned kTile = ScanTile::kSize;
/// The scan counts nothing of a tile with more candidates: where many are alike, as in constant
/// data, counting would take longer than everything else.
inline constexpr unsigned kMaxCounted = kTile / 4;
inline constexpr unsigned kSampleThreads = 1024;
inline constexpr unsigned kSample = kSampleThreads * kPerThread;
inline constexpr unsigned kMaxRanked = 24 * kWarp;  // of the sample, held by a warp
/// From any bracket to one magnitude: 31 bits, or what the scan's bins have left, 11 at a time.
inline constexpr unsigned kPasses = 3;
/// Groups of neighbouring tiles, a block each: as many as an H100 has room for at once.
inline constexpr unsigned kMaxGroups = 528;

/// All zero at the start.
struct State {
  std::uint32_t n_candidates;
  std::uint32_t is_uncounted;  // whether there are candidates that the scan counted in no bin
  std::uint32_t n_done[kPasses];
  std::uint32_t bins[1 + kPasses][kBins];  // of the scan, and of each pass
  Bracket guess;
  Bracket bracket;  // what the passes narrow, and then the threshold
};

inline constexpr unsigned kClearThreads = 256, kClearBlocks = kSample / kClearThreads;

/// Where the candidates of a tile are listed.
struct TileList {
  std::uint32_t first, count;
};

struct SelectArgs {
  Input input;
  std::uint32_t n, k;
  std::uint32_t low_rank, high_rank;  // in the sample
  std::uint32_t capacity;             // of the lists; 0: there are none, everything is a candidate
  std::uint32_t n_tiles, tiles_per_group;
  State* state;
  float* sample;
  std::uint32_t* candidate_indices;
  float* candidate_values;
  TileList* lists;
  unsigned long long* group_counts;  // above the threshold; those that equal it in the upper half
  std::uint32_t* indices;
  float* values;
  std::int32_t* non_finite;

  /// After the scan: whether the k largest are among the candidates, and those are listed.
  __device__ bool listed() const {
    const std::uint32_t found = state->n_candidates;
    return capacity > 0 && found >= k && found <= capacity;
  }
};

__device__ __forceinline__ void clear_state(const SelectArgs& args) {
  constexpr unsigned kWords = sizeof(State) / sizeof(std::uint32_t);
  static_assert(kWords <= kClearBlocks * kClearThreads);
  const unsigned i = blockIdx.x * kClearThreads + threadIdx.x;
  if (i < kWords) reinterpret_cast<std::uint32_t*>(args.state)[i] = 0;
}

/// Where no sample is taken, which would do it.
__global__ void __launch_bounds__(kClearThreads)
    clear_kernel(const __grid_constant__ SelectArgs args) {
  clear_state(args);
}

}  // namespace fedcomm::cuda::topk
