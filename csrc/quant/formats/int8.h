// int8: 127 steps either way of zero, in units of a scale that 256 neighbours share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

struct Int8 {
  using Code = std::int8_t;
  static constexpr const char* kName = "int8";
  static constexpr bool kScaled = true;
  /// Bit pattern of the smallest magnitude that this format cannot hold.
  static constexpr std::uint32_t kOverflow = 0x7f800000u;
  static constexpr std::size_t kBlock = 256;

  /// The step of a block whose largest magnitude is `absmax`. At least the smallest normal float,
  /// so that its inverse is finite (blocks below 2^-119 lose steps, not correctness), and at most
  /// the largest float of which 127 steps are finite.
  FEDCOMM_HD static float scale(float absmax) {
    constexpr float kSmallest = 0x1p-126f, kLargest = 0x1.020406p121f;
    const float step = absmax / 127.0f;
    return step < kSmallest ? kSmallest : step > kLargest ? kLargest : step;
  }
  /// Nearest step, ties to even; |x| <= absmax, so |x * inverse_scale| < 127.5.
  FEDCOMM_HD static Code quantize(float x, float inverse_scale) {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits, on every machine.
    return static_cast<Code>(float_bits(x * inverse_scale + 12582912.0f));
  }
  FEDCOMM_HD static float dequantize(Code code, float scale) {
    return static_cast<float>(code) * scale;
  }
};

}  // namespace fedcomm
