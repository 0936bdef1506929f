// What fedcomm-bench-kernels times on a GPU. A new kernel: a function here that makes its rows, and
// a line in all_device_rows(). Only for builds with CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/device_buffer.h"
#include "codec/device_codec.h"
#include "rows.h"

namespace fedcomm::bench {

/// Throws cuda.
void check_cuda(cudaError_t status, const char* what);

/// As Row, with work that is put on a stream. `reference` is what it is compared with, a copy of as
/// many bytes where there is none; both are timed from what stands on the stream before them.
struct DeviceRow {
  std::string kernel, codec;
  std::function<Traffic()> prepare;
  std::function<void(cudaStream_t)> run;
  std::function<std::string()> verify;
  std::function<void(cudaStream_t)> reference;
  std::size_t n_entries = 0;
};

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_), "waiting"); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// An array in device memory that grows; growing loses the contents.
template <typename T>
class DeviceMemory {
 public:
  std::span<T> take(std::size_t n) {
    buffer_.reserve(n * sizeof(T));
    return {reinterpret_cast<T*>(buffer_.data()), n};
  }

 private:
  cuda::DeviceBuffer buffer_;
};

template <typename T>
void to_device(std::span<const T> from, std::span<T> to) {
  check_cuda(cudaMemcpy(to.data(), from.data(), from.size_bytes(), cudaMemcpyHostToDevice),
             "a copy");
  check_cuda(cudaStreamSynchronize(nullptr), "a copy");
}

template <typename T>
std::vector<std::remove_const_t<T>> to_host(std::span<T> from) {
  std::vector<std::remove_const_t<T>> all(from.size());
  check_cuda(cudaMemcpy(all.data(), from.data(), from.size_bytes(), cudaMemcpyDeviceToHost),
             "a copy");
  return all;
}

/// What a kernel tells besides its output.
struct Flags {
  std::uint64_t n_bytes[64];  // of the pieces of a payload
  std::int32_t non_finite, corrupt;
};

/// The memory that all rows share, as on the host.
struct DeviceArena {
  explicit DeviceArena(Arena& arena) : host(arena) {}

  /// The host's input and residual, which are new.
  void fill(std::size_t n_elems);
  /// As it was on the host.
  std::span<float> fresh_residual();
  std::size_t n() const { return x.size(); }
  Flags* flags() { return flags_memory.take(1).data(); }
  Flags flags_on_host() { return to_host(flags_memory.take(1))[0]; }

  Arena& host;
  std::span<const float> x;
  std::span<float> residual, host_residual;
  DeviceMemory<float> x_memory, residual_memory, residual_copy, decoded, values;
  DeviceMemory<std::byte> payload;
  DeviceMemory<std::uint32_t> indices;
  DeviceMemory<Flags> flags_memory;
  Stream stream;  // for what is not timed
};

std::vector<DeviceRow> format_rows(DeviceArena& arena);
std::vector<DeviceRow> sparse_rows(DeviceArena& arena);
std::vector<DeviceRow> device_coding_rows(DeviceArena& arena);
/// From one tensor on the device to another, through pinned memory of the host.
std::vector<DeviceRow> path_rows(DeviceArena& arena);

std::vector<DeviceRow> all_device_rows(DeviceArena& arena);

}  // namespace fedcomm::bench
