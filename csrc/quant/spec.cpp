#include <string>

#include "base/error.h"
#include "quant/quant.h"

namespace fedcomm {

QuantSpec default_spec(Format format) {
  return visit_format(format, [format]<typename F>(F) -> QuantSpec {
    if constexpr (F::kScaled) {
      return {.format = format, .block = F::kBlock, .scale = F::kScale};
    } else {
      return {.format = format};
    }
  });
}

const char* format_name(Format format) {
  return visit_format(format, []<typename F>(F) { return F::kName; });
}

void check_spec(const QuantSpec& spec) {
  const std::string name = format_name(spec.format);
  const auto [scaled, stochastic] = visit_format(
      spec.format, []<typename F>(F) { return std::pair(F::kScaled, kStochastic<F>); });
  const bool power_of_two = (spec.block & (spec.block - 1)) == 0;
  if (scaled && (spec.block < kMinBlock || spec.block > kMaxBlock || !power_of_two)) {
    fail(ErrorKind::invalid_argument,
         name + ": block is " + std::to_string(spec.block) + "; it must be a power of two from " +
             std::to_string(kMinBlock) + " to " + std::to_string(kMaxBlock));
  }
  if (!scaled && spec.block != 1) {
    fail(ErrorKind::invalid_argument, name + " has no scales, so it takes neither block nor scale");
  }
  if (!stochastic && spec.rounding == Rounding::stochastic) {
    fail(ErrorKind::invalid_argument, name + " has no stochastic rounding");
  }
}

std::size_t quant_bytes(const QuantSpec& spec, std::size_t n_elems) {
  const std::size_t bits =
      visit_format(spec.format, []<typename F>(F) -> std::size_t { return F::kBits; });
  // Eight elements have a whole number of bytes, and n * bits might not fit.
  const std::size_t codes = n_elems / 8 * bits + (n_elems % 8 * bits + 7) / 8;
  if (spec.block == 1) return codes;
  const std::size_t n_blocks = n_elems / spec.block + (n_elems % spec.block != 0);
  return n_blocks * size_of(spec.scale) + codes;
}

}  // namespace fedcomm
