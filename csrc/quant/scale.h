// The step of a block: what one unit of a format's codes is worth, and how it is stored.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

enum class ScaleType : std::uint8_t { fp32, bf16 };

constexpr std::size_t size_of(ScaleType type) {
  return type == ScaleType::fp32 ? 4 : 2;
}

/// What stands for the step of a block that held a NaN or infinity: all of it decodes to NaN.
inline constexpr std::uint32_t kNonFiniteStep = 0x7fc00000u;

/// Bit pattern of the largest step of which `top` units are finite.
constexpr std::uint32_t largest_step_bits(float top, ScaleType type) {
  constexpr double kInfiniteFrom = 0x1.ffffffp127;  // rounds up to infinity in float
  const std::uint32_t unit = type == ScaleType::fp32 ? 1u : 0x10000u;
  std::uint32_t bits = 0x7f7fffffu / unit * unit;
  if (top == 1.0f) return bits;
  const double start = 0x1.fffffep127 / static_cast<double>(top);
  bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(start)) / unit * unit + unit;
  while (static_cast<double>(__builtin_bit_cast(float, bits)) * static_cast<double>(top) >=
         kInfiniteFrom)
    bits -= unit;
  return bits;
}

FEDCOMM_HD float smaller(float a, float b) {
  return a < b ? a : b;
}

/// The step that brings `absmax` to F::kTop units. A bf16 step is rounded up, so that no value
/// exceeds the format's range. Steps are at least the smallest normal float, so that their inverse
/// is finite; a format without a code for zero gets step 0 (and loses the block, below 2^-123)
/// instead. Never so large that F::kTop units would be infinite.
template <typename F>
FEDCOMM_HD float step_from_absmax(float absmax, ScaleType type) {
  constexpr std::uint32_t kLargestFp32 = largest_step_bits(F::kTop, ScaleType::fp32);
  constexpr std::uint32_t kLargestBf16 = largest_step_bits(F::kTop, ScaleType::bf16);
  constexpr float kSmallest = 0x1p-126f;
  float step = absmax / F::kTop;
  if (step < kSmallest) step = F::kHasZero ? kSmallest : 0.0f;
  if (type == ScaleType::fp32) return smaller(step, bits_float(kLargestFp32));
  return smaller(bits_float((float_bits(step) + 0xffffu) & 0xffff0000u), bits_float(kLargestBf16));
}

/// The mean magnitude as a step; a bf16 one is the nearest, not beyond the largest.
FEDCOMM_HD float step_from_mean(float sum, std::size_t n, ScaleType type) {
  const float mean = smaller(sum, bits_float(0x7f7fffffu)) / static_cast<float>(n);
  if (type == ScaleType::fp32) return mean;
  return smaller(bf16_to_float(float_to_bf16(mean)), bits_float(0x7f7f0000u));
}

/// Zero for a step of zero, and for the tiny ones of `sign`, whose inverse would be infinite: zero
/// times that has a sign that machines disagree on.
FEDCOMM_HD float inverse_of(float step) {
  return step >= 0x1p-126f ? 1.0f / step : 0.0f;
}

}  // namespace fedcomm
