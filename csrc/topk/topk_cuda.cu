// Selection on a GPU: checks arguments, divides the workspace and starts the kernels of cuda_*.cuh.
// Same entries and sums as topk_cpu.cpp and chunk_cpu.cpp. Allocates only where a workspace has to
// grow; never waits.
#include <algorithm>
#include <cmath>

#include "topk/checks.h"
#include "topk/cuda_chunk.cuh"
#include "topk/cuda_emit.cuh"
#include "topk/cuda_sample.cuh"
#include "topk/cuda_scan.cuh"
#include "topk/topk.h"

namespace fedcomm::cuda {
namespace {

using namespace topk;

/// Below this, everything is a candidate; above, a part is at least 16 elements.
constexpr std::size_t kSmall = std::size_t{16} * kSample;
/// For more than this part of the elements, a list of candidates would save no reading.
constexpr std::size_t kManyOf = 8;

/// What the host decides about a selection; it follows from the lengths.
struct Plan {
  std::uint32_t low_rank = 0, high_rank = 0;  // from 1
  std::size_t capacity = 0;                   // 0: no sample is taken
};

/// The k-th largest of all lies between the two ranks of the sample, and no more than `capacity`
/// elements reach the lower one, unless the sample is off by 4.5 standard deviations or more.
Plan plan_of(std::size_t n, std::size_t k) {
  constexpr double kSigmas = 4.5, kAtLeast = 8;
  if (n <= kSmall || k > n / kManyOf || k == 0) return {};
  const double each_stands_for = static_cast<double>(n) / kSample;
  const double rank = static_cast<double>(k) / each_stands_for;
  const auto margin = [&](double at) { return kSigmas * std::sqrt(at) + kAtLeast; };
  const double low = std::ceil(rank + margin(rank)), high = std::floor(rank - margin(rank));
  const double capacity = (low + margin(low)) * each_stands_for;
  return {.low_rank = static_cast<std::uint32_t>(low),
          .high_rank = high < 1 ? 1 : static_cast<std::uint32_t>(high),
          .capacity = std::min(n, static_cast<std::size_t>(capacity))};
}

std::size_t n_tiles_of(std::size_t n) {
  return (n + kTile - 1) / kTile;
}

/// The parts of a workspace, each at a multiple of 16 bytes.
struct Layout {
  std::size_t sample, group_counts, lists, candidate_indices, candidate_values, size;

