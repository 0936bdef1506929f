// The table of quantization kernels of one instruction set. Kernels run on one thread, on a range
// of whole blocks, and trust their caller: quant_cpu.cpp checks and divides the work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/isa.h"
#include "quant/quant.h"

namespace fedcomm {

/// Elements [0, n) of a range that begins with a block.
struct EncodeJob {
  const float* x;
  const float* before;  // null: no feedback
  float* after;
  float beta;
  std::size_t n;
  std::byte* steps;  // of the first block; unused where unscaled
  std::byte* codes;  // of the first element
  std::uint32_t block;
  ScaleType scale;
  Draw draw;
};

struct DecodeJob {
  const std::byte* steps;
  const std::byte* codes;
  std::size_t n;
  std::uint32_t block;
  ScaleType scale;
};

struct QuantKernels {
  /// By format and rounding; null where the format cannot round so. Returns whether all was finite.
  bool (*encode[kNumFormats][2])(const EncodeJob& job);
  void (*decode[kNumFormats])(const DecodeJob& job, float* out);
  void (*decode_add[kNumFormats])(const DecodeJob& job, float weight, float* accumulator);
  void (*decode_first[kNumFormats])(const DecodeJob& job, float weight, float* accumulator);
};

#define FEDCOMM_DECLARE(isa)           \
  namespace isa {                      \
  const QuantKernels& quant_kernels(); \
  }
FEDCOMM_FOR_EACH_ISA(FEDCOMM_DECLARE)
#undef FEDCOMM_DECLARE

inline const QuantKernels& quant_kernels() {
  switch (current_isa()) {
#define FEDCOMM_CASE(isa) \
  case Isa::isa: return isa::quant_kernels();
    FEDCOMM_FOR_EACH_ISA(FEDCOMM_CASE)
#undef FEDCOMM_CASE
  }
  return portable::quant_kernels();
}

}  // namespace fedcomm
