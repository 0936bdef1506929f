// The benchmark of kernels on a GPU; device_bench.cpp, or no_device.cpp in a build without CUDA.
#pragma once

#include "arguments.h"

namespace fedcomm::bench {

/// Measures, reports and returns what the process exits with. Throws cuda where there is no GPU.
int run_on_device(const Options& options);

}  // namespace fedcomm::bench
