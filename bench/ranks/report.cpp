#include "ranks/report.h"

#include <sys/resource.h>

#include <algorithm>

#include "base/thread_pool.h"
#include "wire/crc32c.h"

namespace fedcomm::bench {
namespace {

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

Together time_together(Group& group, const CommonOptions& options, Counts counts,
                       const std::function<void()>& run) {
  std::vector<double> samples;
  double cpu_s = 0;
  for (std::size_t i = 0; i < options.n_warmup + options.n_iters; ++i) {
    group.barrier()->wait();
    const double before_s = cpu_seconds();
    const double ms = milliseconds(run);
    if (i < options.n_warmup) continue;
    samples.push_back(ms);
    cpu_s += cpu_seconds() - before_s;
  }
  const double n_ranks = group.size();
  const std::vector<double> all = gather_numbers(group, samples);
  const std::size_t n = samples.size();
  for (std::size_t i = 0; i < n; ++i) {
    double sum = 0, most = 0;
    for (std::size_t at = i; at < all.size(); at += n) {
      sum += all[at];
      most = std::max(most, all[at]);
    }
    samples[i] = counts == Counts::mean ? sum / n_ranks : most;
  }
  double all_cpu_s = 0;
  for (const double each : gather_numbers(group, std::span(&cpu_s, 1)))
    all_cpu_s += each;
  return {times_of(std::move(samples)), all_cpu_s / n_ranks / static_cast<double>(n)};
}

std::uint64_t largest(Group& group, std::uint64_t mine) {
  const auto number = static_cast<double>(mine);  // exact below 2^53
  const std::vector<double> all = gather_numbers(group, std::span(&number, 1));
  return static_cast<std::uint64_t>(*std::ranges::max_element(all));
}

std::string first_failure(Group& group, const std::string& mine) {
  const std::vector<std::string> all = gather_text(group, mine);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (!all[rank].empty()) return "rank " + std::to_string(rank) + ": " + all[rank];
  }
  return "";
}

std::string compare_bits(Group& group, std::span<const std::byte> mine) {
  const double sum = crc32c(mine);
  const std::vector<double> all = gather_numbers(group, std::span(&sum, 1));
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] != all[0]) return "rank " + std::to_string(rank) + " has other bits than rank 0";
  }
  return "";
}

void world_fields(JsonRow& row, Group& group, const WorldOptions& options) {
  row.text("transport", name_of(options.carrier));
  row.count("clouds", static_cast<std::size_t>(group.size()));
  LinkStats link;
  if (auto* tcp = dynamic_cast<TcpFabric*>(group.fabric().get());
      tcp != nullptr && group.size() > 1)
    link = tcp->link_stats(group.rank() == 0 ? 1 : 0);
  row.field("streams", link.streams > 0 ? std::to_string(link.streams) : "null");
  row.text_or_null("congestion", link.congestion);
  row.count("threads", thread_count());
  row.count("segment_elems", options.group.segment_elems);
  row.count("iters", options.n_iters);
}

RowPrinter::RowPrinter(Group& group, const WorldOptions& options, const std::string& header)
    : speaks_(group.rank() == 0), facts_(facts_here(options.commit)) {
  std::string problem;
  if (speaks_) {
    try {
      json_ = std::make_unique<OutputFile>(options.json);
    } catch (const BadArgument& error) {
      problem = error.what();
    }
  }
  problem = gather_text(group, problem).front();
  if (!problem.empty()) throw BadArgument(problem);
  if (!speaks_ || json_->is_stdout()) return;
  table_ = stdout;
  std::fprintf(table_, "# machine       %s; %s; %s\n", facts_.machine().c_str(),
               facts_.kernel.c_str(), facts_.compiler.c_str());
  std::fprintf(table_, "# date, commit  %s, %s\n", facts_.date.c_str(),
               facts_.commit.empty() ? "not given (--commit)" : facts_.commit.c_str());
  std::fprintf(table_, "# ranks         %d, over %s; segments of %zu elements; %zu threads\n",
               group.size(), name_of(options.carrier), options.group.segment_elems, thread_count());
  std::fprintf(table_, "# runs          %zu timed after %zu; verification %s\n#\n%s",
               options.n_iters, options.n_warmup, options.check ? "on" : "off", header.c_str());
}

void RowPrinter::add(const std::string& name, const std::string& line, JsonRow json,
                     const Verdict& verdict) {
  if (verdict.verified == Verified::no) failures_.push_back(name + ": " + verdict.failure);
  if (!speaks_) return;
  json.field("verified", json_verified(verdict.verified));
  json.facts(facts_);
  if (json_->get() != nullptr) {
    std::fprintf(json_->get(), "%s\n", json.str().c_str());
    std::fflush(json_->get());
  }
  if (table_ == nullptr) return;
  std::fprintf(table_, "%s %s\n", line.c_str(), word_for(verdict.verified));
  std::fflush(table_);
}

int RowPrinter::finish() const {
  if (failures_.empty()) return 0;
  if (speaks_) {
    std::fprintf(stderr, "%zu rows are wrong:\n", failures_.size());
    for (const std::string& failure : failures_)
      std::fprintf(stderr, "  %s\n", failure.c_str());
  }
  return kExitWrong;
}

}  // namespace fedcomm::bench
