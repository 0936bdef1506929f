// What the tests of index coding share: a reference that goes bit by bit, index sets of all sorts,
// hostile bytes, and runs on every instruction set of this machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/isa.h"
#include "check.h"
#include "coding/coding.h"

namespace fedcomm::testing {

using Indices = std::vector<std::uint32_t>;
using Bytes = std::vector<std::byte>;
using Random = std::mt19937_64;

// --- the reference -------------------------------------------------------------------------------

struct BitWriter {
  void put(bool bit) {
    if (n_bits % 8 == 0) bytes.push_back(std::byte{0});
    if (bit) bytes.back() |= std::byte{1} << (n_bits % 8);
    ++n_bits;
  }
  void put(std::uint64_t value, unsigned width) {
    for (unsigned bit = 0; bit < width; ++bit)
      put((value >> bit & 1) != 0);
  }
  void align() { n_bits = 8 * bytes.size(); }

  Bytes bytes;
  std::size_t n_bits = 0;
};

/// Bits past the end are absent: ok turns false.
struct BitReader {
  bool get() {
    ok = ok && at < 8 * bytes.size();
    if (!ok) return false;
    const bool bit = (bytes[at / 8] >> (at % 8) & std::byte{1}) != std::byte{0};
    ++at;
    return bit;
  }
  std::uint64_t get(unsigned width) {
    std::uint64_t value = 0;
    for (unsigned bit = 0; bit < width; ++bit)
      value |= std::uint64_t{get()} << bit;
    return value;
  }
  void align() {
    while (ok && at % 8 != 0)
      ok = !get() && ok;
  }

  const Bytes& bytes;
  std::size_t at = 0;
  bool ok = true;
};

inline Bytes reference_rice(const Indices& indices, std::uint64_t n) {
  if (indices.size() == n) return {};
  const unsigned shift = rice_shift(n, indices.size());
  std::vector<std::uint64_t> gaps;
  for (std::size_t i = 0; i < indices.size(); ++i)
    gaps.push_back(i == 0 ? indices[0] : indices[i] - indices[i - 1] - 1);
  BitWriter out;
  for (const std::uint64_t gap : gaps)
    out.put(gap, shift);
  out.align();
  for (const std::uint64_t gap : gaps) {
    for (std::uint64_t zero = 0; zero < gap >> shift; ++zero)
      out.put(false);
    out.put(true);
  }
  return out.bytes;
}

inline std::optional<Indices> reference_rice_decode(const Bytes& bytes, std::uint64_t n,
                                                    std::size_t k) {
  Indices indices(k);
  std::iota(indices.begin(), indices.end(), 0u);
  if (k == n) return bytes.empty() ? std::optional(indices) : std::nullopt;
  const unsigned shift = rice_shift(n, k);
  BitReader in{bytes};
  std::vector<std::uint64_t> gaps;
  for (std::size_t i = 0; i < k; ++i)
    gaps.push_back(in.get(shift));
  in.align();
  std::uint64_t next = 0;
  for (std::size_t i = 0; i < k; ++i) {
    while (in.ok && !in.get())
      gaps[i] += std::uint64_t{1} << shift;
    next += gaps[i] + 1;
    if (!in.ok || next > n) return std::nullopt;
    indices[i] = static_cast<std::uint32_t>(next - 1);
  }
  in.align();
  return in.ok && in.at == 8 * bytes.size() ? std::optional(indices) : std::nullopt;
}

inline unsigned width_for(std::uint32_t chunk) {
  unsigned width = 0;
  while ((std::uint64_t{1} << width) < chunk)
    ++width;
  return width;
}

inline Bytes reference_packed(const Indices& indices, const Chunking& c) {
  BitWriter out;
  for (const std::uint32_t index : indices)
    out.put(index % c.chunk, width_for(c.chunk));
  return out.bytes;
}

inline std::optional<Indices> reference_packed_decode(const Bytes& bytes, const Chunking& c) {
  BitReader in{bytes};
  Indices indices;
  for (std::uint64_t begin = 0; begin < c.n; begin += c.chunk) {
    const std::uint64_t length = std::min<std::uint64_t>(c.chunk, c.n - begin);
    std::uint64_t least = 0;
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(length, c.k_per_chunk); ++i) {
      const std::uint64_t local = in.get(width_for(c.chunk));
      if (!in.ok || local < least || local >= length) return std::nullopt;
      indices.push_back(static_cast<std::uint32_t>(begin + local));
      least = local + 1;
    }
  }
  in.align();
  return in.ok && in.at == 8 * bytes.size() ? std::optional(indices) : std::nullopt;
}

// --- the library ---------------------------------------------------------------------------------

inline std::string shown(const Bytes& bytes) {
  std::string text;
  for (const std::byte b : bytes) {
    text += "0123456789abcdef"[std::to_integer<int>(b >> 4)];
    text += "0123456789abcdef"[std::to_integer<int>(b & std::byte{15})];
  }
  return text;
}

/// Vectors of exact size, so that AddressSanitizer sees a byte too many.
inline Bytes rice(const Indices& indices, std::uint64_t n) {
  Bytes out(rice_max_bytes(n, indices.size()), std::byte{0xa5});
  const std::size_t n_bytes = rice_encode(indices, n, out);
  CHECK(n_bytes <= out.size());
  CHECK(std::all_of(out.begin() + static_cast<std::ptrdiff_t>(n_bytes), out.end(),
                    [](std::byte b) { return b == std::byte{0xa5}; }));
  return Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n_bytes));
}

