// int4: 7 steps either way of zero.
#pragma once

#include "quant/formats/uniform.h"
#include "quant/scale.h"

namespace fedcomm {

struct Int4 : SymmetricInteger<4, 7> {
  static constexpr const char* kName = "int4";
  static constexpr std::uint32_t kBlock = 128;
  static constexpr ScaleType kScale = ScaleType::bf16;
};

}  // namespace fedcomm
