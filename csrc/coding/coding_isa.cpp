// The index-coding kernels of one instruction set, FEDCOMM_ISA: fixed-width packing, unary codes by
// the group (writing) and by the byte (reading), and the prefix sum that turns gaps into indices.
// Portable code keeps several values in a 64-bit word; AVX2 has its own versions of four of them.
#include <cstring>

#include "coding/kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fedcomm::FEDCOMM_ISA {
namespace {

using std::byte, std::size_t, std::uint32_t, std::uint64_t, std::uint8_t;

#define FEDCOMM_INLINE [[gnu::always_inline]] inline

FEDCOMM_INLINE void store64(byte* to, uint64_t word) {
  std::memcpy(to, &word, sizeof(word));
}

// --- fixed width ---------------------------------------------------------------------------------

/// Stores two quads of 4 * width bits, `low` first, at out: 8 * width bits in all.
FEDCOMM_INLINE void store_quads(uint64_t low, uint64_t high, unsigned width, byte* out) {
  const unsigned n_whole = (4 * width + 7) / 8, cut = 8 * n_whole - 4 * width;
  store64(out, low | high << (2 * width) << (2 * width));  // in two steps: 4 * width may be 64
  store64(out + n_whole, high >> cut);
}

#if defined(__AVX2__)

void pack(const uint32_t* values, size_t n_groups, unsigned width, byte* out) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << width) - 1));
  const __m256i low_half = _mm256_set1_epi64x(0xffffffff);
  const __m128i down = _mm_cvtsi32_si128(static_cast<int>(32 - width));
  const __m128i pair = _mm_cvtsi32_si128(static_cast<int>(2 * width));
  for (size_t group = 0; group < n_groups; ++group, values += kCodingGroup, out += width) {
    const __m256i v =
        _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)), mask);
    // Two values in each 64-bit lane, then four in the even lanes.
    const __m256i pairs = _mm256_or_si256(_mm256_and_si256(v, low_half),
                                          _mm256_srl_epi64(_mm256_andnot_si256(low_half, v), down));
    const __m256i quads =
        _mm256_or_si256(pairs, _mm256_sll_epi64(_mm256_unpackhi_epi64(pairs, pairs), pair));
    store_quads(static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_castsi256_si128(quads))),
                static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_extracti128_si256(quads, 1))), width,
                out);
  }
}

void unpack(const byte* in, size_t n_groups, unsigned width, uint32_t* values) {
  const unsigned half = 4 * width;  // bits before the upper four values
  alignas(32) uint8_t bytes[32];
  alignas(32) uint32_t shifts[8];
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned bit = i < 4 ? i * width : (i - 4) * width + half % 8;
    for (unsigned j = 0; j < 4; ++j)
      bytes[4 * i + j] = static_cast<uint8_t>(bit / 8 + j);
    shifts[i] = bit % 8;
  }
  const __m256i shuffle = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i shift = _mm256_load_si256(reinterpret_cast<const __m256i*>(shifts));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << width) - 1));
  for (size_t group = 0; group < n_groups; ++group, values += kCodingGroup, in += width) {
    const __m256i both = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + half / 8)), 1);
    const __m256i v = _mm256_srlv_epi32(_mm256_shuffle_epi8(both, shuffle), shift);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), _mm256_and_si256(v, mask));
  }
}

#else

