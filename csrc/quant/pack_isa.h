// Codes of less than a byte, for the kernels of one instruction set: one code a byte to the
// payload's bits and back. Vectors are written out: GCC 13 leaves the same loops scalar that GCC 12
// does not. Included by quant_isa.cpp only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fedcomm::FEDCOMM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif

/// A word holds the codes of one packed byte, each in a byte of its own.
template <unsigned kBits>
struct PackedWord;
template <>
struct PackedWord<4> {
  using Word = std::uint16_t;
};
template <>
struct PackedWord<2> {
  using Word = std::uint32_t;
};
template <>
struct PackedWord<1> {
  using Word = std::uint64_t;
};
template <unsigned kBits>
using WordOf = typename PackedWord<kBits>::Word;

/// Words side by side, and their bytes when packed.
template <unsigned kBits>
struct PackedVectors {
  using Word = WordOf<kBits>;
  static constexpr std::size_t kCount = kVectorBytes / sizeof(Word);
  using Words [[gnu::vector_size(kVectorBytes)]] = Word;
  using Bytes [[gnu::vector_size(kCount)]] = std::uint8_t;
};

/// The word (or words, in a vector) of a packed byte.
template <unsigned kBits, typename W>
[[gnu::always_inline]] inline W spread(W x) {
  using Word = WordOf<kBits>;
  if constexpr (kBits == 4) {
    return static_cast<W>((x | x << 4) & Word{0x0f0f});
  } else if constexpr (kBits == 2) {
    x = (x | x << 12) & Word{0x000f000f};
    return (x | x << 6) & Word{0x03030303};
  } else {
    x = (x | x << 28) & Word{0x0000000f0000000f};
    x = (x | x << 14) & Word{0x0003000300030003};
    return (x | x << 7) & Word{0x0101010101010101};
  }
}

/// The reverse, in the lowest byte; the others are zero.
template <unsigned kBits, typename W>
[[gnu::always_inline]] inline W gather(W x) {
  using Word = WordOf<kBits>;
  if constexpr (kBits == 4) {
    return static_cast<W>((x | x >> 4) & Word{0xff});
  } else if constexpr (kBits == 2) {
    x = x | x >> 6;
    return (x | x >> 12) & Word{0xff};
  } else {
    x = x | x >> 7;
    x = x | x >> 14;
    return (x | x >> 28) & Word{0xff};
  }
}

/// n codes, one a byte, to kBits each. `codes` is readable, and zero, up to a multiple of 8.
template <unsigned kBits>
[[gnu::always_inline]] inline void pack(const std::uint8_t* codes, std::size_t n, std::byte* out) {
  using V = PackedVectors<kBits>;
  const std::size_t n_bytes = (n * kBits + 7) / 8;
  std::size_t i = 0;
  for (; i + V::kCount <= n_bytes; i += V::kCount) {
    typename V::Words words;
    std::memcpy(&words, codes + i * sizeof(WordOf<kBits>), sizeof words);
    const auto bytes = __builtin_convertvector(gather<kBits>(words), typename V::Bytes);
    std::memcpy(out + i, &bytes, sizeof bytes);
  }
  for (; i < n_bytes; ++i) {
    WordOf<kBits> word;
    std::memcpy(&word, codes + i * sizeof word, sizeof word);
    out[i] = static_cast<std::byte>(gather<kBits>(word));
  }
}

/// The reverse; writes up to a multiple of 8 codes.
template <unsigned kBits>
[[gnu::always_inline]] inline void unpack(const std::byte* in, std::size_t n, std::uint8_t* codes) {
  using V = PackedVectors<kBits>;
  const std::size_t n_bytes = (n * kBits + 7) / 8;
  std::size_t i = 0;
  for (; i + V::kCount <= n_bytes; i += V::kCount) {
    typename V::Bytes bytes;
    std::memcpy(&bytes, in + i, sizeof bytes);
    const auto words = spread<kBits>(__builtin_convertvector(bytes, typename V::Words));
    std::memcpy(codes + i * sizeof(WordOf<kBits>), &words, sizeof words);
  }
  for (; i < n_bytes; ++i) {
    const auto word = spread<kBits>(static_cast<WordOf<kBits>>(in[i]));
    std::memcpy(codes + i * sizeof word, &word, sizeof word);
  }
}

}  // namespace
}  // namespace fedcomm::FEDCOMM_ISA
