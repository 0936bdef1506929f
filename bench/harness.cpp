#include "harness.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/isa.h"
#include "base/thread_pool.h"

namespace fedcomm::bench {
namespace {

double rate(std::size_t n_bytes, double ms) {
  return ms > 0 ? static_cast<double>(n_bytes) / ms / 1e6 : 0;
}

const char* ok_cell(const Result& result) {
  return result.is_ceiling ? "" : word_for(result.verified);
}

double entries_per_s(const Result& result) {
  return static_cast<double>(result.n_entries) / result.times.median_ms * 1e3;
}

}  // namespace

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

std::string to_json(const Result& result, const Facts& facts) {
  const bool moves = result.traffic.bytes() > 0;
  const bool compared = result.ceiling_ms > 0;
  const double none = std::nan("");
  JsonRow row;
  row.text("kernel", result.kernel);
  row.text("codec", result.codec);
  row.count("n_elems", result.n_elems);
  row.field("threads", result.n_threads > 0 ? std::to_string(result.n_threads) : "null");
  row.text_or_null("isa", result.isa);
  row.times(result.times);
  row.count("n_bytes", result.traffic.bytes());
  row.count("read_bytes", result.traffic.read_bytes());
  row.count("written_bytes", result.traffic.written_bytes());
  row.number("gbps", moves ? result.gbps() : none);
  row.number("ceiling_gbps", compared ? result.ceiling_gbps() : none);
  row.number("ceiling_ms", compared ? result.ceiling_ms : none);
  const bool has_stores = compared && result.n_threads > 0;
  row.text_or_null("ceiling_stores", has_stores ? name_of(result.ceiling_stores) : "");
  row.number("share", compared ? result.share() : none);
  row.field("n_entries", result.n_entries > 0 ? std::to_string(result.n_entries) : "null");
  row.number("mentries_per_s", result.n_entries > 0 ? entries_per_s(result) / 1e6 : none);
  row.field("verified", json_verified(result.verified));
  row.field("allocates", result.allocates ? "true" : "false");
  row.facts(facts);
  return row.str();
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
               ok_cell(result));
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
