// The kernels of selection from a whole tensor. In order:
// sample and bracket: where the k-th largest probably is (left out where everything is a
// candidate); scan: the one pass over memory, which writes acc and lists what reaches the bracket;
// narrow, 4 times: the exact k-th largest, among the candidates, or all where the guess was wrong;
// count and emit: how many entries each tile has, and writing them at their places.
// Every kernel reads from the state whether the guess was right; nobody else needs to know.
#pragma once

#include "topk/cuda_bins.cuh"
#include "topk/cuda_tile.cuh"

namespace fedcomm::cuda::topk {

// One row: on an H100, four rows of 256 threads took 4 % longer for the same tile.
inline constexpr unsigned kScanThreads = 1024, kScanRows = 1;
using ScanTile = Tile<kScanThreads, kScanRows>;
inline constexpr unsigned kTile = ScanTile::kSize;
inline constexpr unsigned kTileThreads = 256;  // of blocks that work on tiles' lists, a warp a tile
inline constexpr unsigned kTileWarps = kTileThreads / kWarp;
inline constexpr unsigned kSampleThreads = 1024;
inline constexpr unsigned kSample = kSampleThreads * kPerThread;
inline constexpr unsigned kMaxRanked = kSampleThreads;  // of the sample, each compared with each
inline constexpr unsigned kNarrowThreads = kBinThreads, kNarrowBlocks = 256;
inline constexpr unsigned kPasses = 4;
inline constexpr unsigned kMaxGroups = 1024;  // of neighbouring tiles, one for each block

/// What the kernels of one call tell each other. Zero at the start.
struct State {
  std::uint32_t n_candidates;
  std::uint32_t n_above[kPasses], n_done[kPasses];
  std::uint32_t bins[kPasses][kBins];
  Bracket brackets[kPasses + 1];  // brackets[i] is what pass i narrows
};

/// Where the candidates of a tile are listed.
struct TileList {
  std::uint32_t first, count;
};

struct SelectArgs {
  Input input;
  std::uint32_t n, k;
  std::uint32_t low_rank, high_rank;  // in the sample; high_rank may be 0: no upper end
  std::uint32_t capacity;             // of the lists; 0: there are none, everything is a candidate
  std::uint32_t n_tiles, tiles_per_group;
  State* state;
  float* sample;
  std::uint32_t* candidate_indices;
  float* candidate_values;
  TileList* lists;
  std::uint32_t* tile_counts;        // above in the lower 16 bits, ties in the others
  unsigned long long* group_counts;  // 32 bits each
  std::uint32_t* indices;
  float* values;
  std::int32_t* non_finite;

  /// After the scan: whether the k largest are among the candidates, and those are listed.
  __device__ bool listed() const {
    const std::uint32_t found = state->n_candidates;
    return capacity > 0 && found >= k && found <= capacity;
  }
};

/// One element of each kSample-th part of the tensor, somewhere in it, so that no period of the
/// data is met in step. How many of them reach a threshold then spreads no more than if they were
/// drawn at random, however alike neighbours are.
template <bool kFeedback>
__global__ void sample_kernel(const __grid_constant__ SelectArgs args) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
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
/// few reach the first one; then each of those is compared with each.
__global__ void __launch_bounds__(kSampleThreads)
    bracket_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ std::uint32_t ranked[kMaxRanked];
  __shared__ std::uint32_t n_ranked;
  __shared__ uint2 found;
  std::uint32_t keys[kPerThread];
#pragma unroll
  for (unsigned i = 0; i < kPerThread; ++i)
    keys[i] = magnitude(args.sample[i * kSampleThreads + threadIdx.x]);
  if (threadIdx.x == 0) {
    n_ranked = 0;
    found = make_uint2(0, 0);
  }
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
    if (threadIdx.x < n_ranked) {
      const std::uint32_t own = ranked[threadIdx.x];
      std::uint32_t rank = 1;
      for (unsigned i = 0; i < n_ranked; ++i)
        rank += ranked[i] > own || (ranked[i] == own && i < threadIdx.x) ? 1 : 0;
      if (rank == args.low_rank) found.x = own;
      if (rank == args.high_rank) found.y = own;
    }
    __syncthreads();
  } else {
    const uint2 ends = ranked_by_bits(keys, args);
    if (threadIdx.x == 0) found = ends;
  }
  if (threadIdx.x != 0) return;
  const std::uint32_t low = found.x;
  const std::uint32_t end = args.high_rank == 0 ? kNoLimit : max(found.y, low + 1);
  args.state->brackets[0] = {low, end - low, args.k};
}

