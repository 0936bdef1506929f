// Rice decoding in three kernels, of bytes that may be anything; coding.h has the formula:
//   1. measure: each block counts the one bits of its run of stream 2, and adds up the low bits of
//      its run of stream 1.
//   2. positions: knowing how many ones stand before its own, each block writes their positions
//      where the indices will be; none does where there are not exactly k in all.
//   3. join: positions and sums of low bits make indices, in place.
// Every access is bounded by n_bytes and k, whatever the bits say. Sums are of 64 bits, and gaps
// are not negative: if the last index is below n, all are.
#pragma once

#include "coding/cuda_bits.cuh"
#include "coding/shape.h"

namespace fedcomm::cuda::coding {

/// 0 < k < n, and n_bytes is more than stream 1 takes and no more than any code.
struct RiceDecodeArgs {
  const std::byte* bytes;
  std::uint64_t n_bytes;
  std::uint64_t n;
  std::uint64_t k;
  unsigned shift;
  std::uint32_t* indices;
  std::int32_t* corrupt;
  std::uint64_t* ones;  // one a block, as are the sums of low bits
  std::uint64_t* lows;
  std::uint64_t* n_ones;  // in all; set by the second kernel

  __device__ __forceinline__ ByteStream low_stream() const {
    return {bytes, bytes_of_bits(k * shift)};
  }
  __device__ __forceinline__ ByteStream unary_stream() const {
    const std::uint64_t low_bytes = bytes_of_bits(k * shift);
    return {bytes + low_bytes, n_bytes - low_bytes};
  }
};

/// A word of stream 2 for each thread; 16 bits hold a place in it.
inline constexpr unsigned kUnaryTile = kThreads;
inline constexpr unsigned kUnaryBits = 32 * kUnaryTile;
/// Indices of one pass of the last kernel: rows of a warp's width.
inline constexpr unsigned kRows = 4;
inline constexpr unsigned kJoinTile = kThreads * kRows;

__global__ void __launch_bounds__(kThreads)
    rice_count_kernel(const __grid_constant__ RiceDecodeArgs args) {
  __shared__ std::uint64_t scratch[2][kWarps];
  const ByteStream low = args.low_stream(), unary = args.unary_stream();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const unsigned used = args.k * args.shift % 8;
    const bool padded = used > 0 && static_cast<unsigned>(low.bytes[low.n_bytes - 1]) >> used;
    // The code is unique: the last one bit stands in the last byte.
    if (padded || unary.bytes[unary.n_bytes - 1] == std::byte{0}) *args.corrupt = 1;
  }
  const Run words = run_of_block(unary.n_words(), kUnaryTile);
  std::uint64_t ones = 0;
  for (std::uint64_t w = words.begin + threadIdx.x; w < words.end; w += kThreads)
    ones += static_cast<unsigned>(__popc(unary.word(w)));
  std::uint64_t sum = 0;
  if (args.shift > 0) {
    const Run run = run_of_block(args.k, kJoinTile);
    for (std::uint64_t j = run.begin + threadIdx.x; j < run.end; j += kThreads)
      sum += low.bits(j * args.shift, args.shift);
  }
  const std::uint64_t all_ones = block_prefix<kThreads>(ones, scratch[0]).total;
  const std::uint64_t all_lows = block_prefix<kThreads>(sum, scratch[1]).total;
  if (threadIdx.x == 0) {
    args.ones[blockIdx.x] = all_ones;
    args.lows[blockIdx.x] = all_lows;
  }
}

__global__ void __launch_bounds__(kThreads)
    rice_positions_kernel(const __grid_constant__ RiceDecodeArgs args) {
  __shared__ std::uint64_t of_blocks[2][kWarps];
  __shared__ std::uint32_t of_warps[kWarps];
  __shared__ std::uint16_t places[kUnaryBits];
  const BlockPrefix<std::uint64_t> ones_of = sum_of_blocks(args.ones, of_blocks);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *args.n_ones = ones_of.total;
    if (ones_of.total != args.k) *args.corrupt = 1;
  }
  if (ones_of.total != args.k) return;
  const ByteStream unary = args.unary_stream();
  const Run run = run_of_block(unary.n_words(), kUnaryTile);
  std::uint32_t* out = args.indices + ones_of.before;
  for (std::uint64_t tile = run.begin; tile < run.end; tile += kUnaryTile) {
    const std::uint64_t w = tile + threadIdx.x;
    std::uint32_t word = w < run.end ? unary.word(w) : 0;
    const BlockPrefix<std::uint32_t> ones =
        block_prefix<kThreads>(static_cast<std::uint32_t>(__popc(word)), of_warps);
    std::uint16_t* place = places + ones.before;
    for (; word != 0; word &= word - 1)
      *place++ = static_cast<std::uint16_t>(threadIdx.x * 32 + __ffs(static_cast<int>(word)) - 1);
    __syncthreads();
    // A position is below 2^32 (see rice_shift), and modulo that the head is subtracted.
    const auto first = static_cast<std::uint32_t>(tile * 32) - 8 * unary.head();
    for (unsigned i = threadIdx.x; i < ones.total; i += kThreads)
      out[i] = first + places[i];
    out += ones.total;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    rice_join_kernel(const __grid_constant__ RiceDecodeArgs args) {
  __shared__ std::uint64_t of_blocks[2][kWarps];
  __shared__ std::uint32_t of_warps[kWarps];
  if (*args.n_ones != args.k) return;  // there are no positions
  // All low bits add up to less than 2^32 (see rice_shift).
  auto sum = static_cast<std::uint32_t>(sum_of_blocks(args.lows, of_blocks).before);
  const ByteStream low = args.low_stream();
  const Run run = run_of_block(args.k, kJoinTile);
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (std::uint64_t tile = run.begin; tile < run.end; tile += kJoinTile) {
    const std::uint64_t first = tile + warp * (kRows * kWarp) + lane;
    std::uint32_t sums[kRows], of_warp = 0;
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
      const std::uint64_t j = first + r * kWarp;
      const std::uint32_t value = j < run.end ? low.bits(j * args.shift, args.shift) : 0;
      sums[r] = of_warp + warp_prefix(value);
      of_warp = __shfl_sync(kAllLanes, sums[r], kWarp - 1);
    }
    // Counted once a warp, by its last lane: what is before that is before all of the warp.
    const BlockPrefix<std::uint32_t> of_tile =
        block_prefix<kThreads>(lane == kWarp - 1 ? of_warp : 0, of_warps);
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
      const std::uint64_t j = first + r * kWarp;
      if (j >= run.end) break;
      const std::uint32_t lows = sum + of_tile.before + sums[r];
      const std::uint64_t index = ((args.indices[j] - j) << args.shift) + lows + j;
      args.indices[j] = static_cast<std::uint32_t>(index);
      if (j + 1 == args.k && index >= args.n) *args.corrupt = 1;
    }
    sum += of_tile.total;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    count_up_kernel(std::uint32_t* indices, std::uint64_t k) {
  const std::uint64_t j = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j < k) indices[j] = static_cast<std::uint32_t>(j);
}

/// Bytes whose number alone shows that they are no code.
__global__ void reject_kernel(std::int32_t* corrupt) {
  *corrupt = 1;
}

}  // namespace fedcomm::cuda::coding