  Layout(const Plan& plan, std::size_t n) {
    std::size_t end = 0;
    const auto take = [&](std::size_t n_bytes) {
      const std::size_t begin = end;
      end += (n_bytes + 15) / 16 * 16;
      return begin;
    };
    const bool sampled = plan.capacity > 0;
    take(sizeof(State));
    sample = take(sampled ? kSample * sizeof(float) : 0);
    group_counts = take(kMaxGroups * sizeof(unsigned long long));
    lists = take(sampled ? n_tiles_of(n) * sizeof(TileList) : 0);
    candidate_indices = take(plan.capacity * sizeof(std::uint32_t));
    candidate_values = take(plan.capacity * sizeof(float));
    size = end;
  }
};

Input device_input(const TopKInput& input) {
  if (input.before.empty()) return {input.x.data(), nullptr, nullptr, 0.0f};
  return {input.x.data(), input.before.data(), input.after.data(), input.beta};
}

template <bool kFeedback>
void start(const SelectArgs& args, cudaStream_t on) {
  const bool sampled = args.capacity > 0;
  if (sampled) {
    sample_kernel<kFeedback><<<kClearBlocks, kClearThreads, 0, on>>>(args);
    launch_next(bracket_kernel, 1, kSampleThreads, on, args);
    launch_next(scan_kernel<kFeedback>, args.n_tiles, kScanThreads, on, args);
  } else {
    clear_kernel<<<kClearBlocks, kClearThreads, 0, on>>>(args);
    if constexpr (kFeedback)
      launch_next(sum_kernel<kFeedback>, args.n_tiles, kScanThreads, on, args);
  }
  const std::size_t n_pieces = n_tiles_of(sampled ? args.capacity : args.n);
  const auto n_blocks = static_cast<unsigned>(std::min<std::size_t>(kNarrowBlocks, n_pieces));
  for (unsigned pass = 0; pass < kPasses; ++pass)
    launch_next(narrow_kernel, n_blocks, kNarrowThreads, on, args, pass);
  const unsigned n_groups = (args.n_tiles + args.tiles_per_group - 1) / args.tiles_per_group;
  launch_next(count_kernel, n_groups, kGroupThreads, on, args);
  launch_next(emit_kernel, n_groups, kGroupThreads, on, args);
}

template <unsigned kThreads, unsigned kHeight, bool kFeedback>
void start_small(const ChunkArgs& args, unsigned grid, cudaStream_t on) {
  if constexpr (kHeight > 1) {
    if (args.chunk <= Tile<kThreads, kHeight / 2>::kSize)
      return start_small<kThreads, kHeight / 2, kFeedback>(args, grid, on);
  }
  small_chunk_kernel<kThreads, kHeight, kFeedback><<<grid, kThreads, 0, on>>>(args);
}

/// Few threads wait little for each other, but their largest elements tell which others need not be
/// looked at only where not nearly all of those are selected.
template <bool kFeedback>
void start(const ChunkArgs& args, cudaStream_t on) {
  constexpr unsigned kFew = 64, kMany = 256;
  const auto grid = static_cast<unsigned>((args.n + args.chunk - 1) / args.chunk);
  if (args.chunk <= Tile<kFew, 1>::kSize ||
      (args.chunk <= Tile<kFew>::kSize && args.k <= kFew / 2)) {
    start_small<kFew, kRows, kFeedback>(args, grid, on);
  } else if (args.chunk <= Tile<kMany>::kSize) {
    start_small<kMany, kRows, kFeedback>(args, grid, on);
  } else {
    large_chunk_kernel<kFeedback><<<grid, kBinThreads, 0, on>>>(args);
  }
}

void start_sum(const TopKInput& input, std::int32_t* non_finite, cudaStream_t on) {
  SelectArgs args{};
  args.input = device_input(input);
  args.n = static_cast<std::uint32_t>(input.x.size());
  args.n_tiles = static_cast<std::uint32_t>(n_tiles_of(args.n));
  args.non_finite = non_finite;
  if (input.before.empty()) {
    sum_kernel<false><<<args.n_tiles, kScanThreads, 0, on>>>(args);
  } else {
    sum_kernel<true><<<args.n_tiles, kScanThreads, 0, on>>>(args);
  }
}

}  // namespace

void TopKWorkspace::reserve(std::size_t n, std::size_t k) {
  memory_.reserve(Layout(plan_of(n, k), n).size);
}

void top_k(const TopKInput& input, const TopKOutput& out, std::int32_t* non_finite,
           TopKWorkspace& workspace, void* stream) {
  detail::check_top_k(input, out);
  const std::size_t n = input.x.size(), k = out.indices.size();
  const auto on = static_cast<cudaStream_t>(stream);
  if (n == 0) return;
  if (k == 0) {
    start_sum(input, non_finite, on);
    return check_launch("top_k");
  }
  workspace.reserve(n, k);
  const Plan plan = plan_of(n, k);
  const Layout layout(plan, n);
  const auto part = [&]<typename T>(T*& pointer, std::size_t at) {
    pointer = reinterpret_cast<T*>(workspace.data() + at);
  };
  SelectArgs args{};
  args.input = device_input(input);
  args.n = static_cast<std::uint32_t>(n);
  args.k = static_cast<std::uint32_t>(k);
  args.low_rank = plan.low_rank;
  args.high_rank = plan.high_rank;
  args.capacity = static_cast<std::uint32_t>(plan.capacity);
  args.n_tiles = static_cast<std::uint32_t>(n_tiles_of(n));
  args.tiles_per_group = (args.n_tiles + kMaxGroups - 1) / kMaxGroups;
  part(args.state, 0);
  part(args.sample, layout.sample);
  part(args.group_counts, layout.group_counts);
  part(args.lists, layout.lists);
  part(args.candidate_indices, layout.candidate_indices);
  part(args.candidate_values, layout.candidate_values);
  args.indices = out.indices.data();
  args.values = out.values.data();
  args.non_finite = non_finite;
  if (input.before.empty()) {
    start<false>(args, on);
  } else {
    start<true>(args, on);
  }
  check_launch("top_k");
}

void chunk_top_k(const TopKInput& input, const TopKChunks& chunks, const TopKOutput& out,
                 std::int32_t* non_finite, void* stream) {
  detail::check_chunk_top_k(input, chunks.chunk, chunks.k_per_chunk, out);
  const auto on = static_cast<cudaStream_t>(stream);
  if (input.x.empty()) return;
  if (chunks.k_per_chunk == 0) {
    start_sum(input, non_finite, on);
  } else {
    const ChunkArgs args{
        .input = device_input(input),
        .n = input.x.size(),
        .chunk = static_cast<std::uint32_t>(chunks.chunk),
        .k = static_cast<std::uint32_t>(std::min(chunks.chunk, chunks.k_per_chunk)),
        .indices = out.indices.data(),
        .values = out.values.data(),
        .non_finite = non_finite};
    if (input.before.empty()) {
      start<false>(args, on);
    } else {
      start<true>(args, on);
    }
  }
  check_launch("chunk_top_k");
}

}  // namespace fedcomm::cuda
