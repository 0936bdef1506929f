#include "arguments.h"

#include <charconv>
#include <cmath>
#include <limits>

namespace fedcomm::bench {
namespace {

constexpr std::size_t kAny = std::numeric_limits<std::size_t>::max();

/// Whether the whole text is a number.
template <typename T>
bool read_number(std::string_view text, T& n) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

bool ArgumentReader::next() {
  if (++at_ >= argc_) return false;
  name_ = argv_[at_];
  return true;
}

bool ArgumentReader::is(std::string_view brief, std::string_view name) const {
  return name_ == name || (!brief.empty() && name_ == brief);
}

std::string_view ArgumentReader::value() {
  if (at_ + 1 >= argc_)
    throw BadArgument(std::string(name_) + ": its value is missing; -h has the list");
  return argv_[++at_];
}

std::string_view ArgumentReader::value_or(std::string_view otherwise) {
  if (at_ + 1 >= argc_) return otherwise;
  const std::string_view word = argv_[at_ + 1];
  return word.size() > 1 && word[0] == '-' ? otherwise : value();
}

void ArgumentReader::reject(std::string_view value, std::string_view remedy) const {
  throw BadArgument(std::string(name_) + ": '" + std::string(value) + "' is not " +
                    std::string(remedy));
}

void ArgumentReader::reject_unknown() const {
  throw BadArgument(std::string(name_) + ": no such argument; -h has the list");
}

std::size_t ArgumentReader::number(std::string_view text, std::size_t low, std::size_t high,
                                   std::string_view remedy) const {
  std::size_t n = 0;
  if (!read_number(text, n) || n < low || n > high) reject(text, remedy);
  return n;
}

std::size_t ArgumentReader::number(std::size_t low, std::size_t high, std::string_view remedy) {
  return number(value(), low, high, remedy);
}

double ArgumentReader::seconds() {
  const std::string_view text = value();
  double n = 0;
  if (!read_number(text, n) || !std::isfinite(n) || n <= 0)
    reject(text, "a number of seconds above 0");
  return n;
}

std::size_t ArgumentReader::bytes() {
  constexpr std::string_view kRemedy = "a size from 4 to 64G; write bytes, or K, M or G, e.g. 4M";
  constexpr std::size_t kMost = std::size_t{64} << 30;
  const std::string_view text = value();
  std::string_view digits = text;
  unsigned shift = 0;
  if (!digits.empty()) {
    const std::size_t suffix = std::string_view("KMG").find(digits.back());
    if (suffix != std::string_view::npos) {
      shift = static_cast<unsigned>(10 * (suffix + 1));
      digits.remove_suffix(1);
    }
  }
  std::size_t n = 0;
  if (!read_number(digits, n) || n > (kMost >> shift) || (n << shift) < sizeof(float))
    reject(text, kRemedy);
  return n << shift;
}

std::vector<std::string> ArgumentReader::list() {
  const std::string_view text = value();
  std::vector<std::string> parts;
  // Commas inside brackets belong to a codec's name: chunk_topk(4096,64).
  int depth = 0;
  std::string part;
  for (const char c : std::string(text) + ",") {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == ',' && depth <= 0) {
      if (part.empty()) reject(text, "a list with commas between its parts, e.g. a,b");
      parts.push_back(std::move(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!part.empty()) reject(text, "a list: a bracket is left open");
  return parts;
}

bool ArgumentReader::take_common(CommonOptions& options) {
  if (is("-h", "--help")) {
    options.help = true;
  } else if (is("-b", "--minbytes")) {
    options.min_bytes = bytes();
  } else if (is("-e", "--maxbytes")) {
    options.max_bytes = bytes();
  } else if (is("-f", "--stepfactor")) {
    options.step_factor = number(2, kAny, "a factor of 2 or more");
  } else if (is("-n", "--iters")) {
    options.n_iters = number(1, kAny, "a number of runs, 1 or more");
  } else if (is("-w", "--warmup")) {
    options.n_warmup = number(0, kAny, "a number of runs, 0 or more");
  } else if (is("-c", "--check")) {
    options.check = number(0, 1, "0 (do not verify) or 1 (verify)") == 1;
  } else if (is("", "--json")) {
    options.json = value_or("-");
    if (options.json.empty()) reject("", "a file to write, or - for standard output");
  } else if (is("", "--commit")) {
    options.commit = value();
  } else {
    return false;
  }
  return true;
}

void check_sizes(const CommonOptions& options) {
  if (options.min_bytes <= options.max_bytes) return;
  throw BadArgument("--minbytes: " + std::to_string(options.min_bytes) +
                    " is more than --maxbytes, " + std::to_string(options.max_bytes) +
                    "; give both, the smaller first");
}

std::vector<std::size_t> sizes_of(const CommonOptions& options) {
  std::vector<std::size_t> sizes;
  for (std::size_t size = options.min_bytes; size <= options.max_bytes;
       size *= options.step_factor) {
    sizes.push_back(size);
    if (size > options.max_bytes / options.step_factor) break;  // the next might overflow
  }
  return sizes;
}

Options parse_arguments(int argc, const char* const* argv) {
  Options options;
  ArgumentReader reader(argc, argv);
  while (reader.next()) {
    if (reader.take_common(options)) continue;
    if (reader.is("-t", "--threads")) {
      options.threads.clear();
      for (const std::string& part : reader.list()) {
        options.threads.push_back(
            reader.number(part, 1, ArgumentReader::kMaxThreads,
                          "a number of threads from 1 to 1024; e.g. --threads 1,2"));
      }
    } else if (reader.is("", "--device")) {
      const std::string_view device = reader.value();
      if (device != "cpu" && device != "cuda") reader.reject(device, "cpu or cuda");
      options.device = device == "cuda" ? Device::cuda : Device::cpu;
    } else if (reader.is("", "--isa")) {
      options.isas = reader.list();
    } else if (reader.is("", "--kernels")) {
      options.kernels = reader.list();
    } else if (reader.is("", "--alloc")) {
      options.fresh_outputs = true;
    } else {
      reader.reject_unknown();
    }
  }
  check_sizes(options);
  const bool of_cpu = !options.threads.empty() || !options.isas.empty() || options.fresh_outputs;
  if (options.device == Device::cuda && of_cpu)
    throw BadArgument("--device: --threads, --isa and --alloc are for the CPU; leave them out");
  return options;
}

std::string_view help_text() {
  return R"(fedcomm-bench-kernels: times libfedcomm's kernels beside what memory can do.

  -b, --minbytes SIZE     smallest float32 input, in bytes; K, M, G allowed        [4M]
  -e, --maxbytes SIZE     largest                                                [256M]
  -f, --stepfactor N      from one size to the next                                 [4]
  -n, --iters N           timed runs of each row                                   [11]
  -w, --warmup N          runs before those                                         [2]
  -c, --check 0|1         verify what each row computed                             [1]
      --device cpu|cuda   kernels of the CPU, or those of the current GPU             [cpu]
  -t, --threads LIST      threads of the pool, e.g. 1,2              [1, and all cores]
      --isa LIST          portable, avx2, avx512 or all      [the best this CPU can run]
      --kernels LIST      only rows whose "kernel codec" contains one of these, e.g.
                          encode+feedback,topk or int8                            [all]
      --alloc             fresh output memory at each call, to see what page faults cost
      --json [FILE]       also one JSON object a row; - or nothing: to standard output,
                          without table
      --commit TEXT       the commit that was measured, for the JSON
  -h, --help              this

Exits with 1 if a row computed something wrong, with 2 on a bad argument.
)";
}

bool is_selected(const Options& options, std::string_view name) {
  if (options.kernels.empty()) return true;
  for (const std::string& part : options.kernels) {
    if (name.find(part) != std::string_view::npos) return true;
  }
  return false;
}

}  // namespace fedcomm::bench
