#include "collective/links.h"

#include <algorithm>

#include "base/error.h"
#include "wire/bytes.h"

namespace fedcomm {
namespace {

constexpr std::uint32_t kUnknownLoss = 0xffffffffu;
constexpr std::uint32_t kAll = 1'000'000'000u;
// Sums of any of these are exact in a double, so no member rounds otherwise than another.
constexpr std::uint64_t kFastest = 1'000'000'000'000u;              // a terabyte a second
constexpr std::uint64_t kLongest = 24u * 3600u * 1'000'000'000ull;  // a day

}  // namespace

LinkTable::LinkTable(int n_members)
    : n_(n_members), facts_(static_cast<std::size_t>(n_members) * static_cast<std::size_t>(n_)) {}

bool LinkTable::is_complete() const {
  for (int from = 0; from < n_; ++from) {
    for (int to = 0; to < n_; ++to) {
      if (from == to) continue;
      if (at(from, to).bytes_per_s == 0 || at(from, to).round_trip_ns == 0) return false;
    }
  }
  return true;
}

std::vector<std::byte> write_report(const LinkReport& report) {
  std::vector<std::byte> bytes(link_report_bytes(static_cast<int>(report.to.size())));
  ByteWriter writer(bytes);
  for (std::size_t i = 0; i < report.to.size(); ++i) {
    const LinkFacts& facts = report.to[i];
    writer.put(std::min(facts.bytes_per_s, kFastest));
    writer.put(std::min(facts.round_trip_ns, kLongest));
    writer.put(facts.lost_billionths ? std::min(*facts.lost_billionths, kAll) : kUnknownLoss);
    writer.put(std::min(report.received_rate[i], kFastest));
  }
  writer.put(std::min(report.coding_rate, kFastest));
  return bytes;
}

LinkReport read_report(std::span<const std::byte> bytes, int n_members) {
  ByteReader reader(bytes);
  LinkReport report;
  for (int i = 0; i < n_members; ++i) {
    LinkFacts facts;
    facts.bytes_per_s = reader.get<std::uint64_t>();
    facts.round_trip_ns = reader.get<std::uint64_t>();
    const auto lost = reader.get<std::uint32_t>();
    if (lost != kUnknownLoss) facts.lost_billionths = lost;
    report.received_rate.push_back(reader.get<std::uint64_t>());
    if (facts.bytes_per_s > kFastest || facts.round_trip_ns > kLongest ||
        facts.lost_billionths.value_or(0) > kAll || report.received_rate.back() > kFastest) {
      fail(ErrorKind::corrupt_frame, "a measurement with numbers that no link can have");
    }
    report.to.push_back(facts);
  }
  report.coding_rate = reader.get<std::uint64_t>();
  if (report.coding_rate > kFastest) {
    fail(ErrorKind::corrupt_frame, "a measurement with a rate that no machine codes at");
  }
  return report;
}

LinkTable merge_reports(std::span<const LinkReport> reports) {
  LinkTable table(static_cast<int>(reports.size()));
  for (std::size_t from = 0; from < reports.size(); ++from) {
    const std::uint64_t rate = reports[from].coding_rate;
    if (rate > 0 && (table.coding_rate == 0 || rate < table.coding_rate)) table.coding_rate = rate;
    for (std::size_t to = 0; to < reports.size(); ++to) {
      if (from == to) continue;
      LinkFacts& facts = table.at(static_cast<int>(from), static_cast<int>(to));
      facts = reports[from].to[to];
      facts.bytes_per_s = std::max(facts.bytes_per_s, reports[to].received_rate[from]);
    }
  }
  return table;
}

}  // namespace fedcomm
