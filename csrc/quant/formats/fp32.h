// fp32: the values as they are; the format without loss.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

struct Fp32 {
  using Code = float;
  static constexpr const char* kName = "fp32";
  static constexpr bool kScaled = false;
  static constexpr unsigned kBits = 32;
  /// Bit pattern of the smallest magnitude that this format cannot hold.
  static constexpr std::uint32_t kOverflow = 0x7f800000u;

  FEDCOMM_HD static Code quantize(float x) { return x; }
  FEDCOMM_HD static float dequantize(Code code) { return code; }
};

}  // namespace fedcomm
