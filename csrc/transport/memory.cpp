#include "transport/memory.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <tuple>

#include "base/error.h"

namespace fedcomm {

/// A frame up to this size is copied and its send completes at once; a larger one waits, where it
/// is, for the receive. So a sender that runs ahead is held back by its window, as on a network.
constexpr std::size_t kEagerBytes = 64u << 10;

/// What has arrived for one rank of one group, and what it waits for.
struct MemoryHub::Box {
  using Key = std::tuple<int, std::uint32_t, std::uint32_t>;  // source rank, operation, slot
  struct Posted {
    RequestId id;
    BufferPtr buffer;
  };
  struct Arrived {
    BufferPtr frame;
    std::size_t n_bytes;
    std::weak_ptr<Box> sender;  // to be told when the frame has been taken; null if it was copied
    RequestId send_id;
  };

  std::mutex mutex;
  std::condition_variable changed;
  bool woken = false;
  RequestId next_id = 1;
  std::map<Key, std::deque<Posted>> posted;
  std::map<Key, std::deque<Arrived>> arrived;
  std::vector<Completion> done;

  RequestId new_id() {
    const std::lock_guard lock(mutex);
    return next_id++;
  }

  void complete(Completion completion) {
    const std::lock_guard lock(mutex);
    done.push_back(std::move(completion));
    changed.notify_all();
  }

  /// Copies a frame to where it is wanted. The lock is not held: both sides keep their buffers.
  void take(const Posted& receive, const Arrived& frame) {
    Completion completion{receive.id, frame.n_bytes, {}};
    if (frame.n_bytes > receive.buffer->size()) {
      completion.error = "frame of " + std::to_string(frame.n_bytes) + " bytes, room for " +
                         std::to_string(receive.buffer->size());
    } else if (frame.n_bytes > 0) {
      std::memcpy(receive.buffer->data(), frame.frame->data(), frame.n_bytes);
    }
    if (const auto sender = frame.sender.lock()) {
      sender->complete({frame.send_id, frame.n_bytes, {}});
    }
    complete(std::move(completion));
  }

  void deliver(const Key& key, Arrived frame) {
    std::unique_lock lock(mutex);
    auto& waiting = posted[key];
    if (waiting.empty()) {
      arrived[key].push_back(std::move(frame));
      return;
    }
    const Posted receive = std::move(waiting.front());
    waiting.pop_front();
    lock.unlock();
    take(receive, frame);
  }

  void post(const Key& key, Posted receive) {
    std::unique_lock lock(mutex);
    auto& waiting = arrived[key];
    if (waiting.empty()) {
      posted[key].push_back(std::move(receive));
      return;
    }
    const Arrived frame = std::move(waiting.front());
    waiting.pop_front();
    lock.unlock();
    take(receive, frame);
  }
};

class MemoryTransport final : public Transport {
 public:
  MemoryTransport(std::shared_ptr<MemoryHub> hub, std::uint32_t group_id, std::vector<int> ranks,
                  int rank)
      : hub_(std::move(hub)),
        group_id_(group_id),
        ranks_(std::move(ranks)),
        rank_(rank),
        box_(hub_->box(group_id, rank)) {}

  std::string_view name() const override { return "memory"; }

  RequestId send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) override {
    const int destination = ranks_[static_cast<std::size_t>(member)];
    const auto fault = hub_->next_fault(rank_, destination);
    const RequestId id = box_->new_id();
    const bool lost = fault == Fault::drop || fault == Fault::silence;
    MemoryHub::Box::Arrived arriving{std::move(frame), n_bytes, box_, id};
    if (fault || n_bytes <= kEagerBytes) {
      auto copy = std::make_shared<Buffer>(n_bytes);
      if (n_bytes > 0) std::memcpy(copy->data(), arriving.frame->data(), n_bytes);
      if (fault == Fault::truncate) arriving.n_bytes /= 2;
      if (fault == Fault::corrupt) copy->data()[n_bytes - 1 - n_bytes / 8] ^= std::byte{0x10};
      arriving.frame = std::move(copy);
      arriving.sender.reset();
      box_->complete({id, n_bytes, {}});
    }
    if (lost) return id;
    const MemoryHub::Box::Key key{rank_, tag.operation, tag.slot};
    auto box = hub_->box(group_id_, destination);
    if (fault == Fault::hold) {
      hub_->hold([box, key, arriving] { box->deliver(key, arriving); });
    } else {
      box->deliver(key, std::move(arriving));
    }
    return id;
  }

