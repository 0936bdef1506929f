// The checks of arguments that the selections on CPU and GPU share. They look at lengths only.
#pragma once

#include <cstddef>
#include <string>

#include "base/error.h"
#include "topk/topk.h"

namespace fedcomm::detail {

inline void check_lengths(const TopKInput& input, const TopKOutput& out) {
  const std::size_t n = input.x.size();
  if (n >> 32 != 0) {
    fail(ErrorKind::invalid_argument,
         "top_k: " + std::to_string(n) + " elements; indices have 32 bits: split the tensor");
  }
  if (input.before.size() != input.after.size() ||
      (!input.before.empty() && input.before.size() != n)) {
    fail(ErrorKind::invalid_argument, "top_k: residuals of " + std::to_string(input.before.size()) +
                                          " and " + std::to_string(input.after.size()) +
                                          " elements for a tensor of " + std::to_string(n));
  }
  if (out.indices.size() != out.values.size()) {
    fail(ErrorKind::invalid_argument, "top_k: room for " + std::to_string(out.indices.size()) +
                                          " indices, but " + std::to_string(out.values.size()) +
                                          " values");
  }
}

inline void check_top_k(const TopKInput& input, const TopKOutput& out) {
  check_lengths(input, out);
  if (out.indices.size() > input.x.size()) {
    fail(ErrorKind::invalid_argument, "top_k: " + std::to_string(out.indices.size()) +
                                          " entries of " + std::to_string(input.x.size()) +
                                          " elements");
  }
}

inline void check_chunk_top_k(const TopKInput& input, std::size_t chunk, std::size_t k_per_chunk,
                              const TopKOutput& out) {
  check_lengths(input, out);
  if (chunk < kMinTopKChunk || chunk > kMaxTopKChunk) {
    fail(ErrorKind::invalid_argument,
         "chunk_top_k: chunks of " + std::to_string(chunk) + " elements; they may have " +
             std::to_string(kMinTopKChunk) + " to " + std::to_string(kMaxTopKChunk));
  }
  const std::size_t n_out = chunk_top_k_count(input.x.size(), chunk, k_per_chunk);
  if (out.indices.size() != n_out) {
    fail(ErrorKind::invalid_argument, "chunk_top_k: room for " +
                                          std::to_string(out.indices.size()) +
                                          " entries; there are " + std::to_string(n_out));
  }
}

}  // namespace fedcomm::detail
