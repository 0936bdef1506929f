// One socket of a link, with the record that is being sent and the one that is being received.
// Every call makes one system call at most and never blocks. What is sent and where bytes go is
// decided by the link.
#pragma once

#include <array>
#include <chrono>
#include <optional>

#include "transport/tcp_receiver.h"
#include "transport/tcp_sender.h"
#include "transport/tcp_socket.h"
#include "transport/tcp_wire.h"

namespace fedcomm::tcp {

using Clock = std::chrono::steady_clock;

enum class Io : std::uint8_t { nothing, moved, ended };

class Stream {
 public:
  Stream(Fd fd, int index) : fd_(std::move(fd)), index_(index) {}

  int fd() const { return fd_.get(); }
  int index() const { return index_; }

  /// The kernel says that there may be something to read, or room to write.
  void note_readable() { readable_ = true; }
  void note_writable() { writable_ = true; }
  void note_hangup() { readable_ = hung_up_ = true; }
  bool can_read() const { return readable_ && !frozen_; }
  bool can_write() const { return writable_ && !frozen_; }

  // --- sending ---
  /// Whether BBR lets out four segments at a time, to find the round trip, as it does for 200 ms
  /// every 10 s.
  bool is_resting(Clock::time_point now);
  bool is_sending() const { return n_to_send_ > 0; }
  /// Begins a record, and an acknowledgement before it; one of them may be missing.
  void begin_sending(std::optional<std::uint64_t> ack, const Sender::Piece* piece);
  Io write();
  /// Number of the record that was begun last, and how many bytes of its piece the kernel has.
  std::uint64_t sending() const { return sending_; }
  std::size_t n_payload_sent() const {
    return n_sent_of_record_ > n_head_ ? n_sent_of_record_ - n_head_ : 0;
  }
  std::size_t n_sent() const { return n_sent_; }

  // --- receiving ---
  struct Arrival {
    std::size_t n_payload = 0;     // bytes of the current piece
    bool piece_ended = false;      // with those bytes
    std::optional<Record> record;  // a record whose header is complete now
  };
  /// Throws corrupt_frame. A record of a piece must be followed by expect_payload.
  Io read(Arrival& arrival);
  void expect_payload(const Record& record, Receiver::Target target);
  const Record& record() const { return record_; }
  const Receiver::Target& target() const { return target_; }
  std::size_t n_payload_received() const { return record_.n_bytes - n_payload_left_; }
  /// The piece has come on another stream: what is left of it is to be forgotten.
  void forget_target() { target_ = {}; }
  bool is_receiving(std::uint64_t number) const {
    return n_payload_left_ > 0 && record_.number == number;
  }

  std::string why_ended() const { return why_ended_; }
  void inject(const TcpFault& fault);
  /// When a slowed stream may send again.
  std::optional<Clock::time_point> resumes_at() const { return resumes_at_; }
  void resume(Clock::time_point now);

 private:
  std::size_t allowed_to_send() const;
  void after_sending(std::size_t n_bytes);

  Fd fd_;
  int index_;
  bool readable_ = true, writable_ = true, hung_up_ = false;

  std::array<std::byte, 2 * kRecordBytes> head_;
  std::size_t n_head_ = 0;
  std::span<const std::byte> payload_;
  BufferPtr keep_;  // of the payload
  std::size_t n_to_send_ = 0, n_sent_of_record_ = 0;
  std::uint64_t sending_ = 0;
  std::size_t n_sent_ = 0;
  std::optional<Clock::time_point> resting_since_;

  std::array<std::byte, kRecordBytes> header_;
  std::size_t n_header_ = 0;
  Record record_;
  Receiver::Target target_;
  std::size_t n_payload_left_ = 0;

  std::string why_ended_;
  std::optional<TcpFault> fault_;
  std::size_t n_before_fault_ = 0;
  bool frozen_ = false;
  std::size_t slow_bytes_ = 0;  // in a millisecond; 0: not slowed
  std::optional<Clock::time_point> resumes_at_;
};

}  // namespace fedcomm::tcp
