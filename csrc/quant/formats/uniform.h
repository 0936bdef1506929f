// What the formats of equal steps share: int8 and int4, which count steps from zero, and int2.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

/// The nearest integer, ties to even, in the low bits; |x| < 2^22. Adding 1.5 * 2^23 leaves the
/// rounded integer in the low mantissa bits, on every machine.
FEDCOMM_HD std::uint32_t nearest_integer_bits(float x) {
  return float_bits(x + 12582912.0f);
}

/// One of the two integers around x, the upper one with a probability of x's fraction; an integer
/// stays what it is. |x| < 128, else anything. Adding 1.5 * 2^8 leaves x in units of 2^-15 in the
/// low mantissa bits; to these come 15 random ones, and the fraction is cut off.
FEDCOMM_HD std::int32_t stochastic_integer(float x, std::uint16_t random) {
  const std::uint32_t units = float_bits(x + 384.0f) - 0x43c00000u;
  return static_cast<std::int32_t>(units + (std::uint32_t{random} >> 1)) >> 15;
}

/// Of integers: where floats are clamped GCC makes compares and blends, four times the
/// instructions.
FEDCOMM_HD std::int32_t clamp(std::int32_t x, std::int32_t low, std::int32_t high) {
  const std::int32_t above = x < low ? low : x;
  return above > high ? high : above;
}

/// Codes of kBits bits in two's complement, from -kTop to kTop steps.
template <unsigned bits, int top>
struct SymmetricInteger {
  static constexpr bool kScaled = true;
  static constexpr unsigned kBits = bits;
  static constexpr float kTop = static_cast<float>(top);
  static constexpr std::uint32_t kOverflow = 0x7f800000u;
  static constexpr bool kHasZero = true;

  /// `y` counts steps; |y| < kTop + 1/2.
  FEDCOMM_HD static std::uint8_t quantize(float y) {
    return static_cast<std::uint8_t>(nearest_integer_bits(y) & kMask);
  }
  FEDCOMM_HD static std::uint8_t quantize(float y, std::uint16_t random) {
    const std::int32_t steps = clamp(stochastic_integer(y, random), -top, top);
    return static_cast<std::uint8_t>(static_cast<std::uint32_t>(steps) & kMask);
  }
  FEDCOMM_HD static float dequantize(std::uint8_t code, float step) {
    return static_cast<float>((static_cast<int>(code) ^ kSign) - kSign) * step;
  }

 private:
  static constexpr std::uint32_t kMask = (1u << bits) - 1;
  static constexpr int kSign = 1 << (bits - 1);
};

}  // namespace fedcomm
