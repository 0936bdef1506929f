// Blocks of fixed-width values, on scratch memory: kernels may then read and write past the end,
// while a frame's bytes are touched exactly. Shared by rice.cpp and packed.cpp; not an interface.
#pragma once

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "coding/kernels.h"
#include "coding/shape.h"

namespace fedcomm {

/// Values worked on at a time: all scratch stays in L1. A block of any width fills whole bytes.
inline constexpr std::size_t kCodingBlock = 1024;
inline constexpr unsigned kMaxWidth = 32;

/// Writes the low `width` (< 32) bits of n values, n * width bits rounded up to bytes. `values` is
/// a scratch array of kCodingBlock; zeroes are written behind the n values.
void write_block(const CodingKernels& kernels, std::uint32_t* values, std::size_t n, unsigned width,
                 std::byte* out);

/// The reverse; reads exactly as many bytes. Fills `values` up to a whole group.
void read_block(const CodingKernels& kernels, const std::byte* in, std::size_t n, unsigned width,
                std::uint32_t* values);

/// Whether the bits behind the first n_bits in their last byte are zero.
inline bool padding_is_zero(const std::byte* in, std::uint64_t n_bits) {
  return n_bits % 8 == 0 || std::to_integer<unsigned>(in[n_bits / 8]) >> (n_bits % 8) == 0;
}

}  // namespace fedcomm
