// Stands in for device_bench.cpp and device_rows.cpp where the build has no CUDA.
#include "base/error.h"
#include "device_bench.h"

namespace fedcomm::bench {

int run_on_device(const Options&) {
  fail(ErrorKind::cuda, "--device cuda: this build has no CUDA; rebuild with FEDCOMM_CUDA=ON");
}

}  // namespace fedcomm::bench
