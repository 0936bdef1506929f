// Rice encoding in three kernels. With P_j the position of one bit j in stream 2, P_j = j + the sum
// of the quotients up to j:
//   1. measure: each block adds up the quotients of its run of indices; memory for stream 2 is
//      zeroed on the way.
//   2. write: each block knows from those sums where its first one bit stands, sets its bits by
//      atomic operations, which the blocks that share a word need, and packs its low bits.
//   3. copy: stream 2 moves behind stream 1, wherever that ends.
// Stream 2 is built in a workspace because the code may begin and end anywhere in a word, and none
// of its neighbours' bytes may be touched.
#pragma once

#include "coding/cuda_bits.cuh"
#include "coding/shape.h"

namespace fedcomm::cuda::coding {

/// What the first kernel finds out for the others.
struct RiceShape {
  const std::uint32_t* indices;
  std::uint64_t k;  // 0 where the code has no bytes
  unsigned shift;
  std::uint64_t max_bits;  // of stream 2
};

struct RiceEncodeArgs {
  const std::uint32_t* indices;
  std::uint64_t k;  // if `range` is given: the most there may be
  std::uint64_t n;
  std::uint32_t base;
  const std::uint32_t* range;  // may be null, as may the other three
  std::byte* out;
  const std::uint64_t* offset;
  std::uint64_t* n_bytes;
  std::uint64_t* end;

