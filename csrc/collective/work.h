// Work: the handle of an asynchronous operation, shared by the caller and the progress thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>

#include "base/error.h"

namespace fedcomm {

class Work {
 public:
  void finish() { end(std::nullopt); }
  void fail(const Error& error) { end(error); }

  bool done() const {
    const std::lock_guard lock(mutex_);
    return done_;
  }
  /// Returns whether the operation has ended.
  bool wait_for(std::chrono::duration<double> at_most) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, at_most, [this] { return done_; });
  }
  /// Blocks until the end, which the operation's own deadline guarantees; throws its error.
  void wait() const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    if (error_) throw Error(*error_);
  }
  /// The error the operation ended with, if it did.
  std::optional<Error> error() const {
    const std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  void end(std::optional<Error> error) {
    const std::lock_guard lock(mutex_);
    if (done_) return;
    error_ = std::move(error);
    done_ = true;
    changed_.notify_all();
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool done_ = false;
  std::optional<Error> error_;
};

}  // namespace fedcomm
