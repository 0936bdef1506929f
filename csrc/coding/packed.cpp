// Fixed-width coding of the indices of chunked top-k.
#include <string>

#include "coding/blocks.h"
#include "coding/coding.h"

namespace fedcomm {

ChunkWalk::ChunkWalk(std::uint32_t chunk_length, std::uint32_t entries_per_chunk)
    : chunk(chunk_length), per_chunk(entries_per_chunk) {
  constexpr auto kStep = static_cast<std::uint32_t>(kCodingGroup);
  base_step = kStep / per_chunk * chunk;
  rank_step = kStep % per_chunk;
  for (std::uint32_t i = 0; i < kStep; ++i) {
    base[i] = i / per_chunk * chunk;
    rank[i] = i % per_chunk;
  }
}

namespace {

constexpr std::uint32_t kMaxChunk = 65536;

std::string describe(const Chunking& c) {
  return "[packed] " + std::to_string(c.k_per_chunk) + " indices of every " +
         std::to_string(c.chunk) + " of " + std::to_string(c.n) + ": ";
}

/// Only where there is an index at all.
ChunkWalk walk_of(const Chunking& c) {
  return {c.chunk, std::min(c.chunk, c.k_per_chunk)};
}

/// Whether the last of k indices lies in the last chunk, which may be short.
bool last_fits(std::uint32_t last, const Chunking& c) {
  const std::uint64_t base = (c.n - 1) / c.chunk * c.chunk;
  return last >= base && last < c.n;
}

}  // namespace

std::size_t packed_count(const Chunking& c) {
  if (c.n > kMaxIndexRange || c.chunk == 0 || c.chunk > kMaxChunk) {
    fail(ErrorKind::invalid_argument,
         describe(c) + "a range holds at most 2^32, a chunk 1 to 65536 elements");
  }
  return static_cast<std::size_t>(c.n / c.chunk * std::min(c.chunk, c.k_per_chunk) +
                                  std::min<std::uint64_t>(c.n % c.chunk, c.k_per_chunk));
}

std::size_t packed_bytes(const Chunking& c) {
  return bytes_of_bits(std::uint64_t{packed_count(c)} * packed_width(c.chunk));
}

std::size_t packed_encode(std::span<const std::uint32_t> indices, const Chunking& c,
                          std::span<std::byte> out) {
  const std::size_t k = packed_count(c), n_bytes = packed_bytes(c);
  if (indices.size() != k || out.size() < n_bytes) {
    fail(ErrorKind::invalid_argument, describe(c) + "expected " + std::to_string(k) +
                                          " indices and room for " + std::to_string(n_bytes) +
                                          " bytes, not " + std::to_string(indices.size()) +
                                          " and " + std::to_string(out.size()));
  }
  if (k == 0) return 0;
  const CodingKernels& kernels = coding_kernels();
  const unsigned width = packed_width(c.chunk);
  ChunkWalk walk = walk_of(c);
  bool good = last_fits(indices.back(), c);
  std::uint32_t locals[kCodingBlock];
  for (std::size_t i = 0; i < k && good; i += kCodingBlock) {
    const std::size_t n_here = std::min(kCodingBlock, k - i);
    const std::uint32_t* here = indices.data() + i;
    const std::size_t n_groups = n_here / kCodingGroup, n_done = n_groups * kCodingGroup;
    good = kernels.to_local(here, n_groups, walk, locals) && good;
    if (n_done < n_here) {
      std::uint32_t rest[kCodingGroup];
      std::copy(walk.base, walk.base + kCodingGroup, rest);  // what lies behind: local index 0
      std::copy(here + n_done, here + n_here, rest);
      good = kernels.to_local(rest, 1, walk, locals + n_done) && good;
    }
    const std::size_t first = i == 0 ? 1 : 0;
    good = kernels.increasing(here + first, n_here - first) && good;
    write_block(kernels, locals, n_here, width, out.data() + i / 8 * width);
  }
  if (!good) {
    fail(ErrorKind::invalid_argument,
         describe(c) + "the indices are not strictly increasing, or not so many in each chunk");
  }
  return n_bytes;
}

void packed_decode(std::span<const std::byte> bytes, const Chunking& c,
                   std::span<std::uint32_t> indices) {
  const std::size_t k = packed_count(c), n_bytes = packed_bytes(c);
  if (indices.size() != k) {
    fail(ErrorKind::invalid_argument, describe(c) + "expected room for " + std::to_string(k) +
                                          " indices, not " + std::to_string(indices.size()));
  }
  if (bytes.size() != n_bytes) {
    fail(ErrorKind::corrupt_frame, describe(c) + "expected " + std::to_string(n_bytes) +
                                       " bytes, not " + std::to_string(bytes.size()));
  }
  if (k == 0) return;
  const CodingKernels& kernels = coding_kernels();
  const unsigned width = packed_width(c.chunk);
  if (!padding_is_zero(bytes.data(), std::uint64_t{k} * width))
    fail(ErrorKind::corrupt_frame, describe(c) + "padding behind the indices is not zero");
  ChunkWalk walk = walk_of(c);
  bool good = true;
  std::uint32_t locals[kCodingBlock];
  for (std::size_t i = 0; i < k && good; i += kCodingBlock) {
    const std::size_t n_here = std::min(kCodingBlock, k - i);
    std::uint32_t* here = indices.data() + i;
    read_block(kernels, bytes.data() + i / 8 * width, n_here, width, locals);
    const std::size_t n_groups = n_here / kCodingGroup, n_done = n_groups * kCodingGroup;
    good = kernels.to_global(locals, n_groups, walk, here);
    if (n_done < n_here) {
      std::uint32_t rest[kCodingGroup];
      good = kernels.to_global(locals + n_done, 1, walk, rest) && good;
      std::copy(rest, rest + (n_here - n_done), here + n_done);
    }
    const std::size_t first = i == 0 ? 1 : 0;
    good = kernels.increasing(here + first, n_here - first) && good;
  }
  if (!good || !last_fits(indices.back(), c)) {
    fail(ErrorKind::corrupt_frame,
         describe(c) + "the indices are not strictly increasing inside their chunks");
  }
}

}  // namespace fedcomm