template <typename Decode>
inline std::optional<Indices> accepted(std::size_t k, Decode decode) {
  Indices indices(k, 0xdeadbeefu);
  try {
    decode(indices);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::corrupt_frame);
    return std::nullopt;
  }
  return indices;
}

inline std::optional<Indices> rice_back(const Bytes& bytes, std::uint64_t n, std::size_t k) {
  return accepted(k, [&](Indices& indices) { rice_decode(bytes, n, indices); });
}

inline std::optional<Indices> packed_back(const Bytes& bytes, const Chunking& c) {
  return accepted(packed_count(c), [&](Indices& indices) { packed_decode(bytes, c, indices); });
}

template <typename Run>
void on_every_isa(Run run) {
  const Isa before = current_isa();
  for (const Isa isa : available_isas()) {
    use_isa(name_of(isa));
    run();
  }
  use_isa(name_of(before));
}

inline void check_rice(const Indices& indices, std::uint64_t n) {
  const Bytes expected = reference_rice(indices, n);
  on_every_isa([&] {
    CHECK(rice(indices, n) == expected);
    CHECK(rice_back(expected, n, indices.size()) == indices);
  });
}

inline void check_packed(const Indices& indices, const Chunking& c) {
  const Bytes expected = reference_packed(indices, c);
  CHECK_EQUAL(expected.size(), packed_bytes(c));
  on_every_isa([&] {
    Bytes out(expected.size());
    CHECK_EQUAL(packed_encode(indices, c, out), out.size());
    CHECK(out == expected);
    CHECK(packed_back(out, c) == indices);
  });
}

// --- index sets ----------------------------------------------------------------------------------

/// About n * density indices, as if each element were chosen or not.
inline Indices random_set(Random& random, std::uint64_t n, double density) {
  Indices indices;
  double at = -1;
  for (;;) {
    const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
    at += 1 + std::floor(std::log1p(-uniform) / std::log1p(-density));
    if (at >= static_cast<double>(n)) return indices;
    indices.push_back(static_cast<std::uint32_t>(at));
  }
}

/// Exactly k, all sets alike (selection sampling: Knuth, TAOCP 2, 3.4.2, algorithm S).
inline Indices random_set_of(Random& random, std::uint64_t n, std::size_t k) {
  Indices indices;
  for (std::uint64_t i = 0; i < n && indices.size() < k; ++i) {
    if (random() % (n - i) < k - indices.size()) indices.push_back(static_cast<std::uint32_t>(i));
  }
  return indices;
}

/// Runs of neighbours far from each other: quotients of 0 and huge ones in turn.
inline Indices clusters(Random& random, std::uint64_t n, std::size_t run, std::uint64_t distance) {
  Indices indices;
  std::uint64_t at = random() % distance;
  while (at < n) {
    for (std::size_t i = 0; i < run && at < n; ++i)
      indices.push_back(static_cast<std::uint32_t>(at++));
    at += 1 + random() % (2 * distance);
  }
  return indices;
}

inline Indices random_chunked(Random& random, const Chunking& c) {
  Indices indices;
  for (std::uint64_t begin = 0; begin < c.n; begin += c.chunk) {
    const std::uint64_t length = std::min<std::uint64_t>(c.chunk, c.n - begin);
    const Indices local = random_set_of(
        random, length, static_cast<std::size_t>(std::min<std::uint64_t>(length, c.k_per_chunk)));
    for (const std::uint32_t index : local)
      indices.push_back(static_cast<std::uint32_t>(begin + index));
  }
  return indices;
}

inline const std::vector<Chunking>& chunkings() {
  static const std::vector<Chunking> all = {
      {0, 256, 3},         {1, 256, 1},        {255, 256, 7},      {256, 256, 256},
      {257, 256, 300},     {1000, 256, 0},     {5000, 256, 3},     {5003, 1, 1},
      {5003, 2, 1},        {5003, 3, 2},       {70001, 257, 5},    {70001, 1000, 10},
      {70001, 1000, 999},  {100003, 1024, 8},  {100003, 4096, 41}, {200000, 65536, 655},
      {200000, 65535, 64}, {65537, 65536, 31}, {140000, 500, 9},   {140000, 32769, 1100}};
  return all;
}

// --- hostile bytes -------------------------------------------------------------------------------

/// Calls verdict() with bytes that a code may have become on its way, or never was.
template <typename Verdict>
void check_mutations(Random& random, const Bytes& bytes, Verdict verdict) {
  for (std::size_t size = 0; size < bytes.size(); ++size)
    verdict(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)));
  for (const std::byte extra : {std::byte{0}, std::byte{1}, std::byte{255}}) {
    Bytes longer = bytes;
    longer.push_back(extra);
    verdict(longer);
  }
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    Bytes flipped = bytes;
    flipped[bit / 8] ^= std::byte{1} << (bit % 8);
    verdict(flipped);
    const std::size_t other = random() % (8 * bytes.size());
    flipped[other / 8] ^= std::byte{1} << (other % 8);
    verdict(flipped);
  }
  for (int repeat = 0; repeat < 20; ++repeat) {
    Bytes garbage(bytes.size());
    for (std::byte& b : garbage)
      b = static_cast<std::byte>(random());
    verdict(garbage);
  }
  for (const std::byte value : {std::byte{0}, std::byte{255}, std::byte{128}, std::byte{1}})
    verdict(Bytes(bytes.size(), value));
}

}  // namespace fedcomm::testing
