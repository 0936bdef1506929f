// Codes of less than a byte, for the kernels of one instruction set: one code a byte to the
// payload's bits and back. Vectors are written out: GCC 13 leaves the same loops scalar that GCC 12
// does not. Included by quant_isa.cpp only.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quant/quant.h"

namespace fedcomm::FEDCOMM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif

using Pairs [[gnu::vector_size(kVectorBytes)]] = std::uint16_t;
constexpr std::size_t kPairs = kVectorBytes / sizeof(std::uint16_t);
using Singles [[gnu::vector_size(kPairs)]] = std::uint8_t;

/// Bytes after the end of one-code-a-byte buffers that pack() may read and unpack() may write.
constexpr std::size_t kPadding = kVectorBytes;

/// Pairs of bytes with kWidth bits each to single bytes with twice as many. `in` may be read beyond
/// its end, by less than a vector; `out` is written exactly.
template <unsigned kWidth>
[[gnu::always_inline]] inline void join(const std::uint8_t* in, std::size_t n_out,
                                        std::uint8_t* out) {
  for (std::size_t i = 0; i < n_out; i += kPairs) {
    Pairs pairs;
    std::memcpy(&pairs, in + 2 * i, sizeof pairs);
    pairs = (pairs | pairs >> (8 - kWidth)) & 0xff;
    const Singles singles = __builtin_convertvector(pairs, Singles);
    if (i + kPairs <= n_out) {
      std::memcpy(out + i, &singles, sizeof singles);
    } else {
      std::memcpy(out + i, &singles, n_out - i);
    }
  }
}

/// The reverse: `in` is read exactly, `out` may be written beyond its end.
template <unsigned kWidth>
[[gnu::always_inline]] inline void part(const std::uint8_t* in, std::size_t n_in,
                                        std::uint8_t* out) {
  constexpr std::uint16_t kMask = ((1u << kWidth) - 1) * 0x0101u;
  for (std::size_t i = 0; i < n_in; i += kPairs) {
    Singles singles = {};
    if (i + kPairs <= n_in) {
      std::memcpy(&singles, in + i, sizeof singles);
    } else {
      std::memcpy(&singles, in + i, n_in - i);
    }
    Pairs pairs = __builtin_convertvector(singles, Pairs);
    pairs = (pairs | pairs << (8 - kWidth)) & kMask;
    std::memcpy(out + 2 * i, &pairs, sizeof pairs);
  }
}

/// n codes, one a byte, to kBits each; overwrites them. Up to a multiple of 8 they are zero.
template <unsigned kBits>
[[gnu::always_inline]] inline void pack(std::uint8_t* codes, std::size_t n, std::byte* out) {
  const std::size_t n_bytes = (n * kBits + 7) / 8;
  if constexpr (kBits == 1) join<1>(codes, n_bytes * 4, codes);
  if constexpr (kBits <= 2) join<2>(codes, n_bytes * 2, codes);
  join<4>(codes, n_bytes, reinterpret_cast<std::uint8_t*>(out));
}

/// The sign bits of n floats, at most kMaxBlock.
[[gnu::always_inline]] inline void pack_signs(const float* x, std::size_t n, std::byte* out) {
  std::size_t i = 0;
#if defined(__AVX512DQ__)
  for (; i + 16 <= n; i += 16) {
    const auto bits = static_cast<std::uint16_t>(_mm512_movepi32_mask(_mm512_loadu_si512(x + i)));
    std::memcpy(out + i / 8, &bits, sizeof bits);
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8)
    out[i / 8] = static_cast<std::byte>(_mm256_movemask_ps(_mm256_loadu_ps(x + i)));
#elif defined(__SSE2__)
  for (; i + 8 <= n; i += 8) {
    const int low = _mm_movemask_ps(_mm_loadu_ps(x + i));
    out[i / 8] = static_cast<std::byte>(low | _mm_movemask_ps(_mm_loadu_ps(x + i + 4)) << 4);
  }
#endif
  alignas(64) std::uint8_t codes[kMaxBlock + kPadding];
  for (std::size_t j = i; j < n; ++j)
    codes[j - i] = static_cast<std::uint8_t>(float_bits(x[j]) >> 31);
  std::memset(codes + n - i, 0, 8);
  pack<1>(codes, n - i, out + i / 8);
}

/// The reverse. `codes` has room for n, rounded up to a multiple of 8, and kPadding.
template <unsigned kBits>
[[gnu::always_inline]] inline void unpack(const std::byte* in, std::size_t n, std::uint8_t* codes) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(in);
  const std::size_t n_bytes = (n * kBits + 7) / 8;
  if constexpr (kBits == 4) {
    part<4>(bytes, n_bytes, codes);
  } else {
    alignas(64) std::uint8_t halves[kMaxBlock / 2 + kPadding];
    if constexpr (kBits == 2) {
      part<4>(bytes, n_bytes, halves);
    } else {
      alignas(64) std::uint8_t quarters[kMaxBlock / 4 + kPadding];
      part<4>(bytes, n_bytes, quarters);
      part<2>(quarters, n_bytes * 2, halves);
    }
    part<kBits>(halves, n_bytes * (4 / kBits), codes);
  }
}

}  // namespace
}  // namespace fedcomm::FEDCOMM_ISA
