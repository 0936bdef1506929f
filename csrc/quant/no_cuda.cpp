// Stands in for quant_cuda.cu where the build has no CUDA.
#include "base/error.h"
#include "quant/quant.h"

namespace fedcomm::cuda {
namespace {

[[noreturn]] void no_cuda() {
  fail(ErrorKind::cuda,
       "this build of pyfedcomm has no CUDA kernels; rebuild with FEDCOMM_CUDA=ON and nvcc");
}

}  // namespace

bool available() {
  return false;
}

void encode(const QuantSpec&, const Input&, const Draw&, std::byte*, std::int32_t*, void*) {
  no_cuda();
}
void decode(const QuantSpec&, const std::byte*, std::size_t, float*, void*) {
  no_cuda();
}
void decode_add(const QuantSpec&, const std::byte*, std::size_t, float, float*, void*) {
  no_cuda();
}
void encode_entries(const QuantSpec&, const Entries&, const Draw&, const EntriesOutput&,
                    std::int32_t*, void*) {
  no_cuda();
}
void measure_entries(const QuantSpec&, const Entries&, std::uint64_t*, void*) {
  no_cuda();
}
void decode_entries(const QuantSpec&, const std::byte*, const EntriesTarget&, void*) {
  no_cuda();
}
void decode_add_entries(const QuantSpec&, const std::byte*, float, const EntriesTarget&, void*) {
  no_cuda();
}

}  // namespace fedcomm::cuda
