#include "wire/crc32c.h"

#include <array>
#include <cstring>

#include "base/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fedcomm {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78u;

using Table = std::array<std::uint32_t, 256>;

constexpr std::array<Table, 8> make_tables() {
  std::array<Table, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ ((crc & 1u) ? kPolynomial : 0u);
    tables[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t previous = tables[k - 1][byte];
      tables[k][byte] = (previous >> 8) ^ tables[0][previous & 0xffu];
    }
  }
  return tables;
}

constexpr std::array<Table, 8> kTables = make_tables();

std::uint64_t load64(const std::byte* p) {
  std::uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

}  // namespace

namespace detail {

std::uint32_t crc32c_portable(std::span<const std::byte> data, std::uint32_t crc) {
  const std::byte* p = data.data();
  std::size_t n = data.size();
  crc = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    const std::uint64_t word = load64(p) ^ crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k)
      crc ^= kTables[7 - k][(word >> (8 * k)) & 0xffu];
  }
  for (; n > 0; --n, ++p)
    crc = (crc >> 8) ^ kTables[0][(crc ^ static_cast<std::uint32_t>(*p)) & 0xffu];
  return ~crc;
}

}  // namespace detail

#if defined(__x86_64__)
namespace {

// The crc32 instruction has a latency of 3 and a throughput of 1, so three independent streams run
// at once; a stream is then moved past the bytes that follow it by a table lookup per byte of
// state.
constexpr std::size_t kStreamBytes = 4096;

constexpr std::uint32_t append_zero_byte(std::uint32_t crc) {
  return (crc >> 8) ^ kTables[0][crc & 0xffu];
}

std::array<Table, 4> make_shift() {
  std::array<std::uint32_t, 32> image;
  for (std::size_t bit = 0; bit < 32; ++bit) {
    std::uint32_t crc = 1u << bit;
    for (std::size_t i = 0; i < kStreamBytes; ++i)
      crc = append_zero_byte(crc);
    image[bit] = crc;
  }
  std::array<Table, 4> shift{};
  for (std::size_t byte = 0; byte < 4; ++byte) {
    for (std::uint32_t value = 0; value < 256; ++value) {
      for (std::size_t bit = 0; bit < 8; ++bit) {
        if (value & (1u << bit)) shift[byte][value] ^= image[8 * byte + bit];
      }
    }
  }
  return shift;
}

std::uint32_t past_stream(const std::array<Table, 4>& shift, std::uint32_t crc) {
  return shift[0][crc & 0xffu] ^ shift[1][(crc >> 8) & 0xffu] ^ shift[2][(crc >> 16) & 0xffu] ^
         shift[3][crc >> 24];
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(std::span<const std::byte> data,
                                                             std::uint32_t crc) {
  static const std::array<Table, 4> shift = make_shift();
  const std::byte* p = data.data();
  std::size_t n = data.size();
  std::uint64_t a = ~crc;
  for (; n >= 3 * kStreamBytes; n -= 3 * kStreamBytes, p += 3 * kStreamBytes) {
    std::uint64_t b = 0, c = 0;
    for (std::size_t i = 0; i < kStreamBytes; i += 8) {
      a = _mm_crc32_u64(a, load64(p + i));
      b = _mm_crc32_u64(b, load64(p + kStreamBytes + i));
      c = _mm_crc32_u64(c, load64(p + 2 * kStreamBytes + i));
    }
    a = past_stream(shift, static_cast<std::uint32_t>(a)) ^ b;
    a = past_stream(shift, static_cast<std::uint32_t>(a)) ^ c;
  }
  for (; n >= 8; n -= 8, p += 8)
    a = _mm_crc32_u64(a, load64(p));
  for (; n > 0; --n, ++p) {
    a = _mm_crc32_u8(static_cast<std::uint32_t>(a), static_cast<unsigned char>(*p));
  }
  return ~static_cast<std::uint32_t>(a);
}

// Folding by carry-less multiplication (V. Gopal et al., "Fast CRC computation for generic
// polynomials using PCLMULQDQ", 2009): 16 bytes move D bits on by two products, the lower 8 bytes,
// which come first and so stand for the higher powers, by x^(D+64), the upper 8 by x^D. Both
// factors are reflected, which leaves the product 33 bits too far on.
constexpr std::uint32_t power_of_x(unsigned exponent) {
  std::uint32_t crc = 0x80000000u;
  for (unsigned i = 0; i < exponent; ++i)
    crc = (crc >> 1) ^ ((crc & 1u) ? kPolynomial : 0u);
  return crc;
}

struct Fold {
  long long first, second;
};

constexpr Fold fold_by(unsigned n_bytes) {
  return {power_of_x(8 * n_bytes + 31), power_of_x(8 * n_bytes - 33)};
}

#define FEDCOMM_AVX512_CRC __attribute__((target("avx512f,avx512vl,vpclmulqdq,pclmul,sse4.2")))

FEDCOMM_AVX512_CRC inline __m512i fold(__m512i x, Fold by, __m512i next) {
  const __m512i k = _mm512_set_epi64(by.second, by.first, by.second, by.first, by.second, by.first,
                                     by.second, by.first);
  constexpr int kXor3 = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, k, 0x00),
                                   _mm512_clmulepi64_epi128(x, k, 0x11), next, kXor3);
}

