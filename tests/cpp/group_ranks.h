// Groups for tests: members in one process, inputs whose sums are exact, and calls that check them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fabrics.h"
#include "threads.h"

namespace fedcomm::testing {

/// A group of some members, in one process.
struct Ranks {
  std::shared_ptr<MemoryHub> hub;  // null over other transports
  std::vector<std::shared_ptr<Group>> groups;

  explicit Ranks(int n, GroupOptions options = {}) : hub(std::make_shared<MemoryHub>(n)) {
    std::vector<std::shared_ptr<Fabric>> fabrics;
    for (int rank = 0; rank < n; ++rank)
      fabrics.push_back(hub->fabric(rank));
    groups = Group::open_all(fabrics, options);
  }
  Ranks(const Fabrics& fabrics, const GroupOptions& options)
      : groups(Group::open_all(fabrics, options)) {}

  Errors run(const std::function<void(Group&)>& f) { return run_ranks(groups, f); }
};

/// Small segments, so that even small buckets have many.
inline GroupOptions small_segments() {
  GroupOptions options;
  options.segment_elems = kGrain;
  return options;
}

/// For tests in which a deadline must pass.
inline GroupOptions impatient() {
  GroupOptions options = small_segments();
  options.timeout_s = 0.7;
  return options;
}

inline TensorView view(std::vector<float>& values) {
  return {values.data(), values.size(), DType::f32};
}

/// Integers: every order of summation gives the same bits.
inline std::vector<float> input(int rank, std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(
        static_cast<int>((i * 31 + static_cast<std::size_t>(rank) * 17) % 201) - 100);
  }
  return values;
}

inline std::vector<float> expected_sum(int n_ranks, std::size_t n) {
  std::vector<float> sum(n, 0.0f);
  for (int rank = 0; rank < n_ranks; ++rank) {
    const auto part = input(rank, n);
    for (std::size_t i = 0; i < n; ++i)
      sum[i] += part[i];
  }
  return sum;
}

inline void check_all(const Errors& errors, ErrorKind kind) {
  for (const auto& error : errors) {
    CHECK(error.has_value());
    CHECK_EQUAL(static_cast<int>(error->kind()), static_cast<int>(kind));
  }
}

inline void all_reduce(Group& group, std::size_t n, Algorithm algorithm = Algorithm::direct) {
  auto x = input(group.rank(), n);
  ReduceOptions options;
  options.algorithm = algorithm;
  group.all_reduce(view(x), view(x), options)->wait();
  CHECK(x == expected_sum(group.size(), n));
}

}  // namespace fedcomm::testing
