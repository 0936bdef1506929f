#include "transport/memory.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <tuple>

#include "base/error.h"

namespace fedcomm {

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
  };

  std::mutex mutex;
  std::condition_variable changed;
  bool woken = false;
  std::map<Key, std::deque<Posted>> posted;
  std::map<Key, std::deque<Arrived>> arrived;
  std::vector<Completion> done;

  void complete(const Posted& receive, std::span<const std::byte> frame) {
    Completion completion{receive.id, frame.size(), {}};
    if (frame.size() > receive.buffer->size()) {
      completion.error = "frame of " + std::to_string(frame.size()) + " bytes, room for " +
                         std::to_string(receive.buffer->size());
    } else {
      std::memcpy(receive.buffer->data(), frame.data(), frame.size());
    }
    done.push_back(std::move(completion));
  }

  void deliver(const Key& key, std::span<const std::byte> frame) {
    const std::lock_guard lock(mutex);
    auto& waiting = posted[key];
    if (waiting.empty()) {
      auto copy = std::make_shared<Buffer>(frame.size());
      if (!frame.empty()) std::memcpy(copy->data(), frame.data(), frame.size());
      arrived[key].push_back({std::move(copy), frame.size()});
    } else {
      complete(waiting.front(), frame);
      waiting.pop_front();
    }
    changed.notify_all();
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
    std::span<const std::byte> bytes(frame->data(), n_bytes);
    const auto fault = hub_->next_fault(rank_, destination);
    BufferPtr damaged;
    if (fault == Fault::truncate) bytes = bytes.first(n_bytes / 2);
    if (fault == Fault::corrupt) {
      damaged = std::make_shared<Buffer>(n_bytes);
      std::memcpy(damaged->data(), bytes.data(), n_bytes);
      damaged->data()[n_bytes - 1 - n_bytes / 8] ^= std::byte{0x10};
      bytes = damaged->bytes();
    }
    if (fault != Fault::drop && fault != Fault::silence) {
      hub_->box(group_id_, destination)->deliver({rank_, tag.operation, tag.slot}, bytes);
    }
    const std::lock_guard lock(box_->mutex);
    box_->done.push_back({next_id_, n_bytes, {}});
    return next_id_++;
  }

  RequestId receive(int member, Tag tag, BufferPtr buffer) override {
    const MemoryHub::Box::Key key{ranks_[static_cast<std::size_t>(member)], tag.operation,
                                  tag.slot};
    const MemoryHub::Box::Posted posted{next_id_++, std::move(buffer)};
    const std::lock_guard lock(box_->mutex);
    auto& waiting = box_->arrived[key];
    if (waiting.empty()) {
      box_->posted[key].push_back(posted);
    } else {
      box_->complete(posted, {waiting.front().frame->data(), waiting.front().n_bytes});
      waiting.pop_front();
    }
    return posted.id;
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

 private:
  std::shared_ptr<MemoryHub> hub_;
  std::uint32_t group_id_;
  std::vector<int> ranks_;
  int rank_;
  std::shared_ptr<MemoryHub::Box> box_;
  RequestId next_id_ = 1;
};

namespace {

class MemoryFabric final : public Fabric {
 public:
  MemoryFabric(std::shared_ptr<MemoryHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  std::unique_ptr<Transport> open(std::uint32_t group_id, std::vector<int> ranks) override {
    return std::make_unique<MemoryTransport>(hub_, group_id, std::move(ranks), rank_);
  }

 private:
  std::shared_ptr<MemoryHub> hub_;
  int rank_;
};

}  // namespace

std::shared_ptr<Fabric> MemoryHub::fabric(int rank) {
  if (rank < 0 || rank >= n_ranks_) fail(ErrorKind::invalid_argument, "rank is not in the hub");
  return std::make_shared<MemoryFabric>(shared_from_this(), rank);
}

void MemoryHub::inject(int source, int destination, Fault fault, std::size_t after_frames) {
  const std::lock_guard lock(mutex_);
  faults_[{source, destination}] = {fault, after_frames};
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
