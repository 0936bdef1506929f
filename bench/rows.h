// What fedcomm-bench-kernels times. A new kernel: a function here that makes its rows, and a line
// in all_rows().
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "harness.h"

namespace fedcomm::bench {

/// The memory that all rows share: only one runs at a time.
struct Arena {
  explicit Arena(bool fresh_outputs)
      : fresh(fresh_outputs), decoded(fresh), payload(fresh), indices(fresh), values(fresh) {}

  /// Normally distributed values, the same at each run.
  void fill_input(std::size_t n_elems);
  /// A quarter of the input, shifted: a residual like those that encoding leaves.
  std::span<float> fresh_residual();

  bool fresh;
  std::span<const float> x;
  Memory x_memory, residual;  // read, or written in place
  Memory decoded, payload, indices, values;
};

std::vector<Row> stream_rows(Arena& arena, Streams& streams);
std::vector<Row> pool_rows();
std::vector<Row> quant_rows(Arena& arena);
std::vector<Row> topk_rows(Arena& arena);
std::vector<Row> codec_rows(Arena& arena);
std::vector<Row> coding_rows(Arena& arena);

std::vector<Row> all_rows(Arena& arena, Streams& streams);

}  // namespace fedcomm::bench
