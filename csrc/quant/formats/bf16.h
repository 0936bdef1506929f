// bf16: the upper half of a float32, rounded to nearest even.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

struct Bf16 {
  using Code = std::uint16_t;
  static constexpr const char* kName = "bf16";
  static constexpr bool kScaled = false;
  /// Bit pattern of the smallest magnitude that this format cannot hold.
  static constexpr std::uint32_t kOverflow = 0x7f7f8000u;  // rounds up to infinity

  FEDCOMM_HD static Code quantize(float x) { return float_to_bf16(x); }
  FEDCOMM_HD static float dequantize(Code code) { return bf16_to_float(code); }
};

}  // namespace fedcomm
