// Index coding on a GPU: checks arguments and starts the kernels of cuda_*.cuh. Same bytes as
// rice.cpp and packed.cpp. Allocates only where a workspace has to grow; never waits.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "coding/coding.h"
#include "coding/cuda_packed.cuh"
#include "coding/cuda_range.cuh"
#include "coding/cuda_rice_decode.cuh"
#include "coding/cuda_rice_encode.cuh"

namespace fedcomm::cuda {
namespace {

using namespace coding;

/// Blocks for kernels that share sums, and for those that go on in strides.
unsigned capped_grid(std::uint64_t n, unsigned per_block) {
  return static_cast<unsigned>(
      std::clamp<std::uint64_t>((n + per_block - 1) / per_block, 1, kMaxBlocks));
}

/// One block for each `per_block`; 2^32 indices make fewer than a grid may have.
unsigned grid_for(std::uint64_t n, unsigned per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

/// How a workspace is divided: two sums for each block, a shape, a total, and stream 2.
constexpr std::size_t kShapeAt = 2 * kMaxBlocks * sizeof(std::uint64_t);
constexpr std::size_t kTotalAt = kShapeAt + sizeof(RiceShape);
constexpr std::size_t kStreamAt = kShapeAt + 256;
static_assert(kTotalAt + sizeof(std::uint64_t) <= kStreamAt);

template <typename T>
T* part(const RiceWorkspace& workspace, std::size_t at) {
  return reinterpret_cast<T*>(workspace.data() + at);
}

/// Of at most k of n indices, the number that makes the longest code: all n take no bytes.
std::size_t longest(std::uint64_t n, std::size_t k) {
  return k == n && k > 0 ? k - 1 : k;
}

void reject(std::int32_t* corrupt, cudaStream_t stream) {
  reject_kernel<<<1, 1, 0, stream>>>(corrupt);
  check_launch("decode indices");
}

[[noreturn]] void refuse(const std::string& what) {
  fail(ErrorKind::invalid_argument, "[cuda] " + what);
}

PackedShape packed_shape(const Chunking& c) {
  return {c.n, packed_count(c), c.chunk, std::max(1u, std::min(c.chunk, c.k_per_chunk)),
          packed_width(c.chunk)};
}

void check_count(std::size_t n_indices, const PackedShape& shape) {
  if (n_indices == shape.k) return;
  refuse("expected " + std::to_string(shape.k) + " indices, not " + std::to_string(n_indices));
}

}  // namespace

void RiceWorkspace::reserve(std::uint64_t n, std::size_t k) {
  const std::size_t most = longest(n, k);
  const unsigned shift = rice_shift(n, most);
  const std::uint64_t n_bits = most == 0 ? 0 : max_unary_bits(n, most, shift);
  memory_.reserve(kStreamAt + (n_bits / 32 + 2) * sizeof(std::uint32_t));
}

void RiceWorkspace::reserve(std::size_t k) {
  // Stream 2 has at most 4 bits an index: one for itself, and the quotients', of which the shift
  // makes 2.1 in a large range, and 3 of the only index of a range like 1.6 * 2^l.
  memory_.reserve(kStreamAt + (k / 8 + 3) * sizeof(std::uint32_t));
}

void find_range(std::span<const std::uint32_t> indices, std::uint64_t begin, std::uint64_t end,
                std::uint32_t* range, void* stream) {
  if (indices.size() >= kMaxIndexRange) refuse("a range of 2^32 indices cannot be told");
  find_range_kernel<<<1, 2 * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(
      indices.data(), indices.size(), begin, end, range);
  check_launch("find_range");
}

void rice_encode(const IndexSet& set, const CodeOutput& out, RiceWorkspace& workspace,
                 void* stream) {
  const bool known = set.range == nullptr;
  const std::size_t k = set.indices.size();
  const std::size_t most =
      known ? k : longest(set.n, static_cast<std::size_t>(std::min<std::uint64_t>(k, set.n)));
  const std::size_t max_bytes = rice_max_bytes(set.n, most);
  if (known && out.offset == nullptr && out.bytes.size() < max_bytes) {
    refuse("the output holds " + std::to_string(out.bytes.size()) + " bytes; it may take " +
           std::to_string(max_bytes));
  }
  workspace.reserve(set.n, most);
  const RiceEncodeArgs args{.indices = set.indices.data(),
                            .k = k,
                            .n = set.n,
                            .base = set.base,
                            .range = set.range,
                            .out = out.bytes.data(),
                            .offset = out.offset,
                            .n_bytes = out.n_bytes,
                            .end = out.end,
                            .shape = part<RiceShape>(workspace, kShapeAt),
                            .sums = part<std::uint64_t>(workspace, 0),
                            .unary_bits = part<std::uint64_t>(workspace, kTotalAt),
                            .stream = part<std::uint32_t>(workspace, kStreamAt)};
  const auto on = static_cast<cudaStream_t>(stream);
  const unsigned grid = capped_grid(most, kTile);
  rice_measure_kernel<<<grid, kThreads, 0, on>>>(args);
  rice_write_kernel<<<grid, kThreads, 0, on>>>(args);
  rice_copy_kernel<<<capped_grid(max_bytes / 4 + 2, kThreads), kThreads, 0, on>>>(args);
  check_launch("rice_encode");
}

void rice_decode(std::span<const std::byte> bytes, std::uint64_t n,
                 std::span<std::uint32_t> indices, std::int32_t* corrupt, RiceWorkspace& workspace,
                 void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const std::size_t k = indices.size();
  const unsigned shift = rice_shift(n, k);
  const bool coded = k > 0 && k < n;
  const std::size_t low_bytes = bytes_of_bits(std::uint64_t{k} * shift);
  if (bytes.size() > rice_max_bytes(n, k) || (coded && bytes.size() <= low_bytes))
    return reject(corrupt, on);
  if (k == 0) return;
  if (!coded) {
    count_up_kernel<<<grid_for(k, kThreads), kThreads, 0, on>>>(indices.data(), k);
    return check_launch("rice_decode");
  }
  workspace.reserve(n, 0);
  const RiceDecodeArgs args{.bytes = bytes.data(),
                            .n_bytes = bytes.size(),
                            .n = n,
                            .k = k,
                            .shift = shift,
                            .indices = indices.data(),
                            .corrupt = corrupt,
                            .ones = part<std::uint64_t>(workspace, 0),
                            .lows = part<std::uint64_t>(workspace, 0) + kMaxBlocks,
                            .n_ones = part<std::uint64_t>(workspace, kTotalAt)};
  const std::uint64_t n_words = (bytes.size() - low_bytes) / 4 + 2;
  const unsigned grid = std::max(capped_grid(n_words, kUnaryTile), capped_grid(k, kJoinTile));
  rice_count_kernel<<<grid, kThreads, 0, on>>>(args);
  rice_positions_kernel<<<grid, kThreads, 0, on>>>(args);
  rice_join_kernel<<<grid, kThreads, 0, on>>>(args);
  check_launch("rice_decode");
}

std::size_t packed_encode(std::span<const std::uint32_t> indices, const Chunking& chunking,
                          std::uint32_t base, std::span<std::byte> out, void* stream) {
  const PackedShape shape = packed_shape(chunking);
  const std::size_t n_bytes = packed_bytes(chunking);
  check_count(indices.size(), shape);
  if (out.size() < n_bytes) {
    refuse("the output holds " + std::to_string(out.size()) + " bytes; the code takes " +
           std::to_string(n_bytes));
  }
  if (n_bytes == 0) return 0;
  const PackedEncodeArgs args{shape, indices.data(), base, out.data()};
  packed_encode_kernel<<<grid_for(shape.k, kTile), kThreads, 0,
                         static_cast<cudaStream_t>(stream)>>>(args);
  check_launch("packed_encode");
  return n_bytes;
}

void packed_decode(std::span<const std::byte> bytes, const Chunking& chunking,
                   std::span<std::uint32_t> indices, std::int32_t* corrupt, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const PackedShape shape = packed_shape(chunking);
  check_count(indices.size(), shape);
  if (bytes.size() != packed_bytes(chunking)) return reject(corrupt, on);
  if (shape.k == 0) return;
  const PackedDecodeArgs args{shape, {bytes.data(), bytes.size()}, indices.data(), corrupt};
  packed_decode_kernel<<<grid_for(shape.k, kTile), kThreads, 0, on>>>(args);
  check_launch("packed_decode");
}

}  // namespace fedcomm::cuda
