// Transport: moves frames, as bytes, between the members of one group. It knows nothing of floats,
// codecs or plans, and never blocks but in wait().
//
// A frame is received into a buffer posted for its (member, tag). Frames of equal member and tag
// arrive in the order in which they were sent; others in any order. Used by one thread (the group's
// progress thread), wake() excepted; requests may get on only while it calls wait() and poll().
#pragma once

#include <atomic>
#include <chrono>
#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/error.h"

namespace fedcomm {

using RequestId = std::uint64_t;

/// Which group, and how often it has been rebuilt.
struct GroupId {
  std::uint32_t group = 0;
  std::uint32_t epoch = 0;
  auto operator<=>(const GroupId&) const = default;
};

/// Which frame of a group: the operation's number and the frame's number inside the operation.
struct Tag {
  std::uint32_t operation = 0;
  std::uint32_t slot = 0;
};

struct Completion {
  RequestId id = 0;
  std::size_t n_bytes = 0;
  std::string error;                          // empty: it went well
  ErrorKind kind = ErrorKind::corrupt_frame;  // of the error
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string_view name() const = 0;

  /// Sends the first `n_bytes` of `frame`, which must not change until the request completes.
  virtual RequestId send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) = 0;
  /// Receives one frame of at most buffer->size() bytes; a longer one completes with an error.
  virtual RequestId receive(int member, Tag tag, BufferPtr buffer) = 0;
  /// The request will not be reported. Its buffer stays alive for as long as it is written or read.
  virtual void cancel(RequestId id) = 0;

  /// Appends what has completed since the last call.
  virtual void poll(std::vector<Completion>& done) = 0;
  /// Blocks until poll may have something to say, wake() was called, or the time is over.
  virtual void wait(std::chrono::microseconds at_most) = 0;
  virtual void wake() = 0;

  /// Whether wait() ends by itself as soon as there is something to say. Else it must be short, and
  /// often.
  virtual bool wakes_by_itself() const = 0;
  /// Bytes of frames that came from a member or left for it, of incomplete frames as well: while
  /// this grows, the member is slow and not dead. Always 0 where a transport cannot tell.
  virtual std::uint64_t moved_bytes(int member) const {
    static_cast<void>(member);
    return 0;
  }
  /// Why there is no way to a member now; empty where there is one, or where nobody can tell.
  virtual std::string unreachable(int member) const {
    static_cast<void>(member);
    return {};
  }
};

/// What is known of the way to a rank below the frames, since the fabric was opened.
struct PathFacts {
  std::uint64_t segments_sent = 0;           // packets, as the sender's system counts them
  std::uint64_t segments_retransmitted = 0;  // those among them that were sent again
  double stalled_s = 0;                      // with frames to send and no room for them
  double round_trip_s = 0;                   // smoothed; 0: unknown
};

/// Opens transports for groups among `size()` ranks.
class Fabric {
 public:
  virtual ~Fabric() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Purely local. Two groups with a pair of ranks in common need different ids. A transport may
  /// ignore the epoch, and then deliver frames of an earlier one.
  virtual std::unique_ptr<Transport> open(GroupId id, std::vector<int> ranks) = 0;

  /// None where the transport cannot tell.
  virtual std::optional<PathFacts> path_facts(int rank) {
    static_cast<void>(rank);
    return std::nullopt;
  }

  /// How often all ranks opened a group together, and the largest id of a group split from another
  /// that this rank has seen: what new ids are made of.
  std::atomic<std::uint32_t> n_worlds{0};
  std::atomic<std::uint32_t> newest_split{0};
};

}  // namespace fedcomm
