// The selection kernels of one instruction set, FEDCOMM_ISA. Only two small functions are written
// for each: which of 64 elements reach a threshold, and listing the set bits of that mask. The rest
// are plain loops over what lies in a cache, which compilers vectorise. Threads, sampling and
// memory are the callers' concern.
#include <cstring>

#include "topk/kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fedcomm::FEDCOMM_ISA {
namespace {

using std::int32_t, std::size_t, std::uint8_t, std::uint32_t, std::uint64_t;

#define FEDCOMM_INLINE [[gnu::always_inline]] inline

constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr size_t kBlock = kTopKBlock;

// --- 64 elements
// ----------------------------------------------------------------------------------- at_least: bit
// i tells whether the magnitude of values[i] is at least `threshold` <= kNoLimit. list: writes
// first + i for each set bit i, ascending, and returns their number; writes (anything)
//       no further than 64 entries.

#if defined(__AVX512F__)

using Vector [[gnu::vector_size(64)]] = float;

FEDCOMM_INLINE uint64_t at_least(const float* values, uint32_t threshold) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(threshold));
  const __m512i magnitude = _mm512_set1_epi32(static_cast<int32_t>(kMagnitude));
  uint64_t mask = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(values + 16 * i), magnitude);
    mask |= uint64_t{_mm512_cmpge_epu32_mask(bits, limit)} << (16 * i);
  }
  return mask;
}

// Compressing into a register and storing all of it: compressing into memory is slow on Zen 4.
FEDCOMM_INLINE uint32_t list(uint64_t mask, uint32_t first, uint32_t* out) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint32_t n = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const auto part = static_cast<__mmask16>(mask >> (16 * i) & 0xffffu);
    const __m512i base = _mm512_set1_epi32(static_cast<int32_t>(first + 16 * i));
    const __m512i positions = _mm512_add_epi32(lanes, base);
    _mm512_storeu_si512(out + n, _mm512_maskz_compress_epi32(part, positions));
    n += static_cast<uint32_t>(__builtin_popcount(part));
  }
  return n;
}

#elif defined(__AVX2__)

using Vector [[gnu::vector_size(32)]] = float;

FEDCOMM_INLINE uint64_t at_least(const float* values, uint32_t threshold) {
  const __m256i below = _mm256_set1_epi32(static_cast<int32_t>(threshold - 1));  // 0 - 1: all reach
  const __m256i magnitude = _mm256_set1_epi32(static_cast<int32_t>(kMagnitude));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  uint64_t mask = 0;
  for (unsigned half = 0; half < 2; ++half) {
    __m256i hits[4];
    for (unsigned i = 0; i < 4; ++i) {
      const auto* source = reinterpret_cast<const __m256i*>(values + 32 * half + 8 * i);
      hits[i] = _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_loadu_si256(source), magnitude), below);
    }
    // Packing interleaves the 128-bit halves of its operands; the permutation undoes that.
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(hits[0], hits[1]),
                                             _mm256_packs_epi32(hits[2], hits[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, order);
    mask |= uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(ordered))} << (32 * half);
  }
  return mask;
}

/// Row m: the set bits of m, a byte each, then anything.
struct SetBits {
  uint8_t of[256][8];
  constexpr SetBits() : of() {
    for (unsigned mask = 0; mask < 256; ++mask) {
      unsigned n = 0;
      for (unsigned bit = 0; bit < 8; ++bit) {
        if ((mask >> bit & 1u) != 0) of[mask][n++] = static_cast<uint8_t>(bit);
      }
    }
  }
};
constexpr SetBits kSetBits;

FEDCOMM_INLINE uint32_t list(uint64_t mask, uint32_t first, uint32_t* out) {
  const auto n_set = static_cast<uint32_t>(__builtin_popcountll(mask));
  if (n_set <= 4) {
    // Always four: whether there is one at all is what branches would guess wrong.
    for (unsigned i = 0; i < 4; ++i, mask = _blsr_u64(mask))
      out[i] = first + static_cast<uint32_t>(_tzcnt_u64(mask));
    return n_set;
  }
  uint32_t n = 0;
  for (unsigned i = 0; i < 8; ++i) {
    const auto part = static_cast<uint8_t>(mask >> (8 * i) & 0xffu);
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSetBits.of[part]));
    const __m256i base = _mm256_set1_epi32(static_cast<int32_t>(first + 8 * i));
    const __m256i positions = _mm256_add_epi32(_mm256_cvtepu8_epi32(bits), base);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + n), positions);
    n += static_cast<uint32_t>(__builtin_popcount(part));
  }
  return n;
}

#else

using Vector [[gnu::vector_size(16)]] = float;

FEDCOMM_INLINE uint64_t at_least(const float* values, uint32_t threshold) {
  const auto below = static_cast<int32_t>(threshold - 1);  // signed: what SSE2 can compare
  uint8_t hits[kBlock];
  for (size_t i = 0; i < kBlock; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    hits[i] = static_cast<int32_t>(bits & kMagnitude) > below;
  }
  uint64_t mask = 0;
  for (unsigned i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, hits + 8 * i, sizeof eight);
    mask |= (eight * 0x0102040810204080u) >> 56 << (8 * i);
  }
  return mask;
}

