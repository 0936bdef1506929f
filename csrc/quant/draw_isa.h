// The random bits of a block, for the kernels of one instruction set: Philox on as many counters as
// two vectors hold. Included by quant_isa.cpp only.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quant/kernels.h"
#include "quant/philox.h"

namespace fedcomm::FEDCOMM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kLanes64 = 8;
#elif defined(__AVX2__)
constexpr std::size_t kLanes64 = 4;
#else
constexpr std::size_t kLanes64 = 2;
#endif
using Lanes64 [[gnu::vector_size(kLanes64 * 8)]] = std::uint64_t;

/// The lower half of each lane times that of `factor`'s: one instruction, but no compiler sees
/// that.
[[gnu::always_inline]] inline Lanes64 multiply_low(Lanes64 x, Lanes64 factor) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes64>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(factor)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(factor)));
#elif defined(__SSE2__)
  return reinterpret_cast<Lanes64>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(factor)));
#else
  return (x & 0xffffffffu) * (factor & 0xffffffffu);
#endif
}

/// {low[0], high[0], low[2], high[2], ...} and the odd lanes alike, to `out`.
[[gnu::always_inline]] inline void store_interleaved(Lanes64 low, Lanes64 high,
                                                     std::uint16_t* out) {
#if defined(__AVX512F__)
  const auto a = reinterpret_cast<__m512i>(low), b = reinterpret_cast<__m512i>(high);
  _mm512_storeu_si512(out, _mm512_unpacklo_epi64(a, b));
  _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi64(a, b));
#elif defined(__AVX2__)
  const auto a = reinterpret_cast<__m256i>(low), b = reinterpret_cast<__m256i>(high);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_unpacklo_epi64(a, b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_unpackhi_epi64(a, b));
#else
  const Lanes64 even = {low[0], high[0]}, odd = {low[1], high[1]};
  std::memcpy(out, &even, sizeof even);
  std::memcpy(out + 8, &odd, sizeof odd);
#endif
}

[[gnu::always_inline]] inline Lanes64 all_lanes(std::uint64_t x) {
  return Lanes64{} + x;
}

/// The keys of all rounds.
struct PhiloxKeys {
  Lanes64 first[Philox::kRounds], second[Philox::kRounds];

  [[gnu::always_inline]] explicit PhiloxKeys(std::uint64_t seed) {
    auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < Philox::kRounds; ++round) {
      first[round] = all_lanes(key0);
      second[round] = all_lanes(key1);
      key0 += Philox::kWeyl0;
      key1 += Philox::kWeyl1;
    }
  }
};

/// Elements whose bits are drawn together.
constexpr std::size_t kDrawn = 2 * kLanes64 * 8;

/// The random bits of elements [0, n), rounded up to kDrawn, of a block that begins at draw.first.
[[gnu::always_inline]] inline void draw_bits(const Draw& draw, const PhiloxKeys& keys,
                                             std::size_t n, std::uint16_t* random) {
  // Words of 32 bits in the lower halves of 64-bit lanes; the upper halves may hold anything.
  // Lanes 2i and 2i + 1 take counters i and kLanes64 / 2 + i, as store_interleaved() wants them.
  Lanes64 offset;
  for (std::size_t i = 0; i < kLanes64; ++i)
    offset[i] = i / 2 + i % 2 * (kLanes64 / 2);
  const Lanes64 factor0 = all_lanes(Philox::kMultiplier0);
  const Lanes64 factor1 = all_lanes(Philox::kMultiplier1);
  for (std::size_t i = 0; i < n; i += kDrawn) {
    Lanes64 a[2], b[2], c[2], d[2];
    for (std::size_t v = 0; v < 2; ++v) {
      a[v] = all_lanes((draw.first + i) / 8 + v * kLanes64) + offset;
      b[v] = a[v] >> 32 | std::uint64_t{draw.hop} << 24;
      c[v] = all_lanes(draw.bucket);
      d[v] = all_lanes(draw.round);
    }
#pragma GCC unroll 7
    for (int round = 0; round < Philox::kRounds; ++round) {
      for (std::size_t v = 0; v < 2; ++v) {
        const Lanes64 product0 = multiply_low(a[v], factor0);
        const Lanes64 product1 = multiply_low(c[v], factor1);
        a[v] = product1 >> 32 ^ (b[v] ^ keys.first[round]);
        c[v] = product0 >> 32 ^ (d[v] ^ keys.second[round]);
        b[v] = product1;
        d[v] = product0;
      }
    }
    for (std::size_t v = 0; v < 2; ++v) {
      store_interleaved((a[v] & 0xffffffffu) | b[v] << 32, (c[v] & 0xffffffffu) | d[v] << 32,
                        random + i + v * kLanes64 * 8);
    }
  }
}

}  // namespace
}  // namespace fedcomm::FEDCOMM_ISA
