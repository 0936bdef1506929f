// Streams, events, copies and memory of the CUDA runtime, as handles that free themselves. Needs no
// CUDA headers; a build without CUDA has it too, and every attempt to use it throws.
#pragma once

#include <cstddef>
#include <utility>

#include "base/buffer.h"

namespace fedcomm::cuda {

/// Memory of the current device, at multiples of 256.
const Memory& device_memory();
/// Host memory that GPUs copy to and from while others work.
const Memory& pinned_memory();

/// Makes a device the current one of this thread for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  [[maybe_unused]] int before_ = 0;  // a build without CUDA never reads them
  [[maybe_unused]] bool changed_ = false;
};

/// A point in a stream's work. One that was never recorded is over.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  void record(void* stream);
  /// Whether the work before it is done. Throws cuda where that has failed.
  bool is_over() const;
  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;  // cudaEvent_t
};

/// A stream of its own: what is put into it waits for nothing else, the default stream included.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  /// What is put into it from now on comes after the event.
  void wait_for(const Event& event);
  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;  // cudaStream_t
};

/// A line of work that leaves a stream and comes back to it. Its kernels go before those that wait
/// on other streams, so that short ones run beside a long one that fills the GPU.
class Branch {
 public:
  Branch();
  ~Branch();
  Branch(const Branch&) = delete;
  Branch& operator=(const Branch&) = delete;

  /// What is put into the branch from now on comes after what is in `stream`, which may be
  /// capturing a graph: then the branch is part of it.
  void leave(void* stream);
  /// What is put into `stream` from now on comes after what is in the branch.
  void join(void* stream);
  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;  // cudaStream_t
  Event left_, done_;
};

/// To and from a device, in a stream's order. Asynchronous where the host's side is pinned.
void copy(std::byte* to, const std::byte* from, std::size_t n_bytes, const Stream& stream);

}  // namespace fedcomm::cuda
