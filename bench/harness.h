// What a C++ benchmark of kernels is made of: rows (what runs, which bytes it has to move, what it
// must have computed), their measurement beside a ceiling, and the report as a table and as JSON
// lines. It knows no kernel. What its numbers mean is said in bench/README.md and printed by
// Report::print_header().
#pragma once

#include <cstddef>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "arguments.h"
#include "facts.h"
#include "streams.h"

namespace fedcomm::bench {

/// One thing to time. `prepare` readies its inputs (untimed, once) and returns what it moves; `run`
/// is timed, again and again; `verify` prepares and runs once more, checks the outcome by slow
/// means of its own and returns what is wrong with it, or "".
struct Row {
  std::string kernel;  // e.g. "encode+feedback"
  std::string codec;   // e.g. "int8(stochastic)"
  std::function<Traffic()> prepare;
  std::function<void()> run;
  std::function<std::string()> verify;
  std::size_t n_entries = 0;  // chosen or coded ones, where that is a measure, too
  bool threaded = true;       // else it runs on one thread, whatever the pool has
  bool uses_isa = true;       // else it is the same with every instruction set
  bool allocates = false;     // takes fresh output memory at each call
  bool is_ceiling = false;    // one of the streams that others are compared with
};

struct Result {
  std::string kernel, codec;
  std::size_t n_elems = 0, n_entries = 0;
  std::size_t n_threads = 1;  // 0: a GPU's
  std::string isa;
  bool allocates = false, is_ceiling = false;
  Traffic traffic;
  Times times;
  double ceiling_ms = 0;  // 0: nothing to compare with
  Stores ceiling_stores = Stores::ordinary;
  Verified verified = Verified::not_asked;
  std::string failure;  // what verification found

  double gbps() const;
  double ceiling_gbps() const;
  /// Of the ceiling that was reached: ceiling's time / own time.
  double share() const;
};

/// Times `row`, in turn with the streams that move the same mix of bytes, so that whatever else the
/// machine does hits both alike; then verifies it if `options` say so.
Result measure(const Row& row, Streams& streams, const Options& options);

/// The result as one JSON object, without a line break. Numbers that do not exist are null.
std::string to_json(const Result& result, const Facts& facts);

/// Prints results as they come and remembers whether all were right.
class Report {
 public:
  /// Either may be null: a table for people, JSON lines for programs.
  Report(Facts facts, std::FILE* table, std::FILE* json)
      : facts_(std::move(facts)), table_(table), json_(json) {}

  void print_header(const Options& options) const;
  void add(const Result& result);
  /// Tells of failures on `errors`, if there are any. Returns what the process exits with: 0, or 1.
  int finish(std::FILE* errors) const;

 private:
  Facts facts_;
  std::FILE* table_;
  std::FILE* json_;
  std::vector<std::string> failures_;
};

}  // namespace fedcomm::bench