FEDCOMM_INLINE uint64_t load64(const byte* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

void pack(const uint32_t* values, size_t n_groups, unsigned width, byte* out) {
  const uint64_t mask = (uint64_t{1} << width) - 1;
  for (size_t group = 0; group < n_groups; ++group, values += kCodingGroup, out += width) {
    uint64_t quads[2];
    for (size_t i = 0; i < 2; ++i) {
      const uint32_t* v = values + 4 * i;
      const uint64_t pair0 = (v[0] & mask) | (v[1] & mask) << width;
      const uint64_t pair1 = (v[2] & mask) | (v[3] & mask) << width;
      quads[i] = pair0 | pair1 << (2 * width);
    }
    store_quads(quads[0], quads[1], width, out);
  }
}

void unpack(const byte* in, size_t n_groups, unsigned width, uint32_t* values) {
  const uint64_t mask = (uint64_t{1} << width) - 1;
  const unsigned half = 4 * width;
  for (size_t group = 0; group < n_groups; ++group, values += kCodingGroup, in += width) {
    uint64_t low = load64(in), high = load64(in + half / 8) >> (half % 8);
    for (size_t i = 0; i < 4; ++i) {
      values[i] = static_cast<uint32_t>(low & mask);
      values[i + 4] = static_cast<uint32_t>(high & mask);
      low >>= width;
      high >>= width;
    }
  }
}

#endif

// --- unary ---------------------------------------------------------------------------------------

/// Appends `length` (at most kMaxGroupBits) bits. One store, no branch.
FEDCOMM_INLINE void append(uint64_t code, uint64_t length, BitTail& tail, byte*& out) {
  const uint64_t bits = tail.bits | code << tail.fill;
  const uint64_t fill = tail.fill + length;
  store64(out, bits);
  out += fill / 8;
  tail.bits = bits >> (fill & ~uint64_t{7});
  tail.fill = static_cast<unsigned>(fill % 8);
}

#if defined(__AVX2__)

size_t put_unary(const uint32_t* values, size_t n_groups, unsigned shift, BitTail& tail_in_memory,
                 byte*& out_in_memory) {
  BitTail tail = tail_in_memory;
  byte* out = out_in_memory;
  const __m256i low_half = _mm256_set1_epi64x(0xffffffff);
  const __m256i one = _mm256_set1_epi64x(1), two = _mm256_set1_epi64x(2);
  const __m128i down = _mm_cvtsi32_si128(static_cast<int>(shift));
  size_t group = 0;
  for (; group < n_groups; ++group, values += kCodingGroup) {
    const __m256i q =
        _mm256_srl_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)), down);
    // Two codes in each 64-bit lane: 1 << q0 | 2 << (q0 + q1). Lengths are kept less the number of
    // codes. A shift by 64 or more gives 0, but then the length is too large as well.
    const __m256i q0 = _mm256_and_si256(q, low_half);
    const __m256i sum = _mm256_add_epi64(q0, _mm256_srli_epi64(q, 32));
    const __m256i pair = _mm256_or_si256(_mm256_sllv_epi64(one, q0), _mm256_sllv_epi64(two, sum));
    // Four codes in the even lanes.
    const __m256i up = _mm256_add_epi64(sum, two);
    const __m256i quad =
        _mm256_or_si256(pair, _mm256_sllv_epi64(_mm256_unpackhi_epi64(pair, pair), up));
    const __m256i sums = _mm256_add_epi64(sum, _mm256_unpackhi_epi64(sum, sum));
    const auto sum0 = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_castsi256_si128(sums)));
    const auto sum1 = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_extracti128_si256(sums, 1)));
    const uint64_t length = sum0 + sum1 + kCodingGroup;
    if (length > kMaxGroupBits) break;
    const auto code0 = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_castsi256_si128(quad)));
    const auto code1 = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_extracti128_si256(quad, 1)));
    append(code0 | code1 << (sum0 + 4), length, tail, out);
  }
  tail_in_memory = tail;
  out_in_memory = out;
  return group;
}

#else

size_t put_unary(const uint32_t* values, size_t n_groups, unsigned shift, BitTail& tail_in_memory,
                 byte*& out_in_memory) {
  BitTail tail = tail_in_memory;
  byte* out = out_in_memory;
  size_t group = 0;
  for (; group < n_groups; ++group, values += kCodingGroup) {
    uint64_t sums[4];
    for (size_t i = 0; i < 4; ++i)
      sums[i] = uint64_t{values[2 * i] >> shift} + (values[2 * i + 1] >> shift);
    const uint64_t length = sums[0] + sums[1] + sums[2] + sums[3] + kCodingGroup;
    if (length > kMaxGroupBits) break;
    uint64_t pairs[4];
    for (size_t i = 0; i < 4; ++i)
      pairs[i] = uint64_t{1} << (values[2 * i] >> shift) | uint64_t{2} << sums[i];
    const uint64_t quad0 = pairs[0] | pairs[1] << (sums[0] + 2);
    const uint64_t quad1 = pairs[2] | pairs[3] << (sums[2] + 2);
    append(quad0 | quad1 << (sums[0] + sums[1] + 4), length, tail, out);
  }
  tail_in_memory = tail;
  out_in_memory = out;
  return group;
}

#endif

/// For each byte where its one bits are, and how many there are.
struct ByteTable {
  alignas(64) uint8_t positions[256][8];
  uint8_t count[256];
};

constexpr ByteTable make_byte_table() {
  ByteTable table{};
  for (unsigned value = 0; value < 256; ++value) {
    uint8_t count = 0;
    for (unsigned bit = 0; bit < 8; ++bit) {
      if ((value >> bit & 1) != 0) table.positions[value][count++] = static_cast<uint8_t>(bit);
    }
    table.count[value] = count;
  }
  return table;
}

constexpr ByteTable kBytes = make_byte_table();

size_t take_unary(const byte* in, size_t n_bytes, uint32_t first, uint32_t* positions) {
  uint32_t* next = positions;
  for (size_t i = 0; i < n_bytes; ++i) {
    // Always 8, of which the next byte overwrites those that do not count: no branch.
    const auto value = static_cast<uint8_t>(in[i]);
    const uint32_t base = first + static_cast<uint32_t>(8 * i);
    for (size_t j = 0; j < 8; ++j)
      next[j] = base + kBytes.positions[value][j];
    next += kBytes.count[value];
  }
  return static_cast<size_t>(next - positions);
}