/// Four accumulators of 64 bytes, enough to hide the multiplication's latency.
FEDCOMM_AVX512_CRC std::uint32_t crc32c_avx512(std::span<const std::byte> data, std::uint32_t crc) {
  constexpr std::size_t kVector = 64, kStride = 4 * kVector;
  constexpr Fold by_stride = fold_by(kStride), by_vector = fold_by(kVector);
  constexpr Fold by_48 = fold_by(48), by_32 = fold_by(32), by_16 = fold_by(16);
  if (data.size() < kStride) return crc32c_sse42(data, crc);
  const std::byte* p = data.data();
  std::size_t n = data.size() - kStride;
  __m512i a = _mm512_xor_si512(_mm512_loadu_si512(p),
                               _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~crc))));
  __m512i b = _mm512_loadu_si512(p + kVector), c = _mm512_loadu_si512(p + 2 * kVector),
          d = _mm512_loadu_si512(p + 3 * kVector);
  for (p += kStride; n >= kStride; n -= kStride, p += kStride) {
    a = fold(a, by_stride, _mm512_loadu_si512(p));
    b = fold(b, by_stride, _mm512_loadu_si512(p + kVector));
    c = fold(c, by_stride, _mm512_loadu_si512(p + 2 * kVector));
    d = fold(d, by_stride, _mm512_loadu_si512(p + 3 * kVector));
  }
  d = fold(fold(fold(a, by_vector, b), by_vector, c), by_vector, d);
  // The four parts of the last vector, moved to where its last 16 bytes are.
  const __m512i by = _mm512_set_epi64(0, 0, by_16.second, by_16.first, by_32.second, by_32.first,
                                      by_48.second, by_48.first);
  const __m512i moved = _mm512_xor_si512(_mm512_clmulepi64_epi128(d, by, 0x00),
                                         _mm512_clmulepi64_epi128(d, by, 0x11));
  std::uint64_t last[8], parts[8];
  _mm512_storeu_si512(last, d);
  _mm512_storeu_si512(parts, moved);
  std::uint64_t state = _mm_crc32_u64(0, last[6] ^ parts[0] ^ parts[2] ^ parts[4]);
  state = _mm_crc32_u64(state, last[7] ^ parts[1] ^ parts[3] ^ parts[5]);
  return crc32c_sse42({p, n}, ~static_cast<std::uint32_t>(state));
}

#undef FEDCOMM_AVX512_CRC

}  // namespace
#endif

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  static const bool has_vpclmul = has_sse42 && __builtin_cpu_supports("vpclmulqdq");
  if (has_vpclmul && current_isa() == Isa::avx512) return crc32c_avx512(data, crc);
  if (has_sse42) return crc32c_sse42(data, crc);
#endif
  return detail::crc32c_portable(data, crc);
}

}  // namespace fedcomm
