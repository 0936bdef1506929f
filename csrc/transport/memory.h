// The memory transport: ranks are threads of one process. For tests, and the model of what a
// transport promises. It can also fail on purpose.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "transport/transport.h"

namespace fedcomm {

/// What happens to frames between two ranks, from the n-th on.
enum class Fault : std::uint8_t {
  drop,      // this frame is lost
  corrupt,   // one bit of this frame is flipped
  truncate,  // this frame loses its second half
  silence,   // this and all later frames are lost
  hold,      // this frame arrives when release() is called
};

class MemoryHub : public std::enable_shared_from_this<MemoryHub> {
 public:
  explicit MemoryHub(int n_ranks) : n_ranks_(n_ranks) {}

  int size() const { return n_ranks_; }
  /// The same object for as long as somebody holds it.
  std::shared_ptr<Fabric> fabric(int rank);

  /// The `after_frames`-th frame (from 0) that rank `source` sends to `destination` from now on
  /// meets `fault`.
  void inject(int source, int destination, Fault fault, std::size_t after_frames);
  /// Lets every frame arrive that was held.
  void release();

 private:
  friend class MemoryTransport;
  struct Box;
  struct Planned {
    Fault fault;
    std::size_t frames_left;
  };

  std::shared_ptr<Box> box(std::uint32_t group_id, int rank);
  std::optional<Fault> next_fault(int source, int destination);
  void hold(std::function<void()> deliver);

  int n_ranks_;
  std::mutex mutex_;
  std::map<std::pair<std::uint32_t, int>, std::shared_ptr<Box>> boxes_;
  std::map<std::pair<int, int>, Planned> faults_;
  std::vector<std::function<void()>> held_;
  std::map<int, std::weak_ptr<Fabric>> fabrics_;
};

}  // namespace fedcomm
