// Index coding: the indices of the entries that top-k chose, as bytes and back. It codes indices
// only; the values beside them belong to quant/. One thread a call, no allocation.
//
// An index set is k strictly increasing indices below n. Two codes, each of which has exactly one
// byte string for a set; a decoder takes that one and rejects everything else (corrupt_frame):
//
// rice: for sets from the whole range. The gap before index i_j is g_j = i_j - i_{j-1} - 1 (g_0 =
//   i_0). Both sides derive a shift l from (n, k). Two bit streams follow each other, both filled
//   from the low bits of a byte up, each padded to a whole byte with zero bits:
//     1. the low l bits of each gap, k * l bits;
//     2. the quotients g_j >> l in unary, that many zero bits and then a one.
//   (Rice, "Some practical universal noiseless coding techniques", 1979; the streams are apart as
//   in Elias-Fano coding.) With P_j the position of the j-th one in stream 2 and L_j the sum of the
//   low bits up to j, i_j = ((P_j - j) << l) + L_j + j: two prefix sums, so that a GPU can write
//   and read the same bytes. At l = 0 stream 2 is the bitmap of the set. k = 0 and k = n take no
//   bytes.
//
// packed: for sets with the same number of indices in every chunk of the range. Each index less its
//   chunk's first, in ceil(log2(chunk)) bits, in one stream over all chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fedcomm {

/// Indices are 32-bit.
inline constexpr std::uint64_t kMaxIndexRange = std::uint64_t{1} << 32;

/// The shift l (0 to 31) for k indices of [0, n): the one with the shortest expected code where
/// gaps are geometric with p = k / n. Integer arithmetic, so that all sides agree.
unsigned rice_shift(std::uint64_t n, std::size_t k);

/// The most bytes that any k indices of [0, n) take. Throws invalid_argument unless k <= n <= 2^32.
std::size_t rice_max_bytes(std::uint64_t n, std::size_t k);

/// Codes strictly increasing indices below n; returns the bytes written. `out` holds at least
/// rice_max_bytes(n, k) bytes; what lies past the returned size is left alone. Throws
/// invalid_argument where the indices are no such set.
std::size_t rice_encode(std::span<const std::uint32_t> indices, std::uint64_t n,
                        std::span<std::byte> out);

/// Decodes exactly indices.size() indices below n from exactly these bytes. Throws corrupt_frame
/// where they are not the code of such a set; the indices are then unspecified.
void rice_decode(std::span<const std::byte> bytes, std::uint64_t n,
                 std::span<std::uint32_t> indices);

/// The range [0, n) in chunks of `chunk` elements, of which the last may be shorter, with
/// min(k_per_chunk, length) indices in each.
struct Chunking {
  std::uint64_t n;
  std::uint32_t chunk;  // 1 to 65536
  std::uint32_t k_per_chunk;
};

/// Indices in all. This and the following throw invalid_argument where n or chunk is out of range.
std::size_t packed_count(const Chunking& chunking);

/// The exact size of their code.
std::size_t packed_bytes(const Chunking& chunking);

/// Codes packed_count() strictly increasing indices, min(k_per_chunk, length) from each chunk;
/// returns packed_bytes(), which `out` holds at least. Throws invalid_argument where the indices
/// are no such set.
std::size_t packed_encode(std::span<const std::uint32_t> indices, const Chunking& chunking,
                          std::span<std::byte> out);

/// Decodes packed_count() indices from packed_bytes() bytes. Throws corrupt_frame where these are
/// not the code of such a set; the indices are then unspecified.
void packed_decode(std::span<const std::byte> bytes, const Chunking& chunking,
                   std::span<std::uint32_t> indices);

}  // namespace fedcomm
