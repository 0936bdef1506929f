// What both selections share on the CPU: the kernels' view of a range, and a parallel loop whose
// threads have scratch memory of their own.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "base/thread_pool.h"
#include "topk/kernels.h"
#include "topk/topk.h"

namespace fedcomm::cpu {

inline TopKRange range_of(const TopKInput& input, std::size_t begin, std::size_t n) {
  if (input.before.empty()) return {input.x.data() + begin, nullptr, nullptr, 0.0f, n};
  return {input.x.data() + begin, input.before.data() + begin, input.after.data() + begin,
          input.beta, n};
}

/// As many slots as there are threads to work on n_pieces; each is used by one thread at a time.
class Slots {
 public:
  explicit Slots(std::size_t n_pieces) : n_(std::min(thread_count(), n_pieces)) {}

  std::size_t size() const { return n_; }

  /// Calls body(slot, piece) once for each piece.
  template <typename Body>
  void run(std::size_t n_pieces, const Body& body) const {
    std::atomic<std::size_t> next = 0;
    parallel_for(n_, 1, [&](std::size_t slot, std::size_t) {
      for (std::size_t piece = next++; piece < n_pieces; piece = next++)
        body(slot, piece);
    });
  }

 private:
  std::size_t n_;
};

}  // namespace fedcomm::cpu
