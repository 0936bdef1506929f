// Transport: moves frames, as bytes, between the members of one group. It knows nothing of floats,
// codecs or plans, and never blocks but in wait().
//
// A frame is received into a buffer posted for its (member, tag). Frames of equal member and tag
// arrive in the order in which they were sent; others in any order. Used by one thread (the group's
// progress thread), wake() excepted.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"

namespace fedcomm {

using RequestId = std::uint64_t;

/// Which frame of a group: the operation's number and the frame's number inside the operation.
struct Tag {
  std::uint32_t operation = 0;
  std::uint32_t slot = 0;
};

struct Completion {
  RequestId id = 0;
  std::size_t n_bytes = 0;
  std::string error;  // empty: it went well
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
};

/// Opens transports for groups among `size()` ranks.
class Fabric {
 public:
  virtual ~Fabric() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Purely local. Two groups with a pair of ranks in common need different ids.
  virtual std::unique_ptr<Transport> open(std::uint32_t group_id, std::vector<int> ranks) = 0;

  /// How often all ranks opened a group together, and the largest id of a group split from another
  /// that this rank has seen: what new ids are made of.
  std::atomic<std::uint32_t> n_worlds{0};
  std::atomic<std::uint32_t> newest_split{0};
};

}  // namespace fedcomm
