// Exact selection of the largest magnitudes of a flat float32 tensor, with error feedback in the
// same pass. It decides which entries go out; how their values are coded, and what a decoded value
// leaves behind in the residual, is the codec's work.
//
// The order: bits & 0x7fffffff as an integer, the larger first (so NaN before infinity before
// finite, and -0 equals 0); ties go to the lower index. Results are the same with whatever
// instruction set, number of threads and workspace. One freedom remains: where x and `before` are
// both NaN, which of the two the sum takes after is the compiler's choice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/buffer.h"
#include "base/device_buffer.h"

namespace fedcomm {

/// What is selected from: acc = x + beta * before, product and sum rounded each, or x itself where
/// both spans are empty. `before` and `after` are as long as x; they may be the same memory, but
/// must not overlap otherwise, nor `after` with x. All of acc is written to `after`, the selected
/// entries too: whoever encodes those puts acc - decoded there.
struct TopKInput {
  std::span<const float> x;
  std::span<const float> before;
  std::span<float> after;
  float beta = 1.0f;
};

/// The selected entries by ascending index; values[i] is acc[indices[i]].
struct TopKOutput {
  std::span<std::uint32_t> indices;
  std::span<float> values;
};

namespace detail {

/// Memory that stays between calls. Growing loses the contents.
template <typename T>
class Scratch {
 public:
  T* get(std::size_t n) {
    if (buffer_ == nullptr || buffer_->size() < n * sizeof(T)) {
      buffer_.reset();
      buffer_ = std::make_unique<Buffer>(n * sizeof(T));
    }
    return reinterpret_cast<T*>(buffer_->data());
  }

 private:
  std::unique_ptr<Buffer> buffer_;
};

/// Elements that are scanned at once, and what was found there.
struct TopKStrip {
  std::size_t first_candidate;
  std::uint32_t n_candidates, n_above;
  std::uint32_t n_ties_found, n_ties;  // that equal the smallest selected magnitude; selected ones
  std::size_t first_output;            // where this strip's entries begin
};

}  // namespace detail

/// What the functions below need besides their output. It grows to the largest call's needs (about
/// 12 bytes a selected entry, no more than 12 bytes an element) and is then reused: fresh memory
/// would cost more than the selection. One call at a time may use it.
struct TopKWorkspace {
  detail::Scratch<std::uint32_t> per_thread;
  detail::Scratch<std::uint32_t> candidate_indices;
  detail::Scratch<float> candidate_values;
  detail::Scratch<float> sample;
  detail::Scratch<detail::TopKStrip> strips;
};

inline constexpr std::size_t kMinTopKChunk = 256, kMaxTopKChunk = 65536;

/// How many entries chunk_top_k() selects from n_elems. `chunk` is not 0.
constexpr std::size_t chunk_top_k_count(std::size_t n_elems, std::size_t chunk,
                                        std::size_t k_per_chunk) {
  const std::size_t k = k_per_chunk < chunk ? k_per_chunk : chunk;
  const std::size_t rest = n_elems % chunk;
  return n_elems / chunk * k + (k < rest ? k : rest);
}

namespace cpu {

/// The out.indices.size() largest of the whole tensor. Returns whether all of acc is finite.
///
/// A sample guesses a threshold, one pass over memory collects what reaches it, and the exact
/// choice is made among those; a guess that proves wrong costs further passes, but changes nothing.
///
/// Throws invalid_argument, before anything is written, where x has 2^32 elements or more, where
/// more entries are asked for than it has, or where lengths do not fit together.
bool top_k(const TopKInput& input, const TopKOutput& out, TopKWorkspace& workspace);

/// In each chunk of `chunk` elements (the last may be short) the k_per_chunk largest, or all where
/// the chunk has no more. `out` has chunk_top_k_count() entries. Returns whether all of acc is
/// finite. The selection of SparseLoCo (arXiv 2508.15706: 64 of 4096).
///
/// Throws invalid_argument as top_k() does, and where `chunk` is not within kMinTopKChunk and
/// kMaxTopKChunk.
bool chunk_top_k(const TopKInput& input, std::size_t chunk, std::size_t k_per_chunk,
                 const TopKOutput& out, TopKWorkspace& workspace);

}  // namespace cpu

// The same on a GPU: spans over device memory, the same entries, values and residual to the bit.
// Work is put on `stream` (a cudaStream_t; null: the default stream) and nothing waits for it; no
// memory is allocated but by a workspace that grows, and what is launched depends on lengths only,
// so that a graph can be captured. Throw as the CPU's do, and cuda.
namespace cuda {

/// What top_k() needs besides its output. It grows to the largest call's needs and is then reused,
/// by one call after the other in the order of one stream. Growing is an error while a stream is
/// being captured: reserve() before.
class TopKWorkspace {
 public:
  /// top_k() of k of n elements then allocates nothing. It takes 0.1 MB, 0.002 bytes an element,
  /// and, where a sample pays (n > 2^18, k <= n / 8), 8 bytes for each candidate there is room for:
  /// k and up to 3% of n. chunk_top_k() needs no workspace.
  void reserve(std::size_t n, std::size_t k);
  std::byte* data() const { return memory_.data(); }

 private:
  DeviceBuffer memory_;
};

/// As cpu::top_k(), but sets *non_finite (on the device) to 1 where that returns false, and leaves
/// it alone otherwise. A sample guesses a threshold, one pass over memory collects what reaches it,
/// and the exact choice is made among those, or, where the device finds that the guess was wrong,
/// among all by further passes.
void top_k(const TopKInput& input, const TopKOutput& out, std::int32_t* non_finite,
           TopKWorkspace& workspace, void* stream);

/// How chunk_top_k() divides a tensor.
struct TopKChunks {
  std::size_t chunk, k_per_chunk;
};

/// As cpu::chunk_top_k(), but for *non_finite, as in top_k(). One kernel.
void chunk_top_k(const TopKInput& input, const TopKChunks& chunks, const TopKOutput& out,
                 std::int32_t* non_finite, void* stream);

}  // namespace cuda
}  // namespace fedcomm
