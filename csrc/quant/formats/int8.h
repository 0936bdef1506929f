// int8: 127 steps either way of zero.
#pragma once

#include "quant/formats/uniform.h"
#include "quant/scale.h"

namespace fedcomm {

struct Int8 : SymmetricInteger<8, 127> {
  static constexpr const char* kName = "int8";
  static constexpr std::uint32_t kBlock = 256;
  static constexpr ScaleType kScale = ScaleType::fp32;
};

}  // namespace fedcomm
