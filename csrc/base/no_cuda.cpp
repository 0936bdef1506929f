// Stands in for device_buffer.cu where the build has no CUDA.
#include "base/device_buffer.h"
#include "base/error.h"

namespace fedcomm::cuda {

DeviceBuffer::~DeviceBuffer() = default;

void DeviceBuffer::reserve(std::size_t) {
  fail(ErrorKind::cuda,
       "this build of pyfedcomm has no CUDA; rebuild with FEDCOMM_CUDA=ON and nvcc");
}

}  // namespace fedcomm::cuda
