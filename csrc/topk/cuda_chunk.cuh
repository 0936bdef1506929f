// The kernels of selection chunk by chunk: one thread block a chunk, which stays in registers where
// it fits.
#pragma once

#include "topk/cuda_bins.cuh"
#include "topk/cuda_tile.cuh"

namespace fedcomm::cuda::topk {

struct ChunkArgs {
  Input input;
  std::size_t n;
  std::uint32_t chunk, k;
  std::uint32_t* indices;
  float* values;
  std::int32_t* non_finite;
};

/// The chunk of a block, and where its entries go.
struct Chunk {
  std::size_t begin;
  std::uint32_t n, k;
  std::uint32_t* indices;
  float* values;
  std::int32_t* non_finite;

  __device__ explicit Chunk(const ChunkArgs& args) : begin(std::size_t{blockIdx.x} * args.chunk) {
    n = static_cast<std::uint32_t>(min(std::size_t{args.chunk}, args.n - begin));
    k = min(args.k, n);
    indices = args.indices + std::size_t{blockIdx.x} * args.k;
    values = args.values + std::size_t{blockIdx.x} * args.k;
    non_finite = args.non_finite;
  }

  __device__ __forceinline__ void put(std::uint32_t place, std::uint32_t at, float value) const {
    indices[place] = static_cast<std::uint32_t>(begin) + at;
    values[place] = value;
    if (magnitude(value) >= kInfinityBits) *non_finite = 1;
  }
};

/// Writes what a tile has of the entries: those above the threshold, and the first of its ties up
/// to its rank. `before` counts what earlier tiles have. Ends with a barrier.
template <unsigned kThreads, unsigned kHeight>
__device__ __forceinline__ void emit(const Tile<kThreads, kHeight>& tile, std::uint32_t first,
                                     const Bracket& threshold, const Chunk& chunk, Ranks& before,
                                     std::uint32_t (&of_warps)[kThreads / kWarp]) {
  static_assert(Tile<kThreads>::kRow < 0x10000);
  const auto wanted = static_cast<std::int32_t>(threshold.lo);
#pragma unroll
  for (unsigned r = 0; r < kHeight; ++r) {
    std::uint32_t count = 0;
#pragma unroll
    for (unsigned j = 0; j < kWide; ++j)
      count += (tile.key[r][j] > wanted ? 1u : 0u) + (tile.key[r][j] == wanted ? 0x10000u : 0u);
    const auto prefix = block_prefix<kThreads>(count, of_warps);
    Ranks here{before.above + (prefix.before & 0xffffu), before.ties + (prefix.before >> 16)};
#pragma unroll
    for (unsigned j = 0; j < kWide; ++j) {
      const bool above = tile.key[r][j] > wanted, tie = tile.key[r][j] == wanted;
      if (above || (tie && here.ties < threshold.rank))
        chunk.put(output_place(here, threshold.rank), first + tile.at(r, j), tile.value[r][j]);
      here.above += above ? 1 : 0;
      here.ties += tie ? 1 : 0;
    }
    before.above += prefix.total & 0xffffu;
    before.ties += prefix.total >> 16;
    __syncthreads();
  }
}

/// The k-th largest of a tile, bit by bit.
template <unsigned kThreads, unsigned kHeight>
__device__ __forceinline__ Bracket find_threshold(const Tile<kThreads, kHeight>& tile,
                                                  std::uint32_t k, SumCounts<kThreads>& sums) {
  const auto count = [&](std::int32_t lowest, unsigned turn) {
    std::uint32_t reach = 0;
#pragma unroll
    for (unsigned r = 0; r < kHeight; ++r)
#pragma unroll
      for (unsigned j = 0; j < kWide; ++j)
        reach += tile.key[r][j] >= lowest ? 1 : 0;
    return block_sum<kThreads>(reach, turn, sums);
  };
  std::int32_t threshold = 0;
  for (unsigned bit = 31; bit-- > 0;) {
    const std::int32_t trial = threshold | static_cast<std::int32_t>(1u << bit);
    if (count(trial, bit) >= k) threshold = trial;
  }
  const std::uint32_t n_above = threshold == 0x7fffffff ? 0 : count(threshold + 1, 1);
  return {static_cast<std::uint32_t>(threshold), 1, k - n_above, k - n_above};
}

/// Chunks of up to a tile. At least k of the threads' largest elements reach the k-th largest of
/// those, so all selected entries do; what reaches it is listed, and if those are few (they are,
/// but in data with many ties, or for large k), each is compared with each.
template <unsigned kThreads, unsigned kHeight, bool kFeedback>
__global__ void __launch_bounds__(kThreads)
    small_chunk_kernel(const __grid_constant__ ChunkArgs args) {
  __shared__ ListCounts counts;
  __shared__ SumCounts<kThreads> sums;
  __shared__ std::uint32_t of_warps[kThreads / kWarp];
  __shared__ std::int32_t keys[kThreads];
  __shared__ float values[kThreads];
  __shared__ std::uint16_t places[kThreads];
  constexpr unsigned kLowestBit = 15;  // no need to know the bound better
  const Chunk chunk(args);
  Tile<kThreads, kHeight> tile;
  tile.template load<kFeedback>(args.input, chunk.begin, chunk.n);

  std::int32_t bound = 0;
  if (chunk.k <= kThreads) {
    std::int32_t largest = -1;
#pragma unroll
    for (unsigned r = 0; r < kHeight; ++r)
#pragma unroll
      for (unsigned j = 0; j < kWide; ++j)
        largest = max(largest, tile.key[r][j]);
    for (unsigned bit = 31; bit-- > kLowestBit;) {
      const std::int32_t trial = bound | static_cast<std::int32_t>(1u << bit);
      if (static_cast<unsigned>(__syncthreads_count(largest >= trial)) >= chunk.k) bound = trial;
    }
  }
  const auto keep = [&](std::uint32_t place, unsigned r, unsigned j) {
    if (place >= kThreads) return;
    keys[place] = tile.key[r][j];
    values[place] = tile.value[r][j];
    places[place] = static_cast<std::uint16_t>(tile.at(r, j));
  };
  const unsigned n = list(tile, bound, counts, [](std::uint32_t) { return 0u; }, keep);
  if (n > kThreads) {
    Ranks before{0, 0};
    emit(tile, 0, find_threshold(tile, chunk.k, sums), chunk, before, of_warps);
    return;
  }
  __syncthreads();
  bool selected = false;
  if (threadIdx.x < n) {
    const std::int32_t own = keys[threadIdx.x];
    unsigned n_before = 0;
    for (unsigned i = 0; i < n; ++i)
      n_before += keys[i] > own - (i < threadIdx.x ? 1 : 0) ? 1 : 0;
    selected = n_before < chunk.k;
  }
  const std::uint32_t place = block_prefix<kThreads>(selected ? 1u : 0u, of_warps).before;
  if (selected) chunk.put(place, places[threadIdx.x], values[threadIdx.x]);
}

/// Larger chunks: acc is written and counted in bins in a first pass, and read again (from the L2
/// cache) in three more.
template <bool kFeedback>
__global__ void __launch_bounds__(kBinThreads)
    large_chunk_kernel(const __grid_constant__ ChunkArgs args) {
  using Part = Tile<kBinThreads>;
  __shared__ std::uint32_t bins[kBins];
  __shared__ std::uint32_t of_warps[kBinThreads / kWarp];
  __shared__ Bracket next;
  const Chunk chunk(args);
  const Input again{args.input.data(), nullptr, nullptr, 0.0f};
  const auto size_from = [&](std::uint32_t first) { return min(Part::kSize, chunk.n - first); };

  Bracket bracket{0, kNoLimit, chunk.k, chunk.n};
  for (bool is_first = true; bracket.width > 1; is_first = false) {
    const unsigned shift = bin_shift(bracket.width);
    for (unsigned i = threadIdx.x; i < kBins; i += kBinThreads)
      bins[i] = 0;
    __syncthreads();
    for (std::uint32_t first = 0; first < chunk.n; first += Part::kSize) {
      Part part;
      if (is_first) {
        part.template load<kFeedback>(args.input, chunk.begin + first, size_from(first));
      } else {
        part.template load<false>(again, chunk.begin + first, size_from(first));
      }
#pragma unroll
      for (unsigned r = 0; r < kRows; ++r)
#pragma unroll
        for (unsigned j = 0; j < kWide; ++j) {
          const bool exists = part.key[r][j] >= 0;
          add_to_bin(bins, bracket, shift,
                     exists ? static_cast<std::uint32_t>(part.key[r][j]) - bracket.lo : kBelow);
        }
    }
    __syncthreads();
    find_bin(bracket, [&](unsigned bin) { return bins[bin]; }, of_warps, next);
    __syncthreads();
    bracket = next;
  }
  Ranks before{0, 0};
  for (std::uint32_t first = 0; first < chunk.n; first += Part::kSize) {
    Part part;
    part.template load<false>(again, chunk.begin + first, size_from(first));
    emit(part, first, bracket, chunk, before, of_warps);
  }
}

}  // namespace fedcomm::cuda::topk
