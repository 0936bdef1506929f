// Element types of tensors handed to a collective, and exact conversions to and from float32.
// Half and bfloat16 round to nearest even; no hardware instruction is used, so every machine
// agrees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

// Of small functions that kernels use: on host and device, and always inlined, since a copy that a
// kernel file compiled for one instruction set must not serve another (base/isa.h).
#if defined(__CUDACC__)
#define FEDCOMM_HD __host__ __device__ __forceinline__
#else
#define FEDCOMM_HD [[gnu::always_inline]] inline
#endif

namespace fedcomm {

enum class DType : std::uint8_t { f32, f16, bf16, u8 };

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::f16: return 2;
    case DType::bf16: return 2;
    case DType::u8: return 1;
  }
  return 0;
}

FEDCOMM_HD std::uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(std::uint32_t, x);
#endif
}

FEDCOMM_HD float bits_float(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

FEDCOMM_HD float bf16_to_float(std::uint16_t h) {
  return bits_float(static_cast<std::uint32_t>(h) << 16);
}

/// Round to nearest even; NaN stays NaN (quieted).
FEDCOMM_HD std::uint16_t float_to_bf16(float x) {
  const std::uint32_t bits = float_bits(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

FEDCOMM_HD float half_to_float(std::uint16_t h) {
  // Shift the exponent and mantissa into place, then rescale by 2^112: exact, subnormals included.
  const std::uint32_t magnitude = static_cast<std::uint32_t>(h & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return bits_float(sign | magnitude | 0x70000000u);  // Inf, NaN
  return bits_float(sign | float_bits(bits_float(magnitude) * 0x1p112f));
}

/// Round to nearest even; overflow goes to infinity, NaN stays NaN.
FEDCOMM_HD std::uint16_t float_to_half(float x) {
  const std::uint32_t bits = float_bits(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: adding 0.5 aligns the units with 2^-24
    const float aligned = bits_float(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (float_bits(aligned) - float_bits(0.5f)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

/// Bit pattern of the smallest magnitude that becomes infinite in `dtype`.
constexpr std::uint32_t overflow_bits(DType dtype) {
  switch (dtype) {
    case DType::f32: return 0x7f800000u;
    case DType::f16: return 0x477ff000u;
    case DType::bf16: return 0x7f7f8000u;
    case DType::u8: return 0xffffffffu;
  }
  return 0;
}

/// Index of the first value whose magnitude has a bit pattern of at least `limit` (a NaN always
/// has), or x.size().
std::size_t first_beyond(std::span<const float> x, std::uint32_t limit);

constexpr int kHost = -1;

/// A flat tensor; does not own it.
struct TensorView {
  void* data = nullptr;
  std::size_t n_elems = 0;
  DType dtype = DType::f32;
  int device = kHost;      // number of the GPU in whose memory it is
  void* stream = nullptr;  // on a GPU: it may be used once this stream has done what it has by now

  std::size_t n_bytes() const { return n_elems * size_of(dtype); }
  std::byte* bytes() const { return static_cast<std::byte*>(data); }
};

/// Elements [begin, begin + out.size()) of `tensor`, in host memory and not u8, as float32.
void load_floats(const TensorView& tensor, std::size_t begin, std::span<float> out);

/// The reverse; rounds to the tensor's dtype.
void store_floats(std::span<const float> values, const TensorView& tensor, std::size_t begin);

}  // namespace fedcomm