  RiceShape* shape;
  std::uint64_t* sums;        // of quotients, one a block
  std::uint64_t* unary_bits;  // of stream 2; set by the second kernel
  std::uint32_t* stream;
};

__device__ __forceinline__ RiceShape shape_of(const RiceEncodeArgs& args) {
  std::uint64_t first = 0, k = args.k;
  if (args.range != nullptr) {
    first = min(std::uint64_t{args.range[0]}, args.k);
    const std::uint64_t last = min(std::uint64_t{args.range[1]}, args.k);
    k = last > first ? min(last - first, args.n) : 0;
  }
  if (k == args.n) k = 0;
  const unsigned shift = shift_of(args.n, k);
  return {args.indices + first, k, shift, max_unary_bits(args.n, k, shift)};
}

__device__ __forceinline__ std::byte* output_of(const RiceEncodeArgs& args) {
  return args.offset == nullptr ? args.out : args.out + *args.offset;
}

__device__ __forceinline__ std::uint32_t gap_at(const std::uint32_t* indices, std::uint64_t j,
                                                std::uint32_t base) {
  return j == 0 ? indices[0] - base : indices[j] - indices[j - 1] - 1;
}

__global__ void __launch_bounds__(kThreads)
    rice_measure_kernel(const __grid_constant__ RiceEncodeArgs args) {
  __shared__ RiceShape shape;
  __shared__ std::uint64_t scratch[kWarps];
  if (threadIdx.x == 0) {
    shape = shape_of(args);
    if (blockIdx.x == 0) *args.shape = shape;
  }
  __syncthreads();
  if (shape.k == 0) return;
  const std::uint64_t n_words = shape.max_bits / 32 + 2;  // the last one is read, but never used
  for (std::uint64_t w = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; w < n_words;
       w += std::uint64_t{gridDim.x} * kThreads)
    args.stream[w] = 0;

  const Run run = run_of_block(shape.k, kTile);
  std::uint64_t sum = 0;
  for (std::uint64_t j = run.begin + threadIdx.x; j < run.end; j += kThreads)
    sum += gap_at(shape.indices, j, args.base) >> shape.shift;
  const std::uint64_t total = block_prefix<kThreads>(sum, scratch).total;
  if (threadIdx.x == 0) args.sums[blockIdx.x] = total;
}

/// Sets the one bits of a thread's `count` values, of which the first one's zero bits begin at bit
/// `at`. A set that is none may ask for bits that cannot be: they are left out.
__device__ __forceinline__ void set_bits(const RiceEncodeArgs& args, const RiceShape& shape,
                                         const std::uint32_t (&quotients)[kPerThread],
                                         unsigned count, std::uint64_t at) {
  std::uint64_t index = at / 32;
  std::uint32_t word = 0;
  const auto flush = [&] {
    if (word != 0 && index <= shape.max_bits / 32) atomicOr(args.stream + index, word);
  };
#pragma unroll
  for (unsigned i = 0; i < kPerThread; ++i) {
    if (i >= count) break;
    at += quotients[i];
    if (at / 32 != index) {
      flush();
      index = at / 32;
      word = 0;
    }
    word |= 1u << (at % 32);
    ++at;
  }
  flush();
}

__global__ void __launch_bounds__(kThreads)
    rice_write_kernel(const __grid_constant__ RiceEncodeArgs args) {
  __shared__ Tile gaps;
  __shared__ std::uint64_t of_blocks[2][kWarps];
  __shared__ std::uint32_t of_warps[kWarps];
  const RiceShape shape = *args.shape;
  if (shape.k == 0) return;
  const BlockPrefix<std::uint64_t> quotients_of = sum_of_blocks(args.sums, of_blocks);
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.unary_bits = shape.k + quotients_of.total;

  std::byte* lows = output_of(args);
  const Run run = run_of_block(shape.k, kTile);
  std::uint64_t at = run.begin + quotients_of.before;
  for (std::uint64_t tile = run.begin; tile < run.end; tile += kTile) {
    const auto n = static_cast<unsigned>(min(std::uint64_t{kTile}, run.end - tile));
    for (unsigned i = threadIdx.x; i < n; i += kThreads)
      gaps[i] = gap_at(shape.indices, tile + i, args.base);
    __syncthreads();

    const unsigned first = threadIdx.x * kPerThread;
    const unsigned count = first < n ? min(n - first, kPerThread) : 0;
    std::uint32_t quotients[kPerThread];
    std::uint32_t bits = 0;  // a whole tile of a set has fewer than 2^32
#pragma unroll
    for (unsigned i = 0; i < kPerThread; ++i) {
      quotients[i] = i < count ? gaps[first + i] >> shape.shift : 0;
      bits += quotients[i] + (i < count ? 1u : 0u);
    }
    const BlockPrefix<std::uint32_t> in_tile = block_prefix<kThreads>(bits, of_warps);
    set_bits(args, shape, quotients, count, at + in_tile.before);
    at += in_tile.total;
    if (shape.shift > 0) gaps.store_low_bits(n, shape.shift, lows + tile / 8 * shape.shift);
    __syncthreads();
  }
}

__device__ __forceinline__ void tell_size(const RiceEncodeArgs& args, std::uint64_t n_bytes) {
  if (args.n_bytes != nullptr) *args.n_bytes = n_bytes;
  if (args.end != nullptr) *args.end = n_bytes + (args.offset == nullptr ? 0 : *args.offset);
}

__global__ void __launch_bounds__(kThreads)
    rice_copy_kernel(const __grid_constant__ RiceEncodeArgs args) {
  const std::uint64_t thread = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::uint64_t k = args.shape->k;
  if (k == 0) {
    if (thread == 0) tell_size(args, 0);
    return;
  }
  const std::uint64_t n_bits = min(*args.unary_bits, args.shape->max_bits);
  const std::uint64_t low_bytes = bytes_of_bits(k * args.shape->shift);
  const std::uint64_t n_bytes = bytes_of_bits(n_bits);
  store_stream(output_of(args) + low_bytes, n_bytes, thread, std::uint64_t{gridDim.x} * kThreads,
               [&](std::uint64_t bit) {
                 const std::uint32_t* at = args.stream + bit / 32;
                 return __funnelshift_r(at[0], at[1], static_cast<unsigned>(bit % 32));
               });
  if (thread == 0) tell_size(args, low_bytes + n_bytes);
}

}  // namespace fedcomm::cuda::coding
