// Stands in for coding_cuda.cu where the build has no CUDA.
#include "base/error.h"
#include "coding/coding.h"

namespace fedcomm::cuda {
namespace {

[[noreturn]] void no_cuda() {
  fail(ErrorKind::cuda,
       "this build of pyfedcomm has no CUDA kernels; rebuild with FEDCOMM_CUDA=ON and nvcc");
}

}  // namespace

void RiceWorkspace::reserve(std::uint64_t, std::size_t) {
  no_cuda();
}
void RiceWorkspace::reserve(std::size_t) {
  no_cuda();
}
void find_range(std::span<const std::uint32_t>, std::uint64_t, std::uint64_t, std::uint32_t*,
                void*) {
  no_cuda();
}
void rice_encode(const IndexSet&, const CodeOutput&, RiceWorkspace&, void*) {
  no_cuda();
}
void rice_decode(std::span<const std::byte>, std::uint64_t, std::span<std::uint32_t>, std::int32_t*,
                 RiceWorkspace&, void*) {
  no_cuda();
}
std::size_t packed_encode(std::span<const std::uint32_t>, const Chunking&, std::uint32_t,
                          std::span<std::byte>, void*) {
  no_cuda();
}
void packed_decode(std::span<const std::byte>, const Chunking&, std::span<std::uint32_t>,
                   std::int32_t*, void*) {
  no_cuda();
}

}  // namespace fedcomm::cuda
