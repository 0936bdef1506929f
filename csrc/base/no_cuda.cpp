// Stands in for device_buffer.cu, device_stream.cu and device_tensor.cu in a build without CUDA.
#include "base/device_buffer.h"
#include "base/device_stream.h"
#include "base/device_tensor.h"
#include "base/error.h"

namespace fedcomm::cuda {
namespace {

[[noreturn]] void no_cuda() {
  fail(ErrorKind::cuda,
       "this build of pyfedcomm has no CUDA; rebuild with FEDCOMM_CUDA=ON and nvcc");
}

}  // namespace

DeviceBuffer::~DeviceBuffer() = default;

void DeviceBuffer::reserve(std::size_t) {
  no_cuda();
}

const Memory& device_memory() {
  no_cuda();
}
const Memory& pinned_memory() {
  no_cuda();
}
CurrentDevice::CurrentDevice(int) {
  no_cuda();
}
CurrentDevice::~CurrentDevice() = default;
Event::Event() {
  no_cuda();
}
Event::~Event() = default;
void Event::record(void*) {
  no_cuda();
}
bool Event::is_over() const {
  no_cuda();
}
Stream::Stream() {
  no_cuda();
}
Stream::~Stream() = default;
void Stream::wait_for(const Event&) {
  no_cuda();
}
Branch::Branch() {
  no_cuda();
}
Branch::~Branch() = default;
void Branch::leave(void*) {
  no_cuda();
}
void Branch::join(void*) {
  no_cuda();
}
void copy(std::byte*, const std::byte*, std::size_t, const Stream&) {
  no_cuda();
}

void load_floats(const TensorView&, std::size_t, std::span<float>, void*) {
  no_cuda();
}
void store_floats(std::span<const float>, float, const TensorView&, std::size_t, std::uint64_t*,
                  void*) {
  no_cuda();
}
void accumulate(const TensorView&, std::size_t, float, std::span<float>, Sum, void*) {
  no_cuda();
}
void divide(std::span<float>, float, void*) {
  no_cuda();
}
void fill_zero(std::span<float>, void*) {
  no_cuda();
}
void first_beyond(std::span<const float>, std::uint32_t, std::uint64_t*, void*) {
  no_cuda();
}

}  // namespace fedcomm::cuda