FEDCOMM_INLINE uint32_t list(uint64_t mask, uint32_t first, uint32_t* out) {
  uint32_t n = 0;
  for (; mask != 0; mask &= mask - 1)
    out[n++] = first + static_cast<uint32_t>(__builtin_ctzll(mask));
  return n;
}

#endif

// --- a range, block by block
// -----------------------------------------------------------------------

/// Fetches ahead: hardware stops at the end of a page. Nothing is wrong with an address beyond the
/// tensor.
template <bool kFeedback>
FEDCOMM_INLINE void fetch(const TopKRange& range, size_t begin) {
  constexpr size_t kAhead = 256, kLine = 64 / sizeof(float);
  for (size_t i = 0; i < kBlock; i += kLine) {
    __builtin_prefetch(range.x + begin + kAhead + i);
    if constexpr (kFeedback) __builtin_prefetch(range.before + begin + kAhead + i);
  }
}

/// Elements [begin, begin + 64) of what is selected from. With feedback they are written to
/// `after`.
template <bool kFeedback>
FEDCOMM_INLINE const float* whole_block(const TopKRange& range, size_t begin) {
  fetch<kFeedback>(range, begin);
  if constexpr (!kFeedback) return range.x + begin;
  for (size_t i = 0; i < kBlock; i += sizeof(Vector) / sizeof(float)) {
    // As vectors: a compiler must assume that `after` overlaps the others anyhow.
    Vector x, before;
    std::memcpy(&x, range.x + begin + i, sizeof x);
    std::memcpy(&before, range.before + begin + i, sizeof before);
    const Vector sum = x + range.beta * before;
    std::memcpy(range.after + begin + i, &sum, sizeof sum);
  }
  return range.after + begin;
}

/// The last n < 64 elements, followed by zeros.
template <bool kFeedback>
FEDCOMM_INLINE void last_block(const TopKRange& range, size_t begin, float* block) {
  const size_t n = range.n - begin;
  std::memset(block, 0, kBlock * sizeof(float));
  if constexpr (kFeedback) {
    for (size_t i = 0; i < n; ++i) {
      block[i] = range.x[begin + i] + range.beta * range.before[begin + i];
      range.after[begin + i] = block[i];
    }
  } else {
    std::memcpy(block, range.x + begin, n * sizeof(float));
  }
}

FEDCOMM_INLINE uint64_t lowest_bits(size_t n) {
  return (uint64_t{1} << n) - 1;
}

template <bool kFeedback, bool kLimit>
ScanCounts scan_as(const TopKRange& range, uint32_t lo, uint32_t hi, uint32_t* positions) {
  uint32_t in_band = 0, above = 0;
  const auto take = [&](const float* block, uint64_t wanted, size_t begin)
                        __attribute__((always_inline)) {
                          uint64_t mask = at_least(block, lo) & wanted;
                          if constexpr (kLimit) {
                            const uint64_t over = at_least(block, hi) & wanted;
                            above += static_cast<uint32_t>(__builtin_popcountll(over));
                            mask &= ~over;
                          }
                          in_band += list(mask, static_cast<uint32_t>(begin), positions + in_band);
                        };
  const size_t n_whole = range.n / kBlock * kBlock;
  for (size_t begin = 0; begin < n_whole; begin += kBlock)
    take(whole_block<kFeedback>(range, begin), ~uint64_t{0}, begin);
  if (n_whole < range.n) {
    float block[kBlock];
    last_block<kFeedback>(range, n_whole, block);
    take(block, lowest_bits(range.n - n_whole), n_whole);
  }
  return {in_band, above};
}

ScanCounts scan(const TopKRange& range, uint32_t lo, uint32_t hi, uint32_t* positions) {
  if (range.before != nullptr) {
    return hi < kNoLimit ? scan_as<true, true>(range, lo, hi, positions)
                         : scan_as<true, false>(range, lo, hi, positions);
  }
  return hi < kNoLimit ? scan_as<false, true>(range, lo, hi, positions)
                       : scan_as<false, false>(range, lo, hi, positions);
}

// --- a chunk
// ---------------------------------------------------------------------------------------

/// maxima[i] = max(maxima[i], magnitude of block[i])
FEDCOMM_INLINE void take_maxima(const float* block, uint32_t* maxima) {
  int32_t bits[kBlock];
  std::memcpy(bits, block, sizeof bits);
  for (size_t i = 0; i < kBlock; ++i) {
    const int32_t magnitude = bits[i] & static_cast<int32_t>(kMagnitude);
    const auto largest = static_cast<int32_t>(maxima[i]);
    maxima[i] = static_cast<uint32_t>(magnitude > largest ? magnitude : largest);
  }
}

