// The table of selection kernels of one instruction set. Kernels run on one thread, on a range that
// fits a cache, and trust their caller: topk_cpu.cpp and chunk_cpu.cpp check and divide the work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/isa.h"

namespace fedcomm {

/// Kernels look at magnitudes, bits & 0x7fffffff, as integers: all lie below kNoLimit.
inline constexpr std::uint32_t kNoLimit = 0x80000000u;
inline constexpr std::uint32_t kInfinityBits = 0x7f800000u;

/// Kernels work on this many elements at a time. Scratch memory that they write is this much longer
/// than what it holds.
inline constexpr std::size_t kTopKBlock = 64;

struct TopKRange {
  const float* x;
  const float* before;  // null: no feedback, `after` is not written
  float* after;
  float beta;
  std::size_t n;
};

struct ScanCounts {
  std::uint32_t in_band;
  std::uint32_t above;
};

/// Three arrays of the chunk's length, rounded up to kTopKBlock, plus kTopKBlock.
struct ChunkScratch {
  std::uint32_t* maxima;
  std::uint32_t* positions;
  std::uint32_t* magnitudes;
};

struct TopKKernels {
  /// Writes the positions in the range where lo <= magnitude < hi, ascending, and counts them and
  /// those of hi and above. lo <= hi <= kNoLimit.
  ScanCounts (*scan)(const TopKRange& range, std::uint32_t lo, std::uint32_t hi,
                     std::uint32_t* positions);
  /// Writes the positions of the k largest, ascending; k <= n.
  void (*select_chunk)(const TopKRange& range, std::uint32_t k, const ChunkScratch& scratch,
                       std::uint32_t* positions);
};

#define FEDCOMM_DECLARE(isa)         \
  namespace isa {                    \
  const TopKKernels& topk_kernels(); \
  }
FEDCOMM_FOR_EACH_ISA(FEDCOMM_DECLARE)
#undef FEDCOMM_DECLARE

inline const TopKKernels& topk_kernels() {
  switch (current_isa()) {
#define FEDCOMM_CASE(isa) \
  case Isa::isa: return isa::topk_kernels();
    FEDCOMM_FOR_EACH_ISA(FEDCOMM_CASE)
#undef FEDCOMM_CASE
  }
  return portable::topk_kernels();
}

}  // namespace fedcomm
