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

inline constexpr unsigned kScanThreads = 256;
inline constexpr unsigned kTile = Tile<kScanThreads>::kSize;
inline constexpr unsigned kSampleThreads = 1024;
inline constexpr unsigned kSample = kSampleThreads * kPerThread;
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

/// One block: the low_rank-th and the high_rank-th largest of the sample, bit by bit.
__global__ void __launch_bounds__(kSampleThreads)
    bracket_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ SumCounts<kSampleThreads> counts;
  std::uint32_t keys[kPerThread];
#pragma unroll
  for (unsigned i = 0; i < kPerThread; ++i)
    keys[i] = magnitude(args.sample[i * kSampleThreads + threadIdx.x]);
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
  if (threadIdx.x != 0) return;
  const std::uint32_t end = args.high_rank == 0 ? kNoLimit : max(high, low + 1);
  args.state->brackets[0] = {low, end - low, args.k};
}

/// Writes acc; lists the candidates of each tile, as far as there is room, and counts all.
template <bool kFeedback>
__global__ void __launch_bounds__(kScanThreads, 5)
    scan_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ ListCounts counts;
  const std::uint32_t begin = blockIdx.x * kTile;
  Tile<kScanThreads> tile{};
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
  Tile<kScanThreads> tile;
  tile.load<kFeedback>(args.input, begin, min(kTile, args.n - begin));
  if (args.k > 0) return;
  bool finite = true;
#pragma unroll
  for (unsigned r = 0; r < kRows; ++r)
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

/// What there is of a tile: its candidates, or all of it.
struct TileView {
  const float* values;
  const std::uint32_t* indices;  // null: base + place
  std::uint32_t base, count;

  __device__ TileView(const SelectArgs& args, bool listed, std::uint32_t tile) {
    base = tile * kTile;
    if (listed) {
      const TileList list = args.lists[tile];
      values = args.candidate_values + list.first;
      indices = args.candidate_indices + list.first;
      count = list.count;
    } else {
      values = args.input.data() + base;
      indices = nullptr;
      count = min(kTile, args.n - base);
    }
  }
};

/// Tiles of a group, one warp each in turn: how many entries exceed the threshold or equal it.
__global__ void __launch_bounds__(kScanThreads)
    count_kernel(const __grid_constant__ SelectArgs args) {
  __shared__ unsigned long long of_group;
  if (threadIdx.x == 0) of_group = 0;
  __syncthreads();
  const bool listed = args.listed();
  const std::uint32_t threshold = args.state->brackets[kPasses].lo;
  const unsigned lane = threadIdx.x % kWarp;
  const std::uint32_t begin = blockIdx.x * args.tiles_per_group;
  const std::uint32_t end = min(args.n_tiles, begin + args.tiles_per_group);
  for (std::uint32_t tile = begin + threadIdx.x / kWarp; tile < end; tile += kScanThreads / kWarp) {
    const TileView view(args, listed, tile);
    std::uint32_t count = 0;
#pragma unroll 4
    for (unsigned i = lane; i < view.count; i += kWarp) {
      const std::uint32_t key = magnitude(view.values[i]);
      count += (key > threshold ? 1u : 0u) + (key == threshold ? 0x10000u : 0u);
    }
    count = __reduce_add_sync(kAllLanes, count);
    if (lane == 0) {
      args.tile_counts[tile] = count;
      atomicAdd(&of_group,
                (static_cast<unsigned long long>(count >> 16) << 32) + (count & 0xffffu));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) args.group_counts[blockIdx.x] = of_group;
}

/// One warp writes the selected entries of a tile; `before` counts what the tiles before it have.
__device__ __forceinline__ void emit_tile(const SelectArgs& args, const TileView& view,
                                          const Bracket& threshold, Ranks before) {
  const unsigned lane = threadIdx.x % kWarp;
  bool finite = true;
#pragma unroll 4
  for (unsigned first = 0; first < view.count; first += kWarp) {
    const unsigned i = first + lane;
    const float value = i < view.count ? view.values[i] : 0.0f;
    const std::uint32_t key = magnitude(value);
    const bool above = i < view.count && key > threshold.lo;
    const bool tie = i < view.count && key == threshold.lo;
    const unsigned all_above = __ballot_sync(kAllLanes, above);
    const unsigned all_ties = __ballot_sync(kAllLanes, tie);
    const Ranks here{before.above + static_cast<unsigned>(__popc(all_above & lanes_below())),
                     before.ties + static_cast<unsigned>(__popc(all_ties & lanes_below()))};
    if (above || (tie && here.ties < threshold.rank)) {
      const std::uint32_t place = output_place(here, threshold.rank);
      args.indices[place] = view.indices == nullptr ? view.base + i : view.indices[i];
      args.values[place] = value;
      finite = finite && key < kInfinityBits;
    }
    before.above += static_cast<unsigned>(__popc(all_above));
    before.ties += static_cast<unsigned>(__popc(all_ties));
  }
  if (!finite) *args.non_finite = 1;
}

__global__ void __launch_bounds__(kScanThreads)
    emit_kernel(const __grid_constant__ SelectArgs args) {
  using Both = unsigned long long;  // ties in the upper half
  __shared__ Both before_tile[kScanThreads], of_warps[kScanThreads / kWarp];
  const bool listed = args.listed();
  const Bracket threshold = args.state->brackets[kPasses];  // its rank: how many ties are selected
  Both running = 0;
  for (unsigned group = threadIdx.x; group < blockIdx.x; group += kScanThreads)
    running += args.group_counts[group];
  running = block_prefix<kScanThreads>(running, of_warps).total;

  const std::uint32_t begin = blockIdx.x * args.tiles_per_group;
  const std::uint32_t end = min(args.n_tiles, begin + args.tiles_per_group);
  for (std::uint32_t first = begin; first < end; first += kScanThreads) {
    __syncthreads();
    const std::uint32_t own = first + threadIdx.x;
    const std::uint32_t count = own < end ? args.tile_counts[own] : 0;
    const auto prefix =
        block_prefix<kScanThreads>((Both{count >> 16} << 32) + (count & 0xffffu), of_warps);
    before_tile[threadIdx.x] = running + prefix.before;
    running += prefix.total;
    __syncthreads();
    for (unsigned i = threadIdx.x / kWarp; i < kScanThreads && first + i < end;
         i += kScanThreads / kWarp) {
      const std::uint32_t in_tile = args.tile_counts[first + i];
      const Ranks before{static_cast<std::uint32_t>(before_tile[i]),
                         static_cast<std::uint32_t>(before_tile[i] >> 32)};
      const bool has_ties = in_tile >> 16 != 0 && before.ties < threshold.rank;
      if ((in_tile & 0xffffu) == 0 && !has_ties) continue;
      emit_tile(args, TileView(args, listed, first + i), threshold, before);
    }
  }
}

}  // namespace fedcomm::cuda::topk
