// int2: the four values -3, -1, 1 and 3 steps. No code is zero: it is made for what top-k selects,
// which is never near zero, and all four codes are worth more there than three and a gap. A block
// of zeros has step 0 and stays zero.
#pragma once

#include "quant/formats/uniform.h"
#include "quant/scale.h"

namespace fedcomm {

struct Int2 {
  static constexpr const char* kName = "int2";
  static constexpr bool kScaled = true;
  static constexpr unsigned kBits = 2;
  static constexpr float kTop = 3.0f;
  static constexpr std::uint32_t kOverflow = 0x7f800000u;
  static constexpr bool kHasZero = false;
  static constexpr std::uint32_t kBlock = 128;
  static constexpr ScaleType kScale = ScaleType::bf16;

  FEDCOMM_HD static std::uint8_t quantize(float y) {
    return static_cast<std::uint8_t>(nearest_integer_bits(y * 0.5f + 1.5f) & 3u);
  }
  FEDCOMM_HD static std::uint8_t quantize(float y, std::uint16_t random) {
    return static_cast<std::uint8_t>(clamp(stochastic_integer(y * 0.5f + 1.5f, random), 0, 3));
  }
  FEDCOMM_HD static float dequantize(std::uint8_t code, float step) {
    return static_cast<float>(2 * static_cast<int>(code) - 3) * step;
  }
};

}  // namespace fedcomm
