// Command lines in the manner of nccl-tests: what all benchmarks here are told, how arguments are
// read and refused, and the arguments of fedcomm-bench-kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fedcomm::bench {

inline constexpr int kExitWrong = 1, kExitBadArgument = 2;

/// Names the argument, what is wrong with it, and what would be right.
struct BadArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What every benchmark can be told.
struct CommonOptions {
  std::size_t min_bytes = std::size_t{4} << 20, max_bytes = std::size_t{256} << 20;
  std::size_t step_factor = 4;
  std::size_t n_iters = 11, n_warmup = 2;
  bool check = true;
  std::string json;  // a file's name, "-", or empty
  std::string commit;
  bool help = false;
};

/// Sizes in bytes, from the smallest to the largest.
std::vector<std::size_t> sizes_of(const CommonOptions& options);

/// Walks over a command line; its values are read as the benchmark asks for them. All throw
/// BadArgument, with the argument's name.
class ArgumentReader {
 public:
  ArgumentReader(int argc, const char* const* argv) : argc_(argc), argv_(argv) {}

  /// To the next argument; false where there is none.
  bool next();
  /// Whether this argument is so called; `brief` may be empty.
  bool is(std::string_view brief, std::string_view name) const;
  /// Takes this argument if it is one of the common ones.
  bool take_common(CommonOptions& options);

  std::string_view value();
  /// `otherwise` where the next word is an argument, too, or there is none.
  std::string_view value_or(std::string_view otherwise);
  std::size_t number(std::size_t low, std::size_t high, std::string_view remedy);
  /// The same of a part of a list.
  std::size_t number(std::string_view text, std::size_t low, std::size_t high,
                     std::string_view remedy) const;
  double seconds();
  /// "4M" is 4 MiB.
  std::size_t bytes();
  /// Parts with commas between them; commas inside brackets belong to a codec's name.
  std::vector<std::string> list();

  [[noreturn]] void reject(std::string_view value, std::string_view remedy) const;
  [[noreturn]] void reject_unknown() const;

  static constexpr std::size_t kMaxThreads = 1024;  // as the thread pool has it

 private:
  int argc_;
  const char* const* argv_;
  int at_ = 0;
  std::string_view name_;  // of the argument that next() came to
};

/// Throws BadArgument where the sizes are the wrong way round.
void check_sizes(const CommonOptions& options);

// --- fedcomm-bench-kernels -----------------------------------------------------------------------

enum class Device : std::uint8_t { cpu, cuda };

struct Options : CommonOptions {
  Device device = Device::cpu;
  std::vector<std::size_t> threads;  // empty: 1, and all cores
  std::vector<std::string> isas;     // empty: the one in use
  std::vector<std::string> kernels;  // parts of names; empty: all
  bool fresh_outputs = false;
};

/// Throws BadArgument.
Options parse_arguments(int argc, const char* const* argv);

std::string_view help_text();

/// Whether `name` has one of options.kernels in it.
bool is_selected(const Options& options, std::string_view name);

}  // namespace fedcomm::bench
