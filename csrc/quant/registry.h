// The list of number formats. A new one: a file in formats/, a word here.
#pragma once

#include "quant/formats/bf16.h"
#include "quant/formats/fp32.h"
#include "quant/formats/int8.h"

#define FEDCOMM_FOR_EACH_FORMAT(X) \
  X(Fp32)                          \
  X(Bf16)                          \
  X(Int8)

namespace fedcomm {

#define FEDCOMM_ENUM(F) F,
enum class Format : std::uint8_t { FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ENUM) };
#undef FEDCOMM_ENUM

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
