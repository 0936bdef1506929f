// Memory of a GPU, freed with its owner. Needs no CUDA headers, so that interfaces can hold one; a
// build without CUDA has it too, and cannot fill it.
#pragma once

#include <cstddef>
#include <utility>

namespace fedcomm::cuda {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), n_bytes_(std::exchange(other.n_bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_bytes_, other.n_bytes_);
    return *this;
  }

  /// Makes it hold at least `n_bytes`, at a multiple of 256, on the device that is current when it
  /// grows. Growing loses the contents, waits for the device, and is an error while a stream is
  /// being captured. Throws cuda.
  void reserve(std::size_t n_bytes);
  std::byte* data() const { return data_; }
  std::size_t size() const { return n_bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t n_bytes_ = 0;
};

}  // namespace fedcomm::cuda
