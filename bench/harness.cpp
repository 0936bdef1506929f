#include "harness.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <string>
#include <utility>

#include "base/isa.h"
#include "base/thread_pool.h"

namespace fedcomm::bench {
namespace {

template <typename F>
double milliseconds(const F& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

double rate(std::size_t n_bytes, double ms) {
  return ms > 0 ? static_cast<double>(n_bytes) / ms / 1e6 : 0;
}

std::string first_line(const char* file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  utsname names{};
  return uname(&names) == 0 ? names.machine : "unknown";
}

/// A number as JSON has it, or null.
std::string json_number(double x) {
  if (!std::isfinite(x)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", x);
  return text;
}

const char* json_verified(Verified verified) {
  switch (verified) {
    case Verified::not_asked: return "null";
    case Verified::yes: return "true";
    case Verified::no: return "false";
  }
  return "null";
}

const char* word_for(const Result& result) {
  if (result.is_ceiling) return "";
  switch (result.verified) {
    case Verified::not_asked: return "-";
    case Verified::yes: return "yes";
    case Verified::no: return "NO";
  }
  return "";
}

double entries_per_s(const Result& result) {
  return static_cast<double>(result.n_entries) / result.times.median_ms * 1e3;
}

}  // namespace

Times times_of(std::vector<double> samples_ms) {
  std::ranges::sort(samples_ms);
  const std::size_t middle = samples_ms.size() / 2;
  const bool odd = samples_ms.size() % 2 == 1;
  return {.median_ms = odd ? samples_ms[middle] : (samples_ms[middle - 1] + samples_ms[middle]) / 2,
          .min_ms = samples_ms.front(),
          .max_ms = samples_ms.back()};
}

double Result::gbps() const {
  return rate(traffic.bytes(), times.median_ms);
}

double Result::ceiling_gbps() const {
  return rate(traffic.bytes(), ceiling_ms);
}

double Result::share() const {
  return ceiling_ms / times.median_ms;
}

Result measure(const Row& row, Streams& streams, const Options& options) {
  Result result;
  result.kernel = row.kernel;
  result.codec = row.codec;
  result.n_entries = row.n_entries;
  result.allocates = row.allocates;
  result.is_ceiling = row.is_ceiling;
  result.n_threads = row.threaded ? thread_count() : 1;
  result.isa = row.uses_isa ? name_of(current_isa()) : "";
  result.traffic = row.prepare();

  std::vector<Stores> ways;
  if (!row.is_ceiling) ways = ways_to_move(result.traffic);
  std::vector<double> own;
  std::vector<std::vector<double>> others(ways.size());
  for (std::size_t i = 0; i < options.n_warmup + options.n_iters; ++i) {
    const bool counts = i >= options.n_warmup;
    const double own_ms = milliseconds(row.run);
    if (counts) own.push_back(own_ms);
    for (std::size_t way = 0; way < ways.size(); ++way) {
      const double ms = milliseconds([&] { streams.run(result.traffic, ways[way]); });
      if (counts) others[way].push_back(ms);
    }
  }
  result.times = times_of(std::move(own));
  const double moved = static_cast<double>(Streams::rounded(result.traffic).bytes());
  const double scale = moved > 0 ? static_cast<double>(result.traffic.bytes()) / moved : 0;
  for (std::size_t way = 0; way < ways.size(); ++way) {
    const double ms = times_of(std::move(others[way])).median_ms * scale;
    if (result.ceiling_ms > 0 && ms >= result.ceiling_ms) continue;
    result.ceiling_ms = ms;
    result.ceiling_stores = ways[way];
  }
  if (options.check && row.verify) {
    result.failure = row.verify();
    result.verified = result.failure.empty() ? Verified::yes : Verified::no;
  }
  return result;
}

std::string Facts::machine() const {
  return cpu + ", " + std::to_string(n_cores) + (n_cores == 1 ? " core" : " cores");
}

Facts facts_here(std::string commit) {
  Facts facts;
  facts.cpu = cpu_model();
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0)
    facts.n_cores = static_cast<std::size_t>(CPU_COUNT(&cores));
  utsname names{};
  if (uname(&names) == 0) facts.kernel = std::string(names.sysname) + " " + names.release;
#if defined(__clang__)
  facts.compiler = "clang " __clang_version__;
#else
  facts.compiler = "gcc " __VERSION__;
#endif
  facts.huge_pages = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
  facts.date = text;
  facts.commit = std::move(commit);
  return facts;
}

std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string to_json(const Result& result, const Facts& facts) {
  const bool moves = result.traffic.bytes() > 0;
  const bool compared = result.ceiling_ms > 0;
  const double none = std::nan("");
  std::string out = "{";
  const auto field = [&out](const char* name, const std::string& value) {
    out += (out.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + value;
  };
  field("kernel", json_text(result.kernel));
  field("codec", json_text(result.codec));
  field("n_elems", std::to_string(result.n_elems));
  field("threads", result.n_threads > 0 ? std::to_string(result.n_threads) : "null");
  field("isa", result.isa.empty() ? "null" : json_text(result.isa));
  field("median_ms", json_number(result.times.median_ms));
  field("min_ms", json_number(result.times.min_ms));
  field("max_ms", json_number(result.times.max_ms));
  field("n_bytes", std::to_string(result.traffic.bytes()));
  field("read_bytes", std::to_string(result.traffic.read_bytes()));
  field("written_bytes", std::to_string(result.traffic.written_bytes()));
  field("gbps", json_number(moves ? result.gbps() : none));
  field("ceiling_gbps", json_number(compared ? result.ceiling_gbps() : none));
  field("ceiling_ms", json_number(compared ? result.ceiling_ms : none));
  const bool has_stores = compared && result.n_threads > 0;
  field("ceiling_stores", has_stores ? json_text(name_of(result.ceiling_stores)) : "null");
  field("share", json_number(compared ? result.share() : none));
  field("n_entries", result.n_entries > 0 ? std::to_string(result.n_entries) : "null");
  field("mentries_per_s", json_number(result.n_entries > 0 ? entries_per_s(result) / 1e6 : none));
  field("verified", json_verified(result.verified));
  field("allocates", result.allocates ? "true" : "false");
  field("machine", json_text(facts.machine()));
  field("device", facts.device.empty() ? "null" : json_text(facts.device));
  field("date", json_text(facts.date));
  field("commit", facts.commit.empty() ? "null" : json_text(facts.commit));
  return out + "}";
}

OutputFile::OutputFile(const std::string& name) {
  if (name.empty()) return;
  file_ = name == "-" ? stdout : std::fopen(name.c_str(), "w");
  if (file_ == nullptr)
    throw BadArgument("--json: cannot write '" + name + "'; does its folder exist?");
}

OutputFile::~OutputFile() {
  if (file_ != nullptr && file_ != stdout) std::fclose(file_);
}

void Report::print_header(const Options& options) const {
  if (table_ == nullptr) return;
  std::fprintf(table_, "# machine       %s; %s; %s\n", facts_.machine().c_str(),
               facts_.kernel.c_str(), facts_.compiler.c_str());
  std::fprintf(table_, "# huge pages    %s\n", facts_.huge_pages.c_str());
  if (!facts_.device.empty()) {
    std::fprintf(
        table_,
        "# device        %s; kernels are timed by its events, with nothing in its cache;\n"
        "#               the ceiling is a copy within its memory of as many bytes, and of\n"
        "#               'whole path' the time of its kernels alone\n",
        facts_.device.c_str());
  }
  std::fprintf(table_, "# date, commit  %s, %s\n", facts_.date.c_str(),
               facts_.commit.empty() ? "not given (--commit)" : facts_.commit.c_str());
  std::fprintf(table_, "# runs          %zu timed after %zu; outputs %s; verification %s\n",
               options.n_iters, options.n_warmup,
               options.fresh_outputs ? "in fresh memory each time, page faults included"
                                     : "in memory that is there already",
               options.check ? "on" : "off");
  std::fputs(
      "#\n"
      "# n         elements of the float32 input\n"
      "# thr       threads of the pool that worked on it\n"
      "# median, min, max   milliseconds of one call\n"
      "# B/elem    bytes moved, divided by n: every input and output once (float32 input,\n"
      "#           residual read and written, steps and codes, indices and values); neither "
      "caches\n"
      "#           nor the line that an ordinary store reads first are counted\n"
      "# GB/s      bytes moved / median, in 10^9\n"
      "# ceiling   GB/s of a loop that moves the same bytes, read as read, written as written, "
      "and\n"
      "#           computes nothing: with ordinary or streaming (*) stores, whichever is faster.\n"
      "#           Timed in turn with the row, on as many threads; its median\n"
      "# share     of the ceiling that was reached: ceiling's time / median. A few percent above "
      "1\n"
      "#           are noise\n"
      "# Mentry/s  10^6 entries chosen or coded a second\n"
      "# ok        whether the outcome was right (NO: see the end)\n"
      "# Rows named 'stream' are such loops by themselves.\n#\n",
      table_);
  std::fprintf(table_, "%-18s %-22s %10s %3s %-8s %10s %10s %10s %7s %7s %8s %6s %9s %s\n",
               "kernel", "codec", "n", "thr", "isa", "median", "min", "max", "B/elem", "GB/s",
               "ceiling", "share", "Mentry/s", "ok");
}

void Report::add(const Result& result) {
  if (result.verified == Verified::no) {
    failures_.push_back(
        result.kernel + " " + result.codec + ", n = " + std::to_string(result.n_elems) + ", " +
        std::to_string(result.n_threads) + " threads, " + result.isa + ": " + result.failure);
  }
  if (json_ != nullptr) {
    std::fprintf(json_, "%s\n", to_json(result, facts_).c_str());
    std::fflush(json_);
  }
  if (table_ == nullptr) return;
  const auto cell = [](bool known, const char* format, double value) {
    char text[32] = "-";
    if (known) std::snprintf(text, sizeof text, format, value);
    return std::string(text);
  };
  const bool moves = result.traffic.bytes() > 0;
  const bool compared = result.ceiling_ms > 0;
  const double per_elem =
      static_cast<double>(result.traffic.bytes()) / static_cast<double>(result.n_elems);
  const bool streaming = compared && result.ceiling_stores == Stores::streaming;
  std::fprintf(table_, "%-18s %-22s %10zu %3s %-8s %10.4f %10.4f %10.4f %7s %7s %7s%c %6s %9s %s\n",
               result.kernel.c_str(), result.codec.c_str(), result.n_elems,
               result.n_threads > 0 ? std::to_string(result.n_threads).c_str() : "-",
               result.isa.empty() ? "-" : result.isa.c_str(), result.times.median_ms,
               result.times.min_ms, result.times.max_ms, cell(moves, "%.2f", per_elem).c_str(),
               cell(moves, "%.2f", result.gbps()).c_str(),
               cell(compared, "%.2f", result.ceiling_gbps()).c_str(), streaming ? '*' : ' ',
               cell(compared, "%.2f", result.share()).c_str(),
               cell(result.n_entries > 0, "%.1f", entries_per_s(result) / 1e6).c_str(),
               word_for(result));
  std::fflush(table_);
}

int Report::finish(std::FILE* errors) const {
  if (failures_.empty()) return 0;
  std::fprintf(errors, "%zu rows computed something wrong:\n", failures_.size());
  for (const std::string& failure : failures_)
    std::fprintf(errors, "  %s\n", failure.c_str());
  return 1;
}

}  // namespace fedcomm::bench
