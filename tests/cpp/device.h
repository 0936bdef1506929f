// What tests need of a GPU: memory and a stream, freed with their owner. Only for builds with CUDA
// (FEDCOMM_HAS_CUDA); not for timing.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "check.h"

namespace fedcomm::testing {

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess) throw Failure(std::string("CUDA: ") + cudaGetErrorString(status));
}

inline bool have_device() {
  int n_devices = 0;
  return cudaGetDeviceCount(&n_devices) == cudaSuccess && n_devices > 0;
}

inline void need_device() {
  if (!have_device()) throw Skipped("no GPU");
}

inline std::size_t free_device_bytes() {
  std::size_t n_free = 0, n_total = 0;
  check_cuda(cudaMemGetInfo(&n_free, &n_total));
  return n_free;
}

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// n elements of T in device memory, at a multiple of 256 bytes. Nothing here waits for streams
/// that use it; what it does itself is done on return.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t n) : n_(n) {
    if (n > 0) check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), n * sizeof(T)));
  }
  explicit DeviceArray(std::span<const T> values) : DeviceArray(values.size()) { put(0, values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }

  void put(std::size_t begin, std::span<const T> values) {
    if (values.empty()) return;
    check_cuda(
        cudaMemcpy(data_ + begin, values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
    check_cuda(cudaStreamSynchronize(nullptr));  // such a copy may return before it has arrived
  }
  std::vector<T> get(std::size_t begin, std::size_t n) const {
    std::vector<T> values(n);
    if (n > 0) {
      check_cuda(cudaMemcpy(values.data(), data_ + begin, n * sizeof(T), cudaMemcpyDeviceToHost));
    }
    return values;
  }
  std::vector<T> get() const { return get(0, n_); }
  void fill_bytes(int byte) {
    if (n_ > 0) check_cuda(cudaMemset(data_, byte, n_ * sizeof(T)));
    check_cuda(cudaDeviceSynchronize());
  }

 private:
  T* data_ = nullptr;
  std::size_t n_ = 0;
};

}  // namespace fedcomm::testing
