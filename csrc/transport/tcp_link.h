// All that connects this rank with one other: the streams, what is sent over them and what arrives.
// The rank with the higher number connects; so rank 0, whose address everybody must know anyhow, is
// the one that must be reachable, and a cloud that cannot be reached from outside gets the highest
// ranks. It dials again, ever more rarely, for as long as the fabric is open; when to give up is
// the deadline of the operation that waits.
//
// Used by the fabric's thread alone, LinkStatus excepted.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "transport/tcp_pacer.h"
#include "transport/tcp_stream.h"

namespace fedcomm::tcp {

/// What other threads may know of a link.
class LinkStatus {
 public:
  /// Why there is no connection now; empty while there is one.
  std::string trouble() const {
    const std::lock_guard lock(mutex_);
    return trouble_;
  }
  void set_trouble(std::string text) {
    const std::lock_guard lock(mutex_);
    trouble_ = std::move(text);
  }

 private:
  mutable std::mutex mutex_;
  std::string trouble_;
};

enum class Role : std::uint8_t { dials, accepts };

class Link {
 public:
  Link(int rank, Role role, std::vector<Address> addresses, const TcpOptions& options,
       Matcher& matcher);

  int rank() const { return rank_; }
  const std::shared_ptr<LinkStatus>& status() const { return status_; }

  // --- frames ---
  void send(OutgoingPtr frame);
  void post(GroupId id, Tag tag, PostedReceive receive, Inbox& inbox);
  Sender& sender() { return sender_; }
  Receiver& receiver() { return receiver_; }

  // --- connections ---
  /// A group has both ranks: from now on there should be all streams, and not only one that tells
  /// whether the peer is there.
  void use() { is_used_ = true; }
  /// Streams that should be dialled now; each is either begun or reported as failed.
  std::vector<int> due_dials(Clock::time_point now);
  const Address& next_address();
  int n_wanted() const { return n_wanted_; }
  void dial_failed(int stream, const std::string& why);
  void adopt(Fd fd, int stream, int n_streams);
  /// Null where there is none.
  Stream* stream(int index);
  /// The process behind a hello. Returns whether it is the one that was there before.
  bool recognise(std::uint64_t incarnation);
  /// For ever: everything that waits, and all that follows, ends with this error.
  void fail(ErrorKind kind, const std::string& why);
  bool is_over() const { return failure_.has_value(); }

  // --- progress ---
  /// Reads and writes what can be, up to a limit. Returns whether there is more to do at once.
  bool pump();
  /// When something is due although no socket stirs.
  Clock::time_point next_deadline() const;
  void say_goodbye();
  /// Whether waiting longer would bring nothing more across.
  bool is_settled(Clock::time_point now) const;

  // --- the pace, see tcp_pacer.h ---
  /// Whether the path is a network, and not inside this host.
  bool is_paced() const { return is_paced_; }
  Pacer::Load load() const;
  std::size_t backlog_bytes() const { return sender_.waiting_bytes(); }
  /// What all streams have carried so far.
  Pacer::Sample carried(Clock::time_point now) const;
  /// The part of a common uplink that this link may use (0: all it can), and what is lost there.
  void share(double bytes_per_s, double common_loss);

  LinkStats stats() const;
  void inject(const TcpFault& fault);

 private:
  struct Slot {
    std::unique_ptr<Stream> stream;
    bool dialling = false;
    bool was_connected = false;
    Clock::time_point next_try{};
    std::chrono::milliseconds pause{};
    std::string why;  // the last attempt failed
  };
  struct Failure {
    ErrorKind kind;
    std::string why;
  };

  Io read(Stream& stream);
  Io write(Stream& stream);
  void handle(Stream& stream, const Record& record);
  void begin_piece(Stream& stream, const Record& record);
  void end_piece(Stream& stream);
  void lose(int index, const std::string& why);
  bool has_room(Takes takes) const;
  void note_stall(Clock::time_point now);
  static void count(Pacer::Sample& sums, const Stream& stream);
  Takes takes_of(const Stream& stream) const;
  int n_active() const;
  bool is_active(const Stream& stream) const;
  bool spares(Stream& stream);
  void count_enough();
  int place_of(const Stream& stream) const;
  void pace(Clock::time_point now);
  double pace_limit() const;
  void limit_paces();
  bool ack_is_due(Clock::time_point now) const;
  void retire(const Stream& stream);
  std::string where() const;
  int n_to_dial() const;
  void update_trouble(const std::string& why);

  int rank_;
  Role role_;
  std::vector<Address> addresses_;
  std::size_t next_address_ = 0;
  std::string address_text_;
  const TcpOptions& options_;
  Matcher& matcher_;
  std::shared_ptr<LinkStatus> status_ = std::make_shared<LinkStatus>();
  Sender sender_;
  Receiver receiver_;
  std::vector<Slot> slots_;
  bool is_used_ = false;  // some group here has both ranks: else one stream is enough
  int n_wanted_ = 1;
  int n_connected_ = 0;
  std::size_t first_slot_ = 0;  // rotates, so that no stream is always asked first
  std::optional<std::uint64_t> incarnation_;
  std::optional<std::uint64_t> goodbye_;  // number of the peer's
  std::optional<Failure> failure_;
  bool left_ = false;  // goodbye was said here
  Clock::time_point down_since_ = Clock::now();

  std::uint64_t acked_ = 1;      // what the peer was last told
  std::size_t n_since_ack_ = 0;  // bytes received
  Clock::time_point ack_by_{};   // while something is not acknowledged

  Pacer pacer_;
  bool is_paced_ = false;
  double share_ = 0;  // of the uplink; 0: all
  bool is_limited_ = false;
  int n_enough_ = kMaxStreams;  // streams for what the path carries
  int n_spans_fewer_ = 0;       // in a row, for which fewer would be

  LinkStats stats_;     // counters of what has ended; see stats()
  Pacer::Sample gone_;  // of streams that are
  std::optional<Clock::time_point> stalled_since_;
};

}  // namespace fedcomm::tcp
