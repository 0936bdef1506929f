#include "wire/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
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

}  // namespace
#endif

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return crc32c_sse42(data, crc);
#endif
  return detail::crc32c_portable(data, crc);
}

}  // namespace fedcomm
