// What the fabric's thread and the progress thread of one group share: what has completed, and how
// many bytes have moved. The only state of the TCP transport, beside the fabric's mailbox, that two
// threads touch.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "transport/transport.h"

namespace fedcomm::tcp {

class Inbox {
 public:
  explicit Inbox(std::size_t n_members) : moved_(n_members) {}

  void complete(Completion completion) {
    const std::lock_guard lock(mutex_);
    done_.push_back(std::move(completion));
    if (done_.size() == 1) changed_.notify_one();
  }
  void take(std::vector<Completion>& done) {
    const std::lock_guard lock(mutex_);
    for (auto& each : done_)
      done.push_back(std::move(each));
    done_.clear();
  }
  void wait(std::chrono::microseconds at_most) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, at_most, [this] { return woken_ || !done_.empty(); });
    woken_ = false;
  }
  void wake() {
    const std::lock_guard lock(mutex_);
    woken_ = true;
    changed_.notify_one();
  }

  void moved(std::size_t member, std::size_t n_bytes) {
    moved_[member].fetch_add(n_bytes, std::memory_order_relaxed);
  }
  std::uint64_t moved_bytes(std::size_t member) const {
    return moved_[member].load(std::memory_order_relaxed);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Completion> done_;
  bool woken_ = false;
  std::vector<std::atomic<std::uint64_t>> moved_;  // by member
};

}  // namespace fedcomm::tcp
