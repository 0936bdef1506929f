// Stands in for topk_cuda.cu where the build has no CUDA.
#include "base/error.h"
#include "topk/topk.h"

namespace fedcomm::cuda {
namespace {

[[noreturn]] void no_cuda() {
  fail(ErrorKind::cuda,
       "this build of pyfedcomm has no CUDA kernels; rebuild with FEDCOMM_CUDA=ON and nvcc");
}

}  // namespace

void TopKWorkspace::reserve(std::size_t, std::size_t) {
  no_cuda();
}
void top_k(const TopKInput&, const TopKOutput&, std::int32_t*, TopKWorkspace&, void*) {
  no_cuda();
}
void chunk_top_k(const TopKInput&, const TopKChunks&, const TopKOutput&, std::int32_t*, void*) {
  no_cuda();
}

}  // namespace fedcomm::cuda
