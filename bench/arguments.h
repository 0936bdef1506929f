// The command line of a kernel benchmark, in the manner of nccl-tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fedcomm::bench {

enum class Device : std::uint8_t { cpu, cuda };

struct Options {
  Device device = Device::cpu;
  std::size_t min_bytes = std::size_t{4} << 20, max_bytes = std::size_t{256} << 20;
  std::size_t step_factor = 4;
  std::size_t n_iters = 11, n_warmup = 2;
  bool check = true;
  std::vector<std::size_t> threads;  // empty: 1, and all cores
  std::vector<std::string> isas;     // empty: the one in use
  std::vector<std::string> kernels;  // parts of names; empty: all
  bool fresh_outputs = false;
  std::string json;  // a file's name, "-", or empty
  std::string commit;
  bool help = false;
};

/// Names the argument, what is wrong with it, and what would be right.
struct BadArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws BadArgument.
Options parse_arguments(int argc, const char* const* argv);

std::string_view help_text();

/// Input sizes in bytes, from the smallest to the largest.
std::vector<std::size_t> sizes_of(const Options& options);

/// Whether `name` has one of options.kernels in it.
bool is_selected(const Options& options, std::string_view name);

}  // namespace fedcomm::bench
