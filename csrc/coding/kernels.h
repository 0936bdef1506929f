// The table of index-coding kernels of one instruction set. They work on small scratch arrays that
// rice.cpp and packed.cpp provide, with room to read and write past the end; they check nothing and
// never see a frame's own bytes, but for take_unary, which reads exactly what it is given.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/isa.h"

namespace fedcomm {

/// Values are packed in groups of 8, so that a group of any width fills whole bytes.
inline constexpr std::size_t kCodingGroup = 8;
/// The widest value that pack() and unpack() take.
inline constexpr unsigned kMaxKernelWidth = 16;
/// Bytes that pack() may write, and unpack() read, past the end.
inline constexpr std::size_t kPackSlack = 16;
/// Values that take_unary() may write past the last.
inline constexpr std::size_t kUnarySlack = 8;
/// A group takes at most so many bits in put_unary(), which leaves longer ones to its caller.
inline constexpr std::uint64_t kMaxGroupBits = 56;

/// The end of a bit stream: `fill` (< 8) bits that do not make a byte yet, in `bits`.
struct BitTail {
  std::uint64_t bits = 0;
  unsigned fill = 0;
};

/// Which chunk each of 8 successive entries lies in, where every chunk has `per_chunk` entries.
/// Advances by 8 entries without a division.
struct ChunkWalk {
  ChunkWalk(std::uint32_t chunk_length, std::uint32_t entries_per_chunk);

  std::uint32_t chunk, per_chunk;
  std::uint32_t base_step, rank_step;  // what 8 entries add
  std::uint32_t base[kCodingGroup];    // the first index of the entry's chunk, modulo 2^32
  std::uint32_t rank[kCodingGroup];    // the entry's place among those of its chunk
};

struct CodingKernels {
  /// gaps[i] = indices[i] - indices[i - 1] - 1. Reads indices[-1]. False if one is negative.
  bool (*take_gaps)(const std::uint32_t* indices, std::size_t n, std::uint32_t* gaps);
  /// The low `width` bits of 8 * n_groups values, one after the other; n_groups * width bytes.
  void (*pack)(const std::uint32_t* values, std::size_t n_groups, unsigned width, std::byte* out);
  /// The reverse of pack().
  void (*unpack)(const std::byte* in, std::size_t n_groups, unsigned width, std::uint32_t* values);
  /// Appends values[i] >> shift in unary: that many zero bits, then a one. Advances `out` past the
  /// whole bytes; may write 7 more. Returns the groups done: stops before one of > kMaxGroupBits.
  std::size_t (*put_unary)(const std::uint32_t* values, std::size_t n_groups, unsigned shift,
                           BitTail& tail, std::byte*& out);
  /// Writes the position of each one bit, the first bit being `first`; returns how many there are.
  std::size_t (*take_unary)(const std::byte* in, std::size_t n_bytes, std::uint32_t first,
                            std::uint32_t* positions);
  /// Indices from the positions of the one bits and the low `shift` bits of the gaps, modulo 2^32:
  /// out[i] = (positions[i] << shift) + carry + the sum of (lows[j] + 1 - 2^shift) for j <= i.
  /// Adds the sum over all to carry.
  void (*join)(const std::uint32_t* positions, const std::uint32_t* lows, std::size_t n_groups,
               unsigned shift, std::uint32_t& carry, std::uint32_t* out);
  /// locals[i] = indices[i] minus its chunk's first index. False if one is not inside its chunk.
  bool (*to_local)(const std::uint32_t* indices, std::size_t n_groups, ChunkWalk& walk,
                   std::uint32_t* locals);
  /// The reverse. False if a local index is not below the chunk's length.
  bool (*to_global)(const std::uint32_t* locals, std::size_t n_groups, ChunkWalk& walk,
                    std::uint32_t* indices);
  /// Whether values[-1] < values[0] < ... < values[n - 1].
  bool (*increasing)(const std::uint32_t* values, std::size_t n);
};

#define FEDCOMM_DECLARE(isa)             \
  namespace isa {                        \
  const CodingKernels& coding_kernels(); \
  }
FEDCOMM_FOR_EACH_ISA(FEDCOMM_DECLARE)
#undef FEDCOMM_DECLARE

inline const CodingKernels& coding_kernels() {
  switch (current_isa()) {
#define FEDCOMM_CASE(isa) \
  case Isa::isa: return isa::coding_kernels();
    FEDCOMM_FOR_EACH_ISA(FEDCOMM_CASE)
#undef FEDCOMM_CASE
  }
  return portable::coding_kernels();
}

}  // namespace fedcomm
