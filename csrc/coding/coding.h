// Index coding: the indices of the entries that top-k chose, as bytes and back, on the CPU and on a
// GPU, which produce and accept the same bytes. It codes indices only; the values beside them
// belong to quant/. On the CPU: one thread a call, no allocation.
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

#include "base/device_buffer.h"

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

// On a GPU. All spans and pointers are of device memory, with no alignment beyond their type's.
// Asynchronous on `stream` (a cudaStream_t), which may be capturing a graph; nothing is allocated
// but by a workspace that grows. Arguments that a call can check throw as those of the CPU do.
namespace cuda {

/// What Rice coding needs besides its output. It grows to the largest call's needs (16 KiB, and to
/// encode, about 0.4 bytes an index) and is then reused, by one call after the other in the order
/// of one stream. Growing is an error while a stream is being captured: reserve() before.
class RiceWorkspace {
 public:
  /// Up to k of n indices can then be encoded or decoded without allocation.
  void reserve(std::uint64_t n, std::size_t k);
  /// Up to k indices of any range; up to twice the memory.
  void reserve(std::size_t k);
  std::byte* data() const { return memory_.data(); }

 private:
  DeviceBuffer memory_;
};

/// Strictly increasing indices of [base, base + n), which are coded as index - base. How many, and
/// where, may be known on the device only. Nobody checks that they are such a set: they come from
/// our own selection. Whatever they are, no more than rice_max_bytes() are written.
struct IndexSet {
  std::span<const std::uint32_t> indices;
  std::uint64_t n = 0;
  std::uint32_t base = 0;
  /// If not null: the set is indices[range[0]] to the one before indices[range[1]], at most n.
  const std::uint32_t* range = nullptr;
};

/// Where a code goes: to bytes[0], or to bytes[*offset] where that is known on the device only.
struct CodeOutput {
  std::span<std::byte> bytes;
  const std::uint64_t* offset = nullptr;
  std::uint64_t* n_bytes = nullptr;  // set to the code's size, unless null
  std::uint64_t* end = nullptr;      // set to that and what *offset is, unless null
};

/// Which of strictly increasing indices (fewer than 2^32) lie in [begin, end): range[0] and
/// range[1] are set to the number below `begin` and the number below `end`.
void find_range(std::span<const std::uint32_t> indices, std::uint64_t begin, std::uint64_t end,
                std::uint32_t* range, void* stream);

/// `out.bytes` has room for rice_max_bytes() of the set's size, from the offset on; what lies past
/// the code is left alone. Three kernels.
void rice_encode(const IndexSet& set, const CodeOutput& out, RiceWorkspace& workspace,
                 void* stream);

/// As the CPU's, but sets *corrupt to 1 (and leaves it alone otherwise) where that throws
/// corrupt_frame. The indices are then unspecified: whoever uses them on the device looks at
/// *corrupt first. Three kernels.
void rice_decode(std::span<const std::byte> bytes, std::uint64_t n,
                 std::span<std::uint32_t> indices, std::int32_t* corrupt, RiceWorkspace& workspace,
                 void* stream);

/// As the CPU's, of indices of [base, base + chunking.n), which are not checked; returns the code's
/// size. One kernel.
std::size_t packed_encode(std::span<const std::uint32_t> indices, const Chunking& chunking,
                          std::uint32_t base, std::span<std::byte> out, void* stream);

/// As the CPU's, but for *corrupt, as in rice_decode(). One kernel.
void packed_decode(std::span<const std::byte> bytes, const Chunking& chunking,
                   std::span<std::uint32_t> indices, std::int32_t* corrupt, void* stream);

}  // namespace cuda
}  // namespace fedcomm
