// bf16: the upper half of a float32.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

struct Bf16 {
  using Code = std::uint16_t;
  static constexpr const char* kName = "bf16";
  static constexpr bool kScaled = false;
  static constexpr unsigned kBits = 16;
  /// Bit pattern of the smallest magnitude that this format cannot hold.
  static constexpr std::uint32_t kOverflow = 0x7f7f8000u;  // rounds up to infinity

  FEDCOMM_HD static Code quantize(float x) { return float_to_bf16(x); }
  /// Up or down by chance, but not from a finite value to infinity.
  FEDCOMM_HD static Code quantize(float x, std::uint16_t random) {
    const std::uint32_t bits = float_bits(x);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const std::uint32_t rounded = magnitude + random;
    const std::uint32_t capped = rounded > 0x7f7fffffu ? 0x7f7fffffu : rounded;
    const auto finite = static_cast<Code>((capped | (bits & 0x80000000u)) >> 16);
    return magnitude >= 0x7f800000u ? float_to_bf16(x) : finite;
  }
  FEDCOMM_HD static float dequantize(Code code) { return bf16_to_float(code); }
};

}  // namespace fedcomm
