#include "quant/quant.h"

namespace fedcomm {

std::size_t format_block(Format format) {
  return visit_format(format, []<typename F>(F) -> std::size_t {
    if constexpr (F::kScaled) {
      return F::kBlock;
    } else {
      return 1;
    }
  });
}

std::size_t format_bytes(Format format, std::size_t n_elems) {
  return visit_format(format, [n_elems]<typename F>(F) -> std::size_t {
    const std::size_t codes = n_elems * sizeof(typename F::Code);
    if constexpr (F::kScaled) {
      return codes + (n_elems + F::kBlock - 1) / F::kBlock * sizeof(float);
    } else {
      return codes;
    }
  });
}

}  // namespace fedcomm
