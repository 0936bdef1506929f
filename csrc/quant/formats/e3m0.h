// e3m0: sign and 3 exponent bits: zero and the powers of two from 2^-6 to 1, in units of the
// block's largest magnitude. The 4-bit float of Streaming DiLoCo (arXiv 2501.18512, section 2.3).
#pragma once

#include "quant/formats/uniform.h"
#include "quant/scale.h"

namespace fedcomm {

struct E3m0 {
  static constexpr const char* kName = "e3m0";
  static constexpr bool kScaled = true;
  static constexpr unsigned kBits = 4;
  static constexpr float kTop = 1.0f;
  static constexpr std::uint32_t kOverflow = 0x7f800000u;
  static constexpr bool kHasZero = true;
  static constexpr std::uint32_t kBlock = 128;
  static constexpr ScaleType kScale = ScaleType::bf16;

  /// The nearer power of two, from the middle (1.5 times one) the one with the even code; y is at
  /// most 1.
  FEDCOMM_HD static std::uint8_t quantize(float y) {
    const std::uint32_t bits = float_bits(y);
    // In half exponents above 2^-7, which is the middle of 0 and 2^-6, and stays below the first.
    const std::uint32_t rounded = bits + 0x3fffffu + ((bits >> 23) & 1u);
    const std::int32_t above = static_cast<std::int32_t>(rounded >> 22 & 0x1ffu) - 240;
    const std::int32_t halves = above < 0 ? 0 : above;
    const std::int32_t lowest = halves > 1 ? 1 : halves;
    const std::int32_t code = halves >> 1;
    return with_sign(code < lowest ? lowest : code, y);
  }
  FEDCOMM_HD static std::uint8_t quantize(float y, std::uint16_t random) {
    const std::uint32_t magnitude = float_bits(y) & 0x7fffffffu;
    const std::uint32_t rounded = magnitude + ((std::uint32_t{random} << 7) | 64u);
    const auto power = static_cast<std::int32_t>(rounded >> 23) - 120;
    // Below 2^-6, up to it with a probability of |y| / 2^-6.
    const std::int32_t first = stochastic_integer(bits_float(magnitude) * 64.0f, random);
    return with_sign(clamp(magnitude < 0x3c800000u ? first : power, 0, 7), y);
  }
  FEDCOMM_HD static float dequantize(std::uint8_t code, float step) {
    const std::uint32_t bits = code;
    const std::uint32_t exponent = bits & 7u;
    const std::uint32_t magnitude = exponent == 0 ? 0u : (exponent + 120u) << 23;
    return bits_float(magnitude | (bits & 8u) << 28) * step;
  }

 private:
  FEDCOMM_HD static std::uint8_t with_sign(std::int32_t code, float y) {
    return static_cast<std::uint8_t>(static_cast<std::uint32_t>(code) |
                                     ((float_bits(y) >> 28) & 8u));
  }
};

}  // namespace fedcomm