/// The largest magnitude of every 64th element, over stretches of n_blocks blocks. Returns how
/// many.
template <bool kFeedback>
size_t find_maxima(const TopKRange& range, size_t n_blocks, uint32_t* out) {
  size_t n = 0;
  for (size_t begin = 0; begin < range.n; n += kBlock) {
    uint32_t maxima[kBlock] = {};
    for (size_t i = 0; i < n_blocks && begin < range.n; ++i, begin += kBlock) {
      if (begin + kBlock <= range.n) {
        take_maxima(whole_block<kFeedback>(range, begin), maxima);
      } else {
        float block[kBlock];
        last_block<kFeedback>(range, begin, block);
        take_maxima(block, maxima);
      }
    }
    std::memcpy(out + n, maxima, sizeof maxima);
  }
  return n;
}

/// How many of n magnitudes, a multiple of 64, are at least `threshold`.
FEDCOMM_INLINE uint32_t count_at_least(const uint32_t* magnitudes, size_t n, uint32_t threshold) {
  const auto below = static_cast<int32_t>(threshold - 1);
  int32_t count = 0;
  for (size_t i = 0; i < n; ++i)
    count += static_cast<int32_t>(magnitudes[i]) > below;
  return static_cast<uint32_t>(count);
}

/// At least k magnitudes are >= lo, fewer than k are >= hi.
struct Bracket {
  uint32_t lo, hi;
  uint32_t n_lo, n_hi;
};

/// Halves the bracket until n_lo is within k and `enough`, or lo is the k-th largest.
FEDCOMM_INLINE void narrow(const uint32_t* magnitudes, size_t n, uint32_t k, uint32_t enough,
                           Bracket& bracket) {
  // First whether many are equal to lo (zeros, say): halving would take long to find that out.
  uint32_t middle = bracket.lo + 1;
  while (bracket.n_lo > enough && bracket.hi - bracket.lo > 1) {
    const uint32_t count = count_at_least(magnitudes, n, middle);
    if (count >= k) {
      bracket.lo = middle;
      bracket.n_lo = count;
    } else {
      bracket.hi = middle;
      bracket.n_hi = count;
    }
    middle = bracket.lo + (bracket.hi - bracket.lo) / 2;
  }
}

FEDCOMM_INLINE Bracket whole_bracket(const uint32_t* magnitudes, size_t n) {
  uint32_t smallest = kMagnitude, largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto each = static_cast<int32_t>(magnitudes[i]);
    smallest = static_cast<uint32_t>(
        each < static_cast<int32_t>(smallest) ? each : static_cast<int32_t>(smallest));
    largest = static_cast<uint32_t>(
        each > static_cast<int32_t>(largest) ? each : static_cast<int32_t>(largest));
  }
  return {smallest, largest + 1, static_cast<uint32_t>(n), 0};
}

void select_chunk(const TopKRange& range, uint32_t k, const ChunkScratch& scratch,
                  uint32_t* positions) {
  // The k-th largest of the maxima of disjoint sets cannot exceed the k-th largest of all: what
  // reaches it are candidates, and with 4 k sets there are only few more than k.
  size_t n_blocks = 1;
  while (range.n / (2 * n_blocks) >= size_t{4} * k && n_blocks < 64)
    n_blocks *= 2;
  const bool feedback = range.before != nullptr;
  const size_t n_maxima = feedback ? find_maxima<true>(range, n_blocks, scratch.maxima)
                                   : find_maxima<false>(range, n_blocks, scratch.maxima);
  if (k == 0) return;
  Bracket bracket = whole_bracket(scratch.maxima, n_maxima);
  narrow(scratch.maxima, n_maxima, k, k + k / 8, bracket);

  const float* values = feedback ? range.after : range.x;
  const TopKRange plain{values, nullptr, nullptr, 0.0f, range.n};
  const uint32_t n = scan_as<false, false>(plain, bracket.lo, kNoLimit, scratch.positions).in_band;
  for (uint32_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + scratch.positions[i], sizeof bits);
    scratch.magnitudes[i] = bits & kMagnitude;
  }
  const size_t n_padded = (n + kBlock - 1) / kBlock * kBlock;
  for (size_t i = n; i < n_padded; ++i)
    scratch.magnitudes[i] = ~0u;  // as a signed number below all

  // The maxima are those of all elements, so the upper end is right; how many reach it is not.
  bracket.n_lo = n;
  bracket.hi = whole_bracket(scratch.maxima, n_maxima).hi;
  bracket.n_hi = 0;
  narrow(scratch.magnitudes, n_padded, k, k, bracket);
  uint32_t n_ties = bracket.n_lo == k ? k : k - bracket.n_hi;
  for (uint32_t i = 0, n_out = 0; n_out < k; ++i) {
    const uint32_t magnitude = scratch.magnitudes[i];
    const uint32_t tie = magnitude == bracket.lo ? 1u : 0u;
    const uint32_t taken = (magnitude > bracket.lo ? 1u : 0u) | (n_ties > 0 ? tie : 0u);
    n_ties -= tie & taken;
    positions[n_out] = scratch.positions[i];
    n_out += taken;
  }
}

}  // namespace

const TopKKernels& topk_kernels() {
  static constexpr TopKKernels kKernels = {scan, select_chunk};
  return kKernels;
}

}  // namespace fedcomm::FEDCOMM_ISA
