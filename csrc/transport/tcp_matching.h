// Which frame goes into which buffer. A channel is one group, at one epoch, on this rank; it holds
// the receives that wait for a frame, and the frames that came before their receive.
//
// Used by the fabric's thread alone. Knows nothing of sockets.
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/error.h"
#include "transport/tcp_inbox.h"

namespace fedcomm::tcp {

/// Frames from one rank in one channel with one tag: they arrive in order.
struct MatchKey {
  int rank = 0;
  std::uint32_t operation = 0;
  std::uint32_t slot = 0;
  auto operator<=>(const MatchKey&) const = default;
};

struct PostedReceive {
  RequestId id = 0;
  BufferPtr buffer;
};

/// A frame on its way in.
struct Incoming {
  GroupId channel;
  MatchKey key;
  std::uint64_t number = 0;  // of its first piece: tells frames of one link apart, in order
  std::size_t n_bytes = 0;
  std::size_t n_received = 0;
  bool ordered = false;  // not before everything that was sent earlier
  BufferPtr buffer;      // where its bytes go: the posted one, one of our own, or none
  bool early = false;    // the buffer is our own
  bool complete = false;
  bool matched = false;
  PostedReceive receive;  // once matched; without a buffer where the frame is to be forgotten
};

using IncomingPtr = std::shared_ptr<Incoming>;

/// All channels of a rank.
class Matcher {
 public:
  void open(GroupId id, std::vector<int> ranks, std::shared_ptr<Inbox> inbox);
  /// Frames of this epoch, and older ones, are dropped from now on. Returns those that wait, marked
  /// as matched with nothing.
  std::vector<IncomingPtr> close(GroupId id);

  /// A frame of which the first piece has come. Matches it if a receive waits for it and nothing
  /// that was sent earlier may be meant (`all_before`: has arrived).
  void arrive(const IncomingPtr& frame, bool all_before);
  /// A frame that may not have been the next one before is now. Returns whether it was matched.
  bool retry(const IncomingPtr& frame);
  /// Returns the frame that it was matched with, if one was waiting.
  IncomingPtr post(GroupId id, const MatchKey& key, PostedReceive receive,
                   std::uint64_t all_before);
  void cancel(GroupId id, RequestId receive);
  /// Takes a receive back. Returns whether it still waited.
  bool withdraw(GroupId id, const MatchKey& key, RequestId receive);
  /// Ends all receives that wait for `rank`.
  void fail(int rank, ErrorKind kind, const std::string& why);

  /// Hands a frame that is complete and matched to its group.
  void deliver(Incoming& frame);
  void moved(GroupId id, int rank, std::size_t n_bytes);

  bool is_closed(GroupId id) const;

 private:
  struct Channel {
    std::vector<int> ranks;        // empty before it is opened here
    std::shared_ptr<Inbox> inbox;  // null before
    std::map<MatchKey, std::deque<PostedReceive>> posted;
    std::map<MatchKey, std::map<std::uint64_t, IncomingPtr>> waiting;  // by number
  };

  void match(Incoming& frame, PostedReceive receive);

  std::map<GroupId, Channel> channels_;
  std::map<std::uint32_t, std::uint32_t> closed_;  // group -> newest epoch that was closed
};

}  // namespace fedcomm::tcp
