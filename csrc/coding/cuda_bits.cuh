// What the CUDA kernels of both index codes share: bit streams at any byte address, read and
// written in whole words where these lie inside and byte by byte at the ends, so that no byte
// beside a stream is touched; and how work is dealt out to thread blocks. No kernels here.
#pragma once

#include "base/cuda.cuh"

namespace fedcomm::cuda::coding {

inline constexpr unsigned kThreads = 256;
inline constexpr unsigned kWarps = kThreads / kWarp;
/// At most so many blocks share a sum: each block adds up the parts of all those before it.
inline constexpr unsigned kMaxBlocks = 1024;

/// The elements that are a block's own: whole tiles, the same number for all but the last blocks.
struct Run {
  std::uint64_t begin, end;
};

__device__ __forceinline__ Run run_of_block(std::uint64_t n, unsigned tile) {
  const std::uint64_t n_tiles = (n + tile - 1) / tile;
  const std::uint64_t length = (n_tiles + gridDim.x - 1) / gridDim.x * tile;
  const std::uint64_t begin = blockIdx.x * length;
  return {begin < n ? begin : n, begin + length < n ? begin + length : n};
}

/// What the blocks before this one have, and all of them. `parts` has one for each block.
__device__ __forceinline__ BlockPrefix<std::uint64_t> sum_of_blocks(
    const std::uint64_t* parts, std::uint64_t (&scratch)[2][kWarps]) {
  std::uint64_t before = 0, total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
    const std::uint64_t part = parts[i];
    if (i < blockIdx.x) before += part;
    total += part;
  }
  return {block_prefix<kThreads>(before, scratch[0]).total,
          block_prefix<kThreads>(total, scratch[1]).total};
}

// --- reading -------------------------------------------------------------------------------------

/// A stream as the aligned words of memory it lies in: `head` bytes of word 0 are not its own.
struct ByteStream {
  const std::byte* bytes;
  std::uint64_t n_bytes;

  __device__ __forceinline__ unsigned head() const {
    return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(bytes) % 4);
  }
  __device__ __forceinline__ std::uint64_t n_words() const { return (head() + n_bytes + 3) / 4; }

  /// Word `w` < n_words() of memory; bytes that are not the stream's are zero.
  __device__ __forceinline__ std::uint32_t word(std::uint64_t w) const {
    const std::uint64_t begin = 4 * w, first = head();
    if (begin >= first && begin + 4 <= first + n_bytes)
      return *reinterpret_cast<const std::uint32_t*>(bytes - first + begin);
    std::uint32_t word = 0;
    for (unsigned i = 0; i < 4; ++i) {
      if (begin + i < first || begin + i >= first + n_bytes) continue;
      word |= static_cast<std::uint32_t>(bytes[begin + i - first]) << (8 * i);
    }
    return word;
  }

  /// `width` (0 to 31) bits, all of them the stream's, from bit `at` on.
  __device__ __forceinline__ std::uint32_t bits(std::uint64_t at, unsigned width) const {
    if (width == 0) return 0;
    const std::uint64_t bit = at + 8 * head();
    const unsigned skip = bit % 32;
    const std::uint64_t w = bit / 32;
    std::uint32_t low, high;
    if (w > 0 && 4 * w + 8 <= head() + n_bytes) {
      const auto* words = reinterpret_cast<const std::uint32_t*>(bytes - head()) + w;
      low = words[0], high = words[1];
    } else {
      low = word(w), high = skip + width > 32 ? word(w + 1) : 0;
    }
    return __funnelshift_r(low, high, skip) & ((1u << width) - 1);
  }
};

// --- writing -------------------------------------------------------------------------------------

/// Writes exactly n_bytes to `to`, by threads `thread` of `n_threads`. source(bit) gives the 32
/// bits from a bit of the stream on, a multiple of 8; what it gives for bits past the end is not
/// written.
template <typename Source>
__device__ __forceinline__ void store_stream(std::byte* to, std::uint64_t n_bytes,
                                             std::uint64_t thread, std::uint64_t n_threads,
                                             Source source) {
  const std::uint64_t head = reinterpret_cast<std::uintptr_t>(to) % 4;
  const std::uint64_t n_words = (head + n_bytes + 3) / 4;
  for (std::uint64_t w = thread; w < n_words; w += n_threads) {
    const std::uint64_t begin = 4 * w > head ? 4 * w - head : 0;
    const std::uint64_t end = 4 * w + 4 < head + n_bytes ? 4 * w + 4 - head : n_bytes;
    const std::uint32_t word = source(8 * begin);
    if (end - begin == 4) {
      *reinterpret_cast<std::uint32_t*>(to + begin) = word;
    } else {
      for (std::uint64_t i = begin; i < end; ++i)
        to[i] = static_cast<std::byte>(word >> (8 * (i - begin)));
    }
  }
}

// --- tiles of values -----------------------------------------------------------------------------

/// A thread's consecutive values, and a block's, in shared memory.
inline constexpr unsigned kPerThread = 8;
inline constexpr unsigned kTile = kThreads * kPerThread;

/// Values in shared memory, spread so that the threads' first values lie in different banks.
struct Tile {
  std::uint32_t values[kTile + kTile / kPerThread];

  __device__ __forceinline__ std::uint32_t& operator[](unsigned i) {
    return values[i + i / kPerThread];
  }

  /// Writes the low `width` (1 to 31) bits of the first n values, one after the other, to `to`.
  __device__ __forceinline__ void store_low_bits(unsigned n, unsigned width, std::byte* to) {
    const std::uint32_t mask = (1u << width) - 1;
    store_stream(to, (n * width + 7) / 8, threadIdx.x, kThreads, [&](std::uint64_t bit) {
      const auto at = static_cast<unsigned>(bit);
      unsigned i = at / width;
      const unsigned skip = at - i * width;
      std::uint64_t word = ((*this)[i] & mask) >> skip;
      for (unsigned filled = width - skip; filled < 32 && ++i < n; filled += width)
        word |= std::uint64_t{(*this)[i] & mask} << filled;
      return static_cast<std::uint32_t>(word);
    });
  }
};

}  // namespace fedcomm::cuda::coding
