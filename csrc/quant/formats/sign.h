// sign: one bit an element, and the mean magnitude of the block for a step (Bernstein et al.,
// "signSGD", arXiv 1802.04434; the scale of Karimireddy et al., arXiv 1901.09847, algorithm 1).
#pragma once

#include "quant/formats/uniform.h"
#include "quant/scale.h"

namespace fedcomm {

struct Sign {
  static constexpr const char* kName = "sign";
  static constexpr bool kScaled = true;
  static constexpr unsigned kBits = 1;
  static constexpr std::uint32_t kOverflow = 0x7f800000u;
  static constexpr std::uint32_t kBlock = 1024;
  static constexpr ScaleType kScale = ScaleType::bf16;

  FEDCOMM_HD static std::uint8_t quantize(float y) {
    return static_cast<std::uint8_t>(float_bits(y) >> 31);
  }
  FEDCOMM_HD static float dequantize(std::uint8_t code, float step) {
    return bits_float(float_bits(step) ^ (std::uint32_t{code} << 31));
  }
};

}  // namespace fedcomm
