// Writing the selected entries of a whole tensor at their places, in two kernels. A block has a
// group of neighbouring tiles: it counts what is selected there, and then, knowing what the groups
// before it have, writes it. Both go through the candidates of many tiles as if they lay in one
// row, since those of one tile are few, and waiting for each tile's would take longer than all the
// reading.
#pragma once

#include "topk/cuda_state.cuh"

namespace fedcomm::cuda::topk {

inline constexpr unsigned kGroupThreads = 256, kGroupWarps = kGroupThreads / kWarp;
/// Candidates at once: a warp has kGroupRows rows of 32, one after the other.
inline constexpr unsigned kGroupRows = 8, kRun = kGroupRows * kWarp, kPiece = kGroupWarps * kRun;

/// Neighbouring tiles, and their candidates in the order of the tensor: all their elements where
/// none are listed.
class Round {
 public:
  static constexpr unsigned kTiles = 128;

  /// Of each tile: where the next one's candidates begin in the row, and what to add to a place in
  /// the row for that in the list.
  struct Shared {
    std::uint32_t end[kTiles], shift[kTiles];
    std::uint32_t of_warps[kGroupWarps];
  };

  /// Tiles from `first` to before `last`. All threads call it, with a barrier since they used
  /// `shared`.
  __device__ __forceinline__ Round(const SelectArgs& args, bool listed, std::uint32_t first,
                                   std::uint32_t last, Shared& shared)
      : indices_(listed ? args.candidate_indices : nullptr),
        values_(listed ? args.candidate_values : args.input.data()),
        base_(first * kTile),
        shared_(shared) {
    if (!listed) {
      size_ = static_cast<std::uint32_t>(min(std::uint64_t{last} * kTile, std::uint64_t{args.n})) -
              base_;
      return;
    }
    const unsigned own = threadIdx.x;
    TileList list{0, 0};
    if (own < last - first) list = args.lists[first + own];
    const auto prefix = block_prefix<kGroupThreads>(list.count, shared.of_warps);
    if (own < kTiles) {
      shared.end[own] = prefix.before + list.count;
      shared.shift[own] = list.first - prefix.before;
    }
    size_ = prefix.total;
    __syncthreads();
  }

  __device__ std::uint32_t size() const { return size_; }
  /// The tile of candidate i, or the last one.
  __device__ __forceinline__ unsigned tile_of(std::uint32_t i) const {
    unsigned tile = 0;
    if (indices_ == nullptr) return tile;
#pragma unroll
    for (unsigned step = kTiles / 2; step > 0; step /= 2)
      if (shared_.end[tile + step - 1] <= i) tile += step;
    return tile;
  }
  /// Of candidate i < size(), whose tile is `tile` or a later one, which it becomes.
  __device__ __forceinline__ std::uint32_t place(std::uint32_t i, unsigned& tile) const {
    if (indices_ == nullptr) return base_ + i;
    while (shared_.end[tile] <= i)
      ++tile;
    return shared_.shift[tile] + i;
  }
  __device__ float value(std::uint32_t place) const { return values_[place]; }
  __device__ std::uint32_t index(std::uint32_t place) const {
    return indices_ == nullptr ? place : indices_[place];
  }

 private:
  const std::uint32_t* indices_;
  const float* values_;
  std::uint32_t base_, size_;
  const Shared& shared_;
};

/// A thread's first candidate of a piece; the others follow in steps of a warp.
__device__ __forceinline__ std::uint32_t first_of_thread(std::uint32_t begin) {
  return begin + threadIdx.x / kWarp * kRun + threadIdx.x % kWarp;
}

/// Calls use(round) for the tiles of the block's group.
template <typename Use>
__device__ __forceinline__ void for_each_round(const SelectArgs& args, bool listed,
                                               Round::Shared& shared, Use use) {
  const std::uint32_t begin = blockIdx.x * args.tiles_per_group;
  const std::uint32_t end = min(args.n_tiles, begin + args.tiles_per_group);
  for (std::uint32_t first = begin; first < end; first += Round::kTiles) {
    use(Round(args, listed, first, min(end, first + Round::kTiles), shared));
    __syncthreads();
  }
}

/// How many candidates of a group exceed the threshold or equal it.
__global__ void __launch_bounds__(kGroupThreads, 4)
    count_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ Round::Shared shared;
  __shared__ unsigned long long of_warps[kGroupWarps];
  wait_for_previous();
  let_next_start();
  const std::uint32_t threshold = args.state->bracket.lo;
  std::uint32_t n_above = 0, n_ties = 0;
  for_each_round(args, args.listed(), shared, [&](const Round& round) {
    for (std::uint32_t begin = 0; begin < round.size(); begin += kPiece) {
      const std::uint32_t first = first_of_thread(begin);
      unsigned tile = round.tile_of(first);
      std::int32_t keys[kGroupRows];
#pragma unroll
      for (unsigned r = 0; r < kGroupRows; ++r) {
        const std::uint32_t i = first + r * kWarp;
        keys[r] = -1;
        if (i < round.size())
          keys[r] = static_cast<std::int32_t>(magnitude(round.value(round.place(i, tile))));
      }
#pragma unroll
      for (unsigned r = 0; r < kGroupRows; ++r) {
        n_above += keys[r] > static_cast<std::int32_t>(threshold) ? 1 : 0;
        n_ties += keys[r] == static_cast<std::int32_t>(threshold) ? 1 : 0;
      }
    }
  });
  const unsigned long long count = static_cast<unsigned long long>(n_ties) << 32 | n_above;
  const unsigned long long total = block_prefix<kGroupThreads>(count, of_warps).total;
  if (threadIdx.x == 0) args.group_counts[blockIdx.x] = total;
}