// --- gaps to indices -----------------------------------------------------------------------------

#if defined(__AVX2__)

void join(const uint32_t* positions, const uint32_t* lows, size_t n_groups, unsigned shift,
          uint32_t& carry, uint32_t* out) {
  const __m256i step = _mm256_set1_epi32(static_cast<int>(1 - (1u << shift)));
  const __m128i up = _mm_cvtsi32_si128(static_cast<int>(shift));
  const __m256i last = _mm256_set1_epi32(7);
  __m256i before = _mm256_set1_epi32(static_cast<int>(carry));
  for (size_t group = 0; group < n_groups; ++group) {
    const size_t i = group * kCodingGroup;
    __m256i sum =
        _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lows + i)), step);
    sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 4));
    sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 8));
    // The sum of the lower four, added to the upper four.
    const __m256i lower = _mm256_permute2x128_si256(sum, sum, 0x08);
    sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(lower, 0xff));
    const __m256i high =
        _mm256_sll_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(positions + i)), up);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm256_add_epi32(high, _mm256_add_epi32(sum, before)));
    before = _mm256_add_epi32(before, _mm256_permutevar8x32_epi32(sum, last));
  }
  carry = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(before)));
}

#else

void join(const uint32_t* positions, const uint32_t* lows, size_t n_groups, unsigned shift,
          uint32_t& carry, uint32_t* out) {
  const uint32_t step = 1 - (1u << shift);
  uint32_t sum = carry;
  for (size_t i = 0; i < n_groups * kCodingGroup; ++i) {
    sum += lows[i] + step;
    out[i] = (positions[i] << shift) + sum;
  }
  carry = sum;
}

#endif

// --- differences ---------------------------------------------------------------------------------

bool take_gaps(const uint32_t* indices, size_t n, uint32_t* gaps) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t here = indices[i], before = *(indices + i - 1);
    gaps[i] = here - before - 1;
    bad |= here <= before ? 1u : 0u;
  }
  return bad == 0;
}

bool increasing(const uint32_t* values, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i)
    bad |= values[i] <= *(values + i - 1) ? 1u : 0u;
  return bad == 0;
}

using Lanes [[gnu::vector_size(32)]] = uint32_t;

/// Calls use(i, bases) for the first entry i of each group.
template <typename Use>
FEDCOMM_INLINE void for_each_group(size_t n_groups, ChunkWalk& walk, Use use) {
  Lanes base, rank;
  std::memcpy(&base, walk.base, sizeof(base));
  std::memcpy(&rank, walk.rank, sizeof(rank));
  for (size_t i = 0; i < n_groups * kCodingGroup; i += kCodingGroup) {
    use(i, base);
    rank += walk.rank_step;
    const Lanes over = reinterpret_cast<Lanes>(rank >= walk.per_chunk);
    rank -= over & walk.per_chunk;
    base += walk.base_step + (over & walk.chunk);
  }
  std::memcpy(walk.base, &base, sizeof(base));
  std::memcpy(walk.rank, &rank, sizeof(rank));
}

FEDCOMM_INLINE bool none(const Lanes& flags) {
  uint32_t any = 0;
  for (size_t i = 0; i < kCodingGroup; ++i)
    any |= flags[i];
  return any == 0;
}

bool to_local(const uint32_t* indices, size_t n_groups, ChunkWalk& walk, uint32_t* locals) {
  Lanes bad{};
  for_each_group(n_groups, walk, [&](size_t i, const Lanes& base) __attribute__((always_inline)) {
    Lanes v;
    std::memcpy(&v, indices + i, sizeof(v));
    v -= base;
    bad |= reinterpret_cast<Lanes>(v >= walk.chunk);
    std::memcpy(locals + i, &v, sizeof(v));
  });
  return none(bad);
}

bool to_global(const uint32_t* locals, size_t n_groups, ChunkWalk& walk, uint32_t* indices) {
  Lanes bad{};
  for_each_group(n_groups, walk, [&](size_t i, const Lanes& base) __attribute__((always_inline)) {
    Lanes v;
    std::memcpy(&v, locals + i, sizeof(v));
    bad |= reinterpret_cast<Lanes>(v >= walk.chunk);
    v += base;
    std::memcpy(indices + i, &v, sizeof(v));
  });
  return none(bad);
}

constexpr CodingKernels kKernels = {take_gaps, pack,     unpack,    put_unary, take_unary,
                                    join,      to_local, to_global, increasing};

}  // namespace

const CodingKernels& coding_kernels() {
  return kKernels;
}

}  // namespace fedcomm::FEDCOMM_ISA
