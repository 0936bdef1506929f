#include "base/dtype.h"

#include <algorithm>
#include <cstring>

namespace fedcomm {

std::size_t first_beyond(std::span<const float> x, std::uint32_t limit) {
  constexpr std::uint32_t kMagnitude = 0x7fffffffu;
  constexpr std::size_t kStrip = 4096;
  for (std::size_t begin = 0; begin < x.size(); begin += kStrip) {
    const std::size_t end = std::min(begin + kStrip, x.size());
    std::uint32_t largest = 0;
    for (std::size_t i = begin; i < end; ++i) {
      largest = std::max(largest, float_bits(x[i]) & kMagnitude);
    }
    if (largest < limit) continue;
    std::size_t i = begin;
    while ((float_bits(x[i]) & kMagnitude) < limit)
      ++i;
    return i;
  }
  return x.size();
}

void load_floats(const TensorView& tensor, std::size_t begin, std::span<float> out) {
  if (out.empty()) return;
  const std::byte* source = tensor.bytes() + begin * size_of(tensor.dtype);
  switch (tensor.dtype) {
    case DType::f32: std::memcpy(out.data(), source, out.size_bytes()); return;
    case DType::f16: {
      const auto* half = reinterpret_cast<const std::uint16_t*>(source);
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = half_to_float(half[i]);
      return;
    }
    case DType::bf16: {
      const auto* half = reinterpret_cast<const std::uint16_t*>(source);
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = bf16_to_float(half[i]);
      return;
    }
    case DType::u8: return;  // raw bytes never reach arithmetic; Group rejects them
  }
}

void store_floats(std::span<const float> values, const TensorView& tensor, std::size_t begin) {
  if (values.empty()) return;
  std::byte* target = tensor.bytes() + begin * size_of(tensor.dtype);
  switch (tensor.dtype) {
    case DType::f32: std::memcpy(target, values.data(), values.size_bytes()); return;
    case DType::f16: {
      auto* half = reinterpret_cast<std::uint16_t*>(target);
      for (std::size_t i = 0; i < values.size(); ++i)
        half[i] = float_to_half(values[i]);
      return;
    }
    case DType::bf16: {
      auto* half = reinterpret_cast<std::uint16_t*>(target);
      for (std::size_t i = 0; i < values.size(); ++i)
        half[i] = float_to_bf16(values[i]);
      return;
    }
    case DType::u8: return;
  }
}

}  // namespace fedcomm
