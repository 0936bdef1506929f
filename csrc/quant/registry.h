// The list of number formats. A new one: a file in formats/, a word here.
#pragma once

#include "quant/formats/bf16.h"
#include "quant/formats/e3m0.h"
#include "quant/formats/fp32.h"
#include "quant/formats/fp8_e4m3.h"
#include "quant/formats/int2.h"
#include "quant/formats/int4.h"
#include "quant/formats/int8.h"
#include "quant/formats/sign.h"

#define FEDCOMM_FOR_EACH_FORMAT(X) \
  X(Fp32)                          \
  X(Bf16)                          \
  X(Fp8E4m3)                       \
  X(Int8)                          \
  X(Int4)                          \
  X(Int2)                          \
  X(E3m0)                          \
  X(Sign)

namespace fedcomm {

#define FEDCOMM_ENUM(F) F,
enum class Format : std::uint8_t { FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ENUM) };
#undef FEDCOMM_ENUM

#define FEDCOMM_ONE(F) +1
inline constexpr std::size_t kNumFormats = FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ONE);
#undef FEDCOMM_ONE

/// Whether the format can round stochastically.
template <typename F>
inline constexpr bool kStochastic = requires { F::quantize(0.0f, std::uint16_t{0}); };

/// Calls `f` with a value of the format's type.
template <typename F>
auto visit_format(Format format, F&& f) {
  switch (format) {
#define FEDCOMM_CASE(T) \
  case Format::T: return f(T{});
    FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_CASE)
#undef FEDCOMM_CASE
  }
  return f(Fp32{});
}

}  // namespace fedcomm
