// Handles of the CUDA runtime. No kernels.
#include "base/cuda.cuh"
#include "base/device_stream.h"

namespace fedcomm::cuda {
namespace {

cudaEvent_t event_of(void* handle) {
  return static_cast<cudaEvent_t>(handle);
}
cudaStream_t stream_of(void* handle) {
  return static_cast<cudaStream_t>(handle);
}

}  // namespace

const Memory& device_memory() {
  static const Memory memory{
      [](std::size_t n_bytes) {
        void* data = nullptr;
        check(cudaMalloc(&data, n_bytes), "memory of the device");
        return static_cast<std::byte*>(data);
      },
      [](std::byte* data) { cudaFree(data); },
  };
  return memory;
}

const Memory& pinned_memory() {
  static const Memory memory{
      [](std::size_t n_bytes) {
        void* data = nullptr;
        check(cudaHostAlloc(&data, n_bytes, cudaHostAllocPortable), "pinned memory");
        return static_cast<std::byte*>(data);
      },
      [](std::byte* data) { cudaFreeHost(data); },
  };
  return memory;
}

CurrentDevice::CurrentDevice(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  changed_ = true;
}

CurrentDevice::~CurrentDevice() {
  if (changed_) cudaSetDevice(before_);
}

Event::Event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  handle_ = event;
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(event_of(handle_));
}

void Event::record(void* stream) {
  check(cudaEventRecord(event_of(handle_), stream_of(stream)), "cudaEventRecord");
}

bool Event::is_over() const {
  const cudaError_t status = cudaEventQuery(event_of(handle_));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // or the next launch would be blamed for it
    return false;
  }
  check(status, "work on the device");
  return true;
}

Stream::Stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  handle_ = stream;
}

Stream::~Stream() {
  if (handle_ != nullptr) cudaStreamDestroy(stream_of(handle_));
}

void Stream::wait_for(const Event& event) {
  check(cudaStreamWaitEvent(stream_of(handle_), event_of(event.get()), 0), "cudaStreamWaitEvent");
}

Branch::Branch() {
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "a stream");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, highest), "a stream");
  handle_ = stream;
}

Branch::~Branch() {
  cudaStreamDestroy(stream_of(handle_));
}

void Branch::leave(void* stream) {
  left_.record(stream);
  check(cudaStreamWaitEvent(stream_of(handle_), event_of(left_.get()), 0), "cudaStreamWaitEvent");
}

void Branch::join(void* stream) {
  done_.record(handle_);
  check(cudaStreamWaitEvent(stream_of(stream), event_of(done_.get()), 0), "cudaStreamWaitEvent");
}

void copy(std::byte* to, const std::byte* from, std::size_t n_bytes, const Stream& stream) {
  if (n_bytes == 0) return;
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, stream_of(stream.get())), "a copy");
}

}  // namespace fedcomm::cuda
