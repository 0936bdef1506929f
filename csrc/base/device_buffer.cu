// Memory of a GPU, from the CUDA runtime. No pool: who needs memory often keeps a buffer.
#include "base/cuda.cuh"
#include "base/device_buffer.h"

namespace fedcomm::cuda {

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);  // an empty buffer must not start the runtime
}

void DeviceBuffer::reserve(std::size_t n_bytes) {
  if (n_bytes <= n_bytes_) return;
  void* data = nullptr;
  check(cudaMalloc(&data, n_bytes), "memory of the device");
  cudaFree(std::exchange(data_, static_cast<std::byte*>(data)));
  n_bytes_ = n_bytes;
}

}  // namespace fedcomm::cuda
