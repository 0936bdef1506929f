// The receiving half of a link: which records have arrived, and the frames that are being put
// together. It opens no socket; streams ask it where the bytes of a piece go.
#pragma once

#include <functional>
#include <set>
#include <unordered_map>
#include <vector>

#include "transport/tcp_matching.h"
#include "transport/tcp_wire.h"

namespace fedcomm::tcp {

class Receiver {
 public:
  /// `taken` is told of every frame whose sender waits for it.
  Receiver(int rank, std::size_t early_bytes, Matcher& matcher,
           std::function<void(std::uint64_t)> taken);

  struct Target {
    IncomingPtr frame;          // null: the bytes are to be forgotten
    std::byte* data = nullptr;  // null: likewise
  };
  /// Where a piece goes. Throws corrupt_frame for one that cannot be, peer_lost where the peer
  /// sends more than it may.
  Target begin(const Record& record);
  /// So many bytes of a piece have come.
  void progress(const Record& record, const Target& target, std::size_t n_bytes);
  /// All bytes of a piece have come.
  void finish(const Record& record, const Target& target);
  /// A numbered record without bytes. Returns whether it is new.
  bool accept(const Record& record);

  /// Bytes of frames, each counted once.
  std::uint64_t n_received() const { return n_received_; }
  /// Everything below has arrived.
  std::uint64_t next() const { return next_; }
  void post(GroupId id, Tag tag, PostedReceive receive);
  /// A frame of this link that its channel, now closed, will not ask for.
  void drop(const IncomingPtr& frame);

 private:
  bool is_new(std::uint64_t number) const { return number >= next_ && !ahead_.contains(number); }
  void mark(std::uint64_t number);
  IncomingPtr frame_of(const Record& record);
  void conclude(Incoming& frame);

  int rank_;
  std::size_t early_limit_;
  Matcher& matcher_;
  std::function<void(std::uint64_t)> taken_;
  std::shared_ptr<BufferPool> pool_;

  std::uint64_t next_ = 1;
  std::set<std::uint64_t> ahead_;  // arrived, but something before them has not
  std::unordered_map<std::uint64_t, IncomingPtr> frames_;     // incomplete, by number
  std::vector<IncomingPtr> deferred_;                         // until all before them has arrived
  std::unordered_map<std::uint64_t, std::size_t> n_partial_;  // of pieces that are not complete
  std::uint64_t n_received_ = 0;
  std::size_t early_bytes_ = 0;
};

}  // namespace fedcomm::tcp