  RequestId receive(int member, Tag tag, BufferPtr buffer) override {
    const RequestId id = box_->new_id();
    box_->post({ranks_[static_cast<std::size_t>(member)], tag.operation, tag.slot},
               {id, std::move(buffer)});
    return id;
  }

  void cancel(RequestId id) override {
    const std::lock_guard lock(box_->mutex);
    for (auto& [key, waiting] : box_->posted) {
      std::erase_if(waiting, [id](const auto& posted) { return posted.id == id; });
    }
    std::erase_if(box_->done, [id](const Completion& each) { return each.id == id; });
  }

  void poll(std::vector<Completion>& done) override {
    const std::lock_guard lock(box_->mutex);
    for (auto& each : box_->done)
      done.push_back(std::move(each));
    box_->done.clear();
    // Keys are not used again once their operation is over: forget the empty ones.
    std::erase_if(box_->posted, [](const auto& entry) { return entry.second.empty(); });
    std::erase_if(box_->arrived, [](const auto& entry) { return entry.second.empty(); });
  }

  void wait(std::chrono::microseconds at_most) override {
    std::unique_lock lock(box_->mutex);
    box_->changed.wait_for(lock, at_most, [this] { return box_->woken || !box_->done.empty(); });
    box_->woken = false;
  }

  void wake() override {
    const std::lock_guard lock(box_->mutex);
    box_->woken = true;
    box_->changed.notify_all();
  }
  bool wakes_by_itself() const override { return true; }

 private:
  std::shared_ptr<MemoryHub> hub_;
  std::uint32_t group_id_;
  std::vector<int> ranks_;
  int rank_;
  std::shared_ptr<MemoryHub::Box> box_;
};

namespace {

class MemoryFabric final : public Fabric {
 public:
  MemoryFabric(std::shared_ptr<MemoryHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  std::unique_ptr<Transport> open(GroupId id, std::vector<int> ranks) override {
    return std::make_unique<MemoryTransport>(hub_, id.group, std::move(ranks), rank_);
  }

 private:
  std::shared_ptr<MemoryHub> hub_;
  int rank_;
};

}  // namespace

std::shared_ptr<Fabric> MemoryHub::fabric(int rank) {
  if (rank < 0 || rank >= n_ranks_) fail(ErrorKind::invalid_argument, "rank is not in the hub");
  const std::lock_guard lock(mutex_);
  auto fabric = fabrics_[rank].lock();
  if (!fabric) fabrics_[rank] = fabric = std::make_shared<MemoryFabric>(shared_from_this(), rank);
  return fabric;
}

void MemoryHub::inject(int source, int destination, Fault fault, std::size_t after_frames) {
  const std::lock_guard lock(mutex_);
  faults_[{source, destination}] = {fault, after_frames};
}

void MemoryHub::hold(std::function<void()> deliver) {
  const std::lock_guard lock(mutex_);
  held_.push_back(std::move(deliver));
}

void MemoryHub::release() {
  std::vector<std::function<void()>> held;
  {
    const std::lock_guard lock(mutex_);
    held.swap(held_);
  }
  for (const auto& deliver : held)
    deliver();
}

std::shared_ptr<MemoryHub::Box> MemoryHub::box(std::uint32_t group_id, int rank) {
  const std::lock_guard lock(mutex_);
  auto& box = boxes_[{group_id, rank}];
  if (!box) box = std::make_shared<Box>();
  return box;
}

std::optional<Fault> MemoryHub::next_fault(int source, int destination) {
  const std::lock_guard lock(mutex_);
  const auto found = faults_.find({source, destination});
  if (found == faults_.end()) return std::nullopt;
  if (found->second.frames_left > 0) {
    --found->second.frames_left;
    return std::nullopt;
  }
  const Fault fault = found->second.fault;
  if (fault != Fault::silence) faults_.erase(found);
  return fault;
}

}  // namespace fedcomm