/// Writes acc; lists the candidates of each tile, as far as there is room, and counts all.
template <bool kFeedback>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ ListCounts counts;
  const std::uint32_t begin = blockIdx.x * kTile;
  ScanTile tile{};
  tile.load<kFeedback>(args.input, begin, min(kTile, args.n - begin));
  const auto lowest = static_cast<std::int32_t>(args.state->brackets[0].lo);
  const auto first = [&](std::uint32_t total) {
    std::uint32_t place = 0;
    if (threadIdx.x == 0) {
      place = total == 0 ? 0 : atomicAdd(&args.state->n_candidates, total);
      args.lists[blockIdx.x] = {place, total};
    }
    return __shfl_sync(kAllLanes, place, 0);
  };
  list(tile, lowest, counts, first, [&](std::uint32_t place, unsigned row, unsigned j) {
    if (place >= args.capacity) return;
    args.candidate_indices[place] = begin + tile.at(row, j);
    args.candidate_values[place] = tile.value[row][j];
  });
}

/// Writes acc where there is feedback, and looks for what is not finite where nothing is selected.
template <bool kFeedback>
__global__ void __launch_bounds__(kScanThreads)
    sum_kernel(const __grid_constant__ SelectArgs args) {
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

/// One block chooses the bin that holds the wanted rank, or all above the bracket.
__device__ __forceinline__ void choose(State& state, unsigned pass, Bracket bracket) {
  __shared__ std::uint32_t of_warps[kBinThreads / kWarp];
  const std::uint32_t n_above = __ldcg(&state.n_above[pass]);
  if (bracket.rank <= n_above) {
    const std::uint32_t lo = bracket.lo + bracket.width;
    if (threadIdx.x == 0) state.brackets[pass + 1] = {lo, kNoLimit - lo, bracket.rank};
    return;
  }
  bracket.rank -= n_above;
  const auto count_of = [&](unsigned bin) { return __ldcg(&state.bins[pass][bin]); };
  find_bin(bracket, count_of, of_warps, state.brackets[pass + 1]);
}

/// Counts the magnitudes of the bracket in bins; the last block to finish chooses one.
__global__ void __launch_bounds__(kNarrowThreads)
    narrow_kernel(const __grid_constant__ SelectArgs args, unsigned pass) {
  __shared__ std::uint32_t bins[kBins];
  __shared__ bool is_last;
  constexpr unsigned kAtOnce = 4, kPiece = kAtOnce * kNarrowThreads;
  State& state = *args.state;
  const bool listed = args.listed();
  const std::uint32_t n = listed ? state.n_candidates : args.n;
  const float* values = listed ? args.candidate_values : args.input.data();
  const Bracket bracket = pass > 0 || listed ? state.brackets[pass] : Bracket{0, kNoLimit, args.k};
  if (pass > 0 && bracket.width == 1) {
    if (blockIdx.x == 0 && threadIdx.x == 0) state.brackets[pass + 1] = bracket;
    return;
  }
  const unsigned shift = bin_shift(bracket);
  for (unsigned i = threadIdx.x; i < kBins; i += kNarrowThreads)
    bins[i] = 0;
  __syncthreads();

  std::uint32_t n_above = 0;
  for (std::uint64_t begin = std::uint64_t{blockIdx.x} * kPiece; begin < n;
       begin += std::uint64_t{gridDim.x} * kPiece) {
    std::uint32_t from_lo[kAtOnce];
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u) {
      const std::uint64_t i = begin + u * kNarrowThreads + threadIdx.x;
      from_lo[u] = i < n ? magnitude(values[i]) - bracket.lo : kBelow;
    }
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u) {
      n_above += pass == 0 && from_lo[u] >= bracket.width && from_lo[u] < kNoLimit ? 1 : 0;
      add_to_bin(bins, bracket, shift, from_lo[u]);
    }
  }
  n_above = __reduce_add_sync(kAllLanes, n_above);
  if (n_above > 0 && threadIdx.x % kWarp == 0) atomicAdd(&state.n_above[pass], n_above);
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kBins; i += kNarrowThreads)
    if (bins[i] > 0) atomicAdd(&state.bins[pass][i], bins[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&state.n_done[pass], 1) == gridDim.x - 1;
  __syncthreads();
  if (is_last) choose(state, pass, bracket);
}

