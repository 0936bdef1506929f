// The sending half of a link: frames that wait, pieces that were handed to a stream, and what of
// them has arrived. It opens no socket; streams ask it for their next record.
//
// A record keeps its number until it is acknowledged. What was on a stream that is lost is due
// again, before anything new. A frame is done when the kernel has it, so that an operation does not
// wait for the way back. But of frames above kEagerBytes that the receiver has not put where they
// were wanted, no more than kAheadBytes are done early: so a sender that runs ahead is held back
// by the window of its operation, and what arrives early is bounded.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "transport/tcp_matching.h"
#include "transport/tcp_wire.h"

namespace fedcomm::tcp {

constexpr std::size_t kEagerBytes = 64u << 10;
constexpr std::size_t kAheadBytes = 64u << 20;
// What fits into the first packets of a stream that has rested; see Takes.
constexpr std::size_t kShortBytes = 8u << 10;

/// What a stream is for. A lone packet on a stream that has rested is acknowledged late, and BBR
/// then goes looking for the round trip: it sends four packets at a time for 200 ms, just when data
/// follows
/// ("PROBE_RTT", net/ipv4/tcp_bbr.c). So what is short travels apart from the data.
enum class Takes : std::uint8_t {
  all,     // the only stream
  shorts,  // frames of up to kShortBytes, and records without bytes
  data,
};

/// A frame on its way out.
struct Outgoing {
  GroupId channel;
  Tag tag;
  BufferPtr frame;  // null once nothing of it can be needed again
  std::size_t n_bytes = 0;
  RequestId id = 0;
  std::shared_ptr<Inbox> inbox;
  std::size_t member = 0;  // of the channel: whom it goes to

  std::uint64_t number = 0;  // of its first piece; 0 before there is one
  bool ordered = false;
  std::size_t n_cut = 0;      // bytes in pieces
  std::size_t n_written = 0;  // bytes that the kernel has taken, each counted once
  std::size_t n_unacked = 0;  // pieces
  bool reported = false;
  bool ahead = false;  // reported although nobody has taken it

  bool all_cut() const { return number != 0 && n_cut == n_bytes; }
};

using OutgoingPtr = std::shared_ptr<Outgoing>;

class Sender {
 public:
  void queue(OutgoingPtr frame);
  void notice_taken(std::uint64_t frame);
  void notice_goodbye();

  /// Whether a stream with room would get something.
  bool has_work(Takes takes = Takes::all) const {
    const bool has_shorts = !due_shorts_.empty() || !shorts_.empty();
    const bool has_data = !due_.empty() || !waiting_.empty();
    return (takes != Takes::data && has_shorts) || (takes != Takes::shorts && has_data);
  }

  struct Piece {
    Record record;
    OutgoingPtr frame;  // of a piece; else null
    int stream = -1;
    std::size_t n_written = 0;  // the most that any stream has written of its bytes

    std::span<const std::byte> bytes() const {
      return frame ? std::span<const std::byte>(frame->frame->bytes())
                         .subspan(record.offset, record.n_bytes)
                   : std::span<const std::byte>();
    }
  };
  /// The next record for a stream, `n_streams` of which share the data; null if there is none.
  const Piece* next(int stream, Takes takes, int n_streams);
  /// The kernel has so many bytes of a piece.
  void written(std::uint64_t number, std::size_t n_bytes);
  /// Everything below this number has arrived. Throws corrupt_frame for what was never sent.
  void acknowledge(std::uint64_t number);
  void taken(std::uint64_t frame);
  /// What this stream had not delivered is due again. Returns its bytes.
  std::size_t lose(int stream);

  /// Frames of a closed channel that have not begun are not sent, control frames excepted.
  void forget(GroupId id);
  /// Everything ends with this error.
  void fail(ErrorKind kind, const std::string& why);
  /// Bytes of frames that the kernel has taken, each counted once.
  std::uint64_t n_written() const { return n_written_; }
  std::size_t waiting_bytes() const { return waiting_bytes_; }
  bool drained() const { return !has_work() && pieces_.empty(); }

 private:
  using TagKey = std::tuple<GroupId, std::uint32_t, std::uint32_t>;

  Piece* cut(std::deque<OutgoingPtr>& queue, int n_streams);
  Piece* take(std::deque<std::uint64_t>& due);
  Piece& number(Record record, OutgoingPtr frame);
  void report(Outgoing& frame, ErrorKind kind, const std::string& why);
  static TagKey key_of(const Outgoing& frame) {
    return {frame.channel, frame.tag.operation, frame.tag.slot};
  }

  std::deque<OutgoingPtr> shorts_;
  std::deque<OutgoingPtr> waiting_;
  std::size_t waiting_bytes_ = 0;  // of those
  std::deque<std::uint64_t> due_shorts_,
      due_;                   // numbers of records that a stream should take first
  std::deque<Piece> pieces_;  // not acknowledged, by number from first_
  std::uint64_t first_ = 1;
  std::uint64_t n_written_ = 0;
  std::map<TagKey, int> under_way_;  // frames that have begun and not arrived
  std::unordered_map<std::uint64_t, OutgoingPtr> untaken_;  // by number
  std::size_t ahead_bytes_ = 0;                             // of those that are reported
};

}  // namespace fedcomm::tcp
