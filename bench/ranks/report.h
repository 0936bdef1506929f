// What the collective benchmarks share: times of all ranks made one, verdicts of all ranks made
// one, and rows that rank 0 prints. Everything that takes a group is collective.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "facts.h"
#include "ranks/world.h"

namespace fedcomm::bench {

/// Whose time a run has.
enum class Counts : std::uint8_t {
  mean,     // over all ranks
  slowest,  // rank
};

/// Runs `run` again and again, a barrier before each. Ranks leave a barrier up to one way apart:
/// who is early waits that much longer, and who is late that much less, so of what all wait for
/// together the mean is the time from a common start. With the slowest rank one way comes on top.
struct Together {
  Times times;
  double cpu_s = 0;  // of all threads of a process, of one run; mean over the ranks
};
Together time_together(Group& group, const CommonOptions& options, Counts counts,
                       const std::function<void()>& run);

/// The largest of all ranks' numbers.
std::uint64_t largest(Group& group, std::uint64_t mine);

/// What is wrong, by the first rank that knows ("rank 1: ..."); "" where nothing is.
std::string first_failure(Group& group, const std::string& mine);

/// "" where all ranks have the same bits.
std::string compare_bits(Group& group, std::span<const std::byte> mine);

/// Fields of a row that tell where it was measured.
void world_fields(JsonRow& row, Group& group, const WorldOptions& options);

struct Verdict {
  Verified verified = Verified::not_asked;
  std::string failure;

  static Verdict of(const std::string& failure) {
    return {failure.empty() ? Verified::yes : Verified::no, failure};
  }
};

/// Rows as they come; only rank 0 prints.
class RowPrinter {
 public:
  /// `header` explains the table. Throws BadArgument on every rank where the file for JSON cannot
  /// be written.
  RowPrinter(Group& group, const WorldOptions& options, const std::string& header);

  /// `json` without what the machine is. `name` is what a failure is told of.
  void add(const std::string& name, const std::string& line, JsonRow json, const Verdict& verdict);
  /// Tells of failures. The exit status, the same on every rank.
  int finish() const;

 private:
  bool speaks_;
  Facts facts_;
  std::unique_ptr<OutputFile> json_;
  std::FILE* table_ = nullptr;
  std::vector<std::string> failures_;
};

}  // namespace fedcomm::bench