/// What there is of a tile: its candidates, or all of it; nothing of one from `end` on.
struct TileView {
  const float* values = nullptr;
  const std::uint32_t* indices = nullptr;  // null: base + place
  std::uint32_t base = 0, count = 0;

  TileView() = default;
  __device__ TileView(const SelectArgs& args, bool listed, std::uint32_t tile, std::uint32_t end) {
    if (tile >= end) return;
    base = tile * kTile;
    if (listed) {
      const TileList list = args.lists[tile];
      values = args.candidate_values + list.first;
      indices = args.candidate_indices + list.first;
      count = list.count;
    } else {
      values = args.input.data() + base;
      count = min(kTile, args.n - base);
    }
  }
  __device__ std::uint32_t index_of(unsigned i) const {
    return indices == nullptr ? base + i : indices[i];
  }
};

/// The first entries of a tile's view, asked for at once with those of other tiles: what there is
/// of a tile is little, and waiting for one after the other would take longer than all the reading.
struct TileHead {
  static constexpr unsigned kWide = 3, kSize = kWide * kWarp;

  float values[kWide];
  std::uint32_t indices[kWide];

  template <bool kIndices>
  __device__ __forceinline__ void load(const TileView& view) {
#pragma unroll
    for (unsigned j = 0; j < kWide; ++j) {
      const unsigned i = j * kWarp + threadIdx.x % kWarp;
      values[j] = i < view.count ? view.values[i] : 0.0f;
      if constexpr (kIndices) indices[j] = i < view.count ? view.index_of(i) : 0;
    }
  }
};

/// Tiles of a group, some at once for each warp: how many entries exceed the threshold or equal it.
__global__ void __launch_bounds__(kTileThreads)
    count_kernel(const __grid_constant__ SelectArgs args) {
  constexpr unsigned kAtOnce = 4;
  __shared__ unsigned long long of_group;
  if (threadIdx.x == 0) of_group = 0;
  __syncthreads();
  const bool listed = args.listed();
  const std::uint32_t threshold = args.state->brackets[kPasses].lo;
  const unsigned lane = threadIdx.x % kWarp;
  const auto count_of = [&](float value, bool exists) {
    const std::uint32_t key = magnitude(value);
    return exists ? (key > threshold ? 1u : 0u) + (key == threshold ? 0x10000u : 0u) : 0u;
  };
  const std::uint32_t begin = blockIdx.x * args.tiles_per_group;
  const std::uint32_t end = min(args.n_tiles, begin + args.tiles_per_group);
  for (std::uint32_t first = begin + threadIdx.x / kWarp; first < end;
       first += kAtOnce * kTileWarps) {
    TileView views[kAtOnce];
    TileHead heads[kAtOnce];
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u)
      views[u] = TileView(args, listed, first + u * kTileWarps, end);
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u)
      heads[u].load<false>(views[u]);
#pragma unroll
    for (unsigned u = 0; u < kAtOnce; ++u) {
      const std::uint32_t tile = first + u * kTileWarps;
      if (tile >= end) break;
      std::uint32_t count = 0;
#pragma unroll
      for (unsigned j = 0; j < TileHead::kWide; ++j)
        count += count_of(heads[u].values[j], j * kWarp + lane < views[u].count);
#pragma unroll 4
      for (unsigned i = TileHead::kSize + lane; i < views[u].count; i += kWarp)
        count += count_of(views[u].values[i], true);
      count = __reduce_add_sync(kAllLanes, count);
      if (lane == 0) {
        args.tile_counts[tile] = count;
        atomicAdd(&of_group,
                  (static_cast<unsigned long long>(count >> 16) << 32) + (count & 0xffffu));
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) args.group_counts[blockIdx.x] = of_group;
}

