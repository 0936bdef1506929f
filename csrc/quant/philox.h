// Random bits for stochastic rounding: Philox4x32-7, a counter-based generator (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011; 7 rounds are the fewest that pass all of
// BigCrush, their table 2). The bits of an element depend on its key
// and its index alone, so any machine, thread or GPU lane can draw them by itself.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

/// Names the draws of one encoding. Element `first + i` takes the 16-bit part (first + i) % 8 of
/// the generator's output for counter {index / 8, hop : index / 8 >> 32, bucket, round}, key seed.
struct Draw {
  std::uint64_t seed = 0;
  std::uint32_t round = 0;
  std::uint32_t bucket = 0;
  std::uint8_t hop = 0;     // 0 what a member sends, 1 what an owner encodes again
  std::uint64_t first = 0;  // index of the first element; a multiple of 8, below 2^58
};

/// Four words for one counter and key.
struct Philox {
  static constexpr std::uint32_t kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
  static constexpr std::uint32_t kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;
  static constexpr int kRounds = 7;
};

/// The counter's second word for the 8 elements from `index` on.
FEDCOMM_HD std::uint32_t philox_high(const Draw& draw, std::uint64_t index) {
  return static_cast<std::uint32_t>(index >> 35) | std::uint32_t{draw.hop} << 24;
}

}  // namespace fedcomm