/// Shared memory of a piece: what is in each row of a warp, and then before it; ties in the
/// upper half.
struct PieceCounts {
  std::uint32_t of_rows[kGroupRows * kGroupWarps];
  std::uint32_t of_warps[kGroupWarps];
};

/// Writes the selected entries among kPiece candidates; `before` counts what precedes them.
__device__ __forceinline__ void emit_piece(const SelectArgs& args, const Round& round,
                                           std::uint32_t begin, const Bracket& threshold,
                                           Ranks& before, PieceCounts& shared) {
  constexpr unsigned kCounts = kGroupRows * kGroupWarps;
  static_assert(kCounts <= kGroupThreads && kPiece < 0x10000);
  const unsigned first_row = threadIdx.x / kWarp * kGroupRows;
  const std::uint32_t first = first_of_thread(begin);
  unsigned tile = round.tile_of(first);
  float values[kGroupRows];
  std::uint32_t indices[kGroupRows], before_here[kGroupRows];
#pragma unroll
  for (unsigned r = 0; r < kGroupRows; ++r) {
    const std::uint32_t i = first + r * kWarp;
    if (i >= round.size()) continue;
    const std::uint32_t place = round.place(i, tile);
    values[r] = round.value(place);
    indices[r] = round.index(place);
  }
  unsigned above = 0, ties = 0;  // a bit for each row
#pragma unroll
  for (unsigned r = 0; r < kGroupRows; ++r) {
    const bool exists = first + r * kWarp < round.size();
    const std::uint32_t key = exists ? magnitude(values[r]) : 0;
    const bool is_above = exists && key > threshold.lo, is_tie = exists && key == threshold.lo;
    const unsigned all_above = __ballot_sync(kAllLanes, is_above);
    const unsigned all_ties = __ballot_sync(kAllLanes, is_tie);
    above |= is_above ? 1u << r : 0u;
    ties |= is_tie ? 1u << r : 0u;
    before_here[r] = static_cast<unsigned>(__popc(all_above & lanes_below())) |
                     static_cast<unsigned>(__popc(all_ties & lanes_below())) << 16;
    if (threadIdx.x % kWarp == kWarp - 1)
      shared.of_rows[first_row + r] = before_here[r] + (is_above ? 1 : 0) + (is_tie ? 0x10000 : 0);
  }
  __syncthreads();
  const std::uint32_t count = threadIdx.x < kCounts ? shared.of_rows[threadIdx.x] : 0;
  const auto prefix = block_prefix<kGroupThreads>(count, shared.of_warps);
  if (threadIdx.x < kCounts) shared.of_rows[threadIdx.x] = prefix.before;
  __syncthreads();
#pragma unroll
  for (unsigned r = 0; r < kGroupRows; ++r) {
    const std::uint32_t both = shared.of_rows[first_row + r] + before_here[r];
    const Ranks here{before.above + (both & 0xffffu), before.ties + (both >> 16)};
    const bool is_selected =
        (above >> r & 1u) != 0 || ((ties >> r & 1u) != 0 && here.ties < threshold.rank);
    if (!is_selected) continue;
    const std::uint32_t place = output_place(here, threshold.rank);
    args.indices[place] = indices[r];
    args.values[place] = values[r];
    if (magnitude(values[r]) >= kInfinityBits) *args.non_finite = 1;
  }
  before.above += prefix.total & 0xffffu;
  before.ties += prefix.total >> 16;
  __syncthreads();
}

__global__ void __launch_bounds__(kGroupThreads, 4)
    emit_kernel(const __grid_constant__ SelectArgs args) {
  using Both = unsigned long long;  // ties in the upper half
  __shared__ Round::Shared shared;
  __shared__ PieceCounts counts;
  __shared__ Both of_warps[kGroupWarps];
  wait_for_previous();
  let_next_start();
  const Bracket threshold = args.state->bracket;  // its rank: how many ties are selected
  const Both own = args.group_counts[blockIdx.x];
  Both sum = 0;
  for (unsigned group = threadIdx.x; group < blockIdx.x; group += kGroupThreads)
    sum += args.group_counts[group];
  sum = block_prefix<kGroupThreads>(sum, of_warps).total;
  Ranks before{static_cast<std::uint32_t>(sum), static_cast<std::uint32_t>(sum >> 32)};
  const bool has_above = static_cast<std::uint32_t>(own) != 0, has_ties = own >> 32 != 0;
  if (!has_above && !(has_ties && before.ties < threshold.rank)) return;
  for_each_round(args, args.listed(), shared, [&](const Round& round) {
    for (std::uint32_t begin = 0; begin < round.size(); begin += kPiece)
      emit_piece(args, round, begin, threshold, before, counts);
  });
}

}  // namespace fedcomm::cuda::topk
