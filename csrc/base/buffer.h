// Aligned byte buffers and a pool that hands them out again, so that the steady state neither
// allocates nor takes page faults. A buffer lives as long as anyone (a transport with a send that
// cannot be cancelled, say) still holds it. Their memory may be of another kind than the heap's:
// base/device_stream.h has pages that a GPU copies from, and a GPU's own memory.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <vector>

namespace fedcomm {

/// A kind of memory.
struct Memory {
  static constexpr std::size_t kAlignment = 64;

  /// At a multiple of kAlignment; n_bytes is one, and not 0. Throws.
  std::byte* (*allocate)(std::size_t n_bytes);
  void (*release)(std::byte* data);
};

inline const Memory kHeap{
    [](std::size_t n_bytes) {
      void* data = std::aligned_alloc(Memory::kAlignment, n_bytes);
      if (data == nullptr) throw std::bad_alloc();
      return static_cast<std::byte*>(data);
    },
    [](std::byte* data) { std::free(data); },
};

class Buffer {
 public:
  explicit Buffer(std::size_t n_bytes, const Memory& memory = kHeap)
      : memory_(memory), data_(memory.allocate(rounded(n_bytes))), n_bytes_(n_bytes) {}
  ~Buffer() { memory_.release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return n_bytes_; }
  std::span<std::byte> bytes() { return {data_, n_bytes_}; }

 private:
  static std::size_t rounded(std::size_t n_bytes) {
    const std::size_t n = (n_bytes + Memory::kAlignment - 1) / Memory::kAlignment;
    return (n ? n : 1) * Memory::kAlignment;
  }

  const Memory& memory_;
  std::byte* data_;
  std::size_t n_bytes_;
};

using BufferPtr = std::shared_ptr<Buffer>;

/// Buffers by exact size; at most `max_idle_bytes` are kept. Thread-safe; outlives its buffers.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  explicit BufferPool(std::size_t max_idle_bytes, const Memory& memory = kHeap)
      : memory_(memory), max_idle_bytes_(max_idle_bytes) {}

  BufferPtr take(std::size_t n_bytes) {
    std::unique_ptr<Buffer> buffer;
    {
      const std::lock_guard lock(mutex_);
      auto& idle = idle_[n_bytes];
      if (!idle.empty()) {
        buffer = std::move(idle.back());
        idle.pop_back();
        idle_bytes_ -= n_bytes;
      }
    }
    if (!buffer) buffer = std::make_unique<Buffer>(n_bytes, memory_);
    return BufferPtr(buffer.release(),
                     [pool = shared_from_this()](Buffer* b) { pool->give_back(b); });
  }

 private:
  void give_back(Buffer* raw) {
    std::unique_ptr<Buffer> buffer(raw);
    const std::lock_guard lock(mutex_);
    if (idle_bytes_ + buffer->size() > max_idle_bytes_) return;
    idle_bytes_ += buffer->size();
    idle_[buffer->size()].push_back(std::move(buffer));
  }

  const Memory& memory_;
  std::mutex mutex_;
  std::map<std::size_t, std::vector<std::unique_ptr<Buffer>>> idle_;
  std::size_t idle_bytes_ = 0;
  std::size_t max_idle_bytes_;
};

}  // namespace fedcomm
