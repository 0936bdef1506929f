// fp8_e4m3: sign, 4 exponent bits, 3 of mantissa; largest 448, no infinity (the "fn" variant of
// Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433, section 3). The step
// brings a block's largest magnitude to 448.
#pragma once

#include "quant/formats/uniform.h"
#include "quant/scale.h"

namespace fedcomm {

struct Fp8E4m3 {
  static constexpr const char* kName = "fp8_e4m3";
  static constexpr bool kScaled = true;
  static constexpr unsigned kBits = 8;
  static constexpr float kTop = 448.0f;
  static constexpr std::uint32_t kOverflow = 0x7f800000u;
  static constexpr bool kHasZero = true;
  static constexpr std::uint32_t kBlock = 256;
  static constexpr ScaleType kScale = ScaleType::fp32;

  FEDCOMM_HD static std::uint8_t quantize(float y) {
    const std::uint32_t magnitude = float_bits(y) & 0x7fffffffu;
    const std::uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
    return code_of(y, magnitude, rounded, nearest_integer_bits(bits_float(magnitude) * 512.0f));
  }
  FEDCOMM_HD static std::uint8_t quantize(float y, std::uint16_t random) {
    const std::uint32_t magnitude = float_bits(y) & 0x7fffffffu;
    // 20 bits are cut off; the 16 random ones, and half of the next, decide whether up or down.
    const std::uint32_t rounded = magnitude + ((std::uint32_t{random} << 4) | 8u);
    const std::int32_t subnormal = stochastic_integer(bits_float(magnitude) * 512.0f, random);
    return code_of(y, magnitude, rounded, static_cast<std::uint32_t>(subnormal));
  }
  FEDCOMM_HD static float dequantize(std::uint8_t code, float step) {
    const std::uint32_t bits = code;
    const std::uint32_t magnitude = bits & 0x7fu;
    const float normal = bits_float((magnitude << 20) + (120u << 23));
    const float value =
        magnitude < 8u ? static_cast<float>(static_cast<int>(magnitude)) * 0x1p-9f : normal;
    return bits_float(float_bits(value) | (bits & 0x80u) << 24) * step;
  }

 private:
  /// Below 2^-6 codes are multiples of 2^-9; from there on they are the leading bits.
  FEDCOMM_HD static std::uint8_t code_of(float y, std::uint32_t magnitude, std::uint32_t rounded,
                                         std::uint32_t subnormal) {
    const std::uint32_t normal = (rounded >> 20) - (120u << 3);
    const std::uint32_t code = magnitude < 0x3c800000u ? subnormal & 0xfu : normal;
    const std::uint32_t capped = code > 0x7eu ? 0x7eu : code;
    return static_cast<std::uint8_t>(capped | ((float_bits(y) >> 24) & 0x80u));
  }
};

}  // namespace fedcomm
