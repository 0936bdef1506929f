// Sizes and shifts that the coders of the CPU and of a GPU derive alike. Checks nothing; not an
// interface.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fedcomm {

FEDCOMM_HD std::size_t bytes_of_bits(std::uint64_t n_bits) {
  return static_cast<std::size_t>(n_bits / 8 + (n_bits % 8 != 0 ? 1 : 0));
}

/// rice_shift() of k <= n <= 2^32.
FEDCOMM_HD unsigned shift_of(std::uint64_t n, std::uint64_t k) {
  if (k == 0) return 0;
  // With x = (1 - k/n)^(2^l), shift l takes l + 1 / (1 - x) bits an index, and l + 1 takes
  // l + 1 + 1 / (1 - x^2): less where x^2 + x > 1, x > 0.618. In units of 2^-32, rounded down, so
  // that k << l < 0.97 n for l > 0: the low bits of all gaps sum to less than 2^32.
  constexpr std::uint64_t kGoldenRatio = 0x9e3779b9;
  std::uint64_t x = ((n - k) << 32) / n;
  unsigned shift = 0;
  for (; x > kGoldenRatio; ++shift)
    x = x * x >> 32;
  return shift;
}

/// The most bits of stream 2: the gaps sum to at most n - k, so the quotients to (n - k) >> shift.
FEDCOMM_HD std::uint64_t max_unary_bits(std::uint64_t n, std::uint64_t k, unsigned shift) {
  return k + ((n - k) >> shift);
}

/// Bits of an index inside its chunk, of 1 to 65536 elements.
FEDCOMM_HD unsigned packed_width(std::uint32_t chunk) {
  unsigned width = 0;
  while ((chunk - 1) >> width != 0)
    ++width;
  return width;
}

}  // namespace fedcomm