/// A warp writes those of its entries that are selected; `before` counts what precedes them.
/// Returns whether they are finite.
__device__ __forceinline__ bool emit_entries(const SelectArgs& args, float value,
                                             std::uint32_t index, bool exists,
                                             const Bracket& threshold, Ranks& before) {
  const std::uint32_t key = magnitude(value);
  const bool above = exists && key > threshold.lo;
  const bool tie = exists && key == threshold.lo;
  const unsigned all_above = __ballot_sync(kAllLanes, above);
  const unsigned all_ties = __ballot_sync(kAllLanes, tie);
  const Ranks here{before.above + static_cast<unsigned>(__popc(all_above & lanes_below())),
                   before.ties + static_cast<unsigned>(__popc(all_ties & lanes_below()))};
  before.above += static_cast<unsigned>(__popc(all_above));
  before.ties += static_cast<unsigned>(__popc(all_ties));
  if (!above && !(tie && here.ties < threshold.rank)) return true;
  const std::uint32_t place = output_place(here, threshold.rank);
  args.indices[place] = index;
  args.values[place] = value;
  return key < kInfinityBits;
}

/// One warp writes the selected entries of a tile; `before` counts what the tiles before it have.
__device__ __forceinline__ void emit_tile(const SelectArgs& args, const TileView& view,
                                          const TileHead& head, const Bracket& threshold,
                                          Ranks before) {
  const unsigned lane = threadIdx.x % kWarp;
  bool finite = true;
#pragma unroll
  for (unsigned j = 0; j < TileHead::kWide; ++j) {
    if (j * kWarp >= view.count) break;
    finite &= emit_entries(args, head.values[j], head.indices[j], j * kWarp + lane < view.count,
                           threshold, before);
  }
#pragma unroll 4
  for (unsigned first = TileHead::kSize; first < view.count; first += kWarp) {
    const unsigned i = first + lane;
    const bool exists = i < view.count;
    finite &= emit_entries(args, exists ? view.values[i] : 0.0f, exists ? view.index_of(i) : 0,
                           exists, threshold, before);
  }
  if (!finite) *args.non_finite = 1;
}

__global__ void __launch_bounds__(kTileThreads)
    emit_kernel(const __grid_constant__ SelectArgs args) {
  using Both = unsigned long long;  // ties in the upper half
  constexpr unsigned kAtOnce = 2;
  __shared__ Both before_tile[kTileThreads], of_warps[kTileWarps];
  __shared__ std::uint32_t in_tile[kTileThreads];
  const bool listed = args.listed();
  const Bracket threshold = args.state->brackets[kPasses];  // its rank: how many ties are selected
  Both running = 0;
  for (unsigned group = threadIdx.x; group < blockIdx.x; group += kTileThreads)
    running += args.group_counts[group];
  running = block_prefix<kTileThreads>(running, of_warps).total;

  const std::uint32_t begin = blockIdx.x * args.tiles_per_group;
  const std::uint32_t end = min(args.n_tiles, begin + args.tiles_per_group);
  for (std::uint32_t first = begin; first < end; first += kTileThreads) {
    __syncthreads();
    const std::uint32_t own = first + threadIdx.x;
    const std::uint32_t count = own < end ? args.tile_counts[own] : 0;
    const auto prefix =
        block_prefix<kTileThreads>((Both{count >> 16} << 32) + (count & 0xffffu), of_warps);
    before_tile[threadIdx.x] = running + prefix.before;
    in_tile[threadIdx.x] = count;
    running += prefix.total;
    __syncthreads();
    const auto before = [&](unsigned i) {
      return Ranks{static_cast<std::uint32_t>(before_tile[i]),
                   static_cast<std::uint32_t>(before_tile[i] >> 32)};
    };
    const auto has_any = [&](unsigned i) {
      return (in_tile[i] & 0xffffu) != 0 ||
             (in_tile[i] >> 16 != 0 && before(i).ties < threshold.rank);
    };
    const unsigned n = min(kTileThreads, end - first);
    for (unsigned i = threadIdx.x / kWarp; i < n; i += kAtOnce * kTileWarps) {
      TileView views[kAtOnce];
      TileHead heads[kAtOnce];
#pragma unroll
      for (unsigned u = 0; u < kAtOnce; ++u) {
        const unsigned tile = i + u * kTileWarps;
        if (tile < n && has_any(tile)) views[u] = TileView(args, listed, first + tile, end);
      }
#pragma unroll
      for (unsigned u = 0; u < kAtOnce; ++u)
        heads[u].load<true>(views[u]);
#pragma unroll
      for (unsigned u = 0; u < kAtOnce; ++u)
        if (views[u].count > 0)
          emit_tile(args, views[u], heads[u], threshold, before(i + u * kTileWarps));
    }
  }
}

}  // namespace fedcomm::cuda::topk
