// Selection chunk by chunk: divides the chunks among threads. A chunk is read once from
// memory; the selection itself is select_chunk in topk_isa.cpp.
#include <atomic>

#include "base/dtype.h"
#include "topk/checks.h"
#include "topk/kernels.h"
#include "topk/threads.h"
#include "topk/topk.h"

namespace fedcomm::cpu {
namespace {

/// Elements that a thread takes at a time, if that is a whole number of chunks.
constexpr std::size_t kPiece = 1u << 16;
static_assert(kPiece >= kMaxTopKChunk);

}  // namespace

bool chunk_top_k(const TopKInput& input, std::size_t chunk, std::size_t k_per_chunk,
                 const TopKOutput& out, TopKWorkspace& workspace) {
  const std::size_t n = input.x.size();
  detail::check_chunk_top_k(input, chunk, k_per_chunk, out);
  if (n == 0) return true;
  if (k_per_chunk == 0) return top_k(input, out, workspace);

  const TopKKernels& kernels = topk_kernels();
  const std::size_t k = std::min(k_per_chunk, chunk);
  const std::size_t piece = kPiece / chunk * chunk;
  const std::size_t n_pieces = (n + piece - 1) / piece;
  const std::size_t array = (chunk + 2 * kTopKBlock - 1) / kTopKBlock * kTopKBlock;
  const Slots slots(n_pieces);
  std::uint32_t* scratch = workspace.per_thread.get(slots.size() * 3 * array);
  const std::span<const float> data = input.before.empty() ? input.x : input.after;
  std::atomic<bool> finite = true;
  slots.run(n_pieces, [&](std::size_t slot, std::size_t i) {
    std::uint32_t* own = scratch + slot * 3 * array;
    const ChunkScratch arrays{own, own + array, own + 2 * array};
    std::uint32_t largest = 0;
    const std::size_t end = std::min(n, (i + 1) * piece);
    for (std::size_t begin = i * piece; begin < end; begin += chunk) {
      const std::size_t length = std::min(chunk, n - begin);
      const std::size_t n_out = std::min(k, length);
      const std::size_t first = begin / chunk * k;
      std::uint32_t* indices = out.indices.data() + first;
      kernels.select_chunk(range_of(input, begin, length), static_cast<std::uint32_t>(n_out),
                           arrays, indices);
      for (std::size_t j = 0; j < n_out; ++j) {
        indices[j] += static_cast<std::uint32_t>(begin);
        const float value = data[indices[j]];
        out.values[first + j] = value;
        largest = std::max(largest, float_bits(value) & 0x7fffffffu);
      }
    }
    if (largest >= kInfinityBits) finite = false;
  });
  return finite;
}

}  // namespace fedcomm::cpu
