// LinkTable: what is known of the link from every member of a group to every other, and of how fast
// members compute. The same on all members, so that choices made by it are the same: whole numbers,
// which travel as they are. How they are measured is in measure.h, what they are good for in
// choose.h and ring_order.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace fedcomm {

/// One direction of a pair.
struct LinkFacts {
  std::uint64_t bytes_per_s = 0;                 // as operations get it; 0: not known
  std::uint64_t round_trip_ns = 0;               // of an empty frame and its answer; 0: not known
  std::optional<std::uint32_t> lost_billionths;  // of TCP's segments, sent again; where known

  bool operator==(const LinkFacts&) const = default;
};

class LinkTable {
 public:
  explicit LinkTable(int n_members);

  int n_members() const { return n_; }
  LinkFacts& at(int from, int to) { return facts_[index(from, to)]; }
  const LinkFacts& at(int from, int to) const { return facts_[index(from, to)]; }
  /// Values, in bytes of float32 a second, that the slowest member codes or adds; 0: not known.
  std::uint64_t coding_rate = 0;
  /// Whether rate and round trip of every link are known.
  bool is_complete() const;
  bool operator==(const LinkTable&) const = default;

 private:
  std::size_t index(int from, int to) const {
    return static_cast<std::size_t>(from) * static_cast<std::size_t>(n_) +
           static_cast<std::size_t>(to);
  }

  int n_;
  std::vector<LinkFacts> facts_;
};

/// What a member tells the others: its links, the rates at which it has received, and at which it
/// codes.
struct LinkReport {
  std::vector<LinkFacts> to;                 // by member
  std::vector<std::uint64_t> received_rate;  // bytes a second, by member; 0: nothing to tell
  std::uint64_t coding_rate = 0;             // as the table's; 0: nothing to tell
};

constexpr std::size_t link_report_bytes(int n_members) {
  return 8 + 28 * static_cast<std::size_t>(n_members);
}
std::vector<std::byte> write_report(const LinkReport& report);
/// Throws corrupt_frame on numbers that no link can have.
LinkReport read_report(std::span<const std::byte> bytes, int n_members);

/// A rate that a receiver has seen counts where it is the higher one: the link can do it. Of coding
/// rates the least counts, of those that are told.
LinkTable merge_reports(std::span<const LinkReport> reports);

}  // namespace fedcomm
