// Packed coding: every index has its place in the stream, so that no thread waits for another.
#pragma once

#include "coding/cuda_bits.cuh"
#include "coding/shape.h"

namespace fedcomm::cuda::coding {

struct PackedShape {
  std::uint64_t n, k;
  std::uint32_t chunk, per_chunk;  // at least 1
  unsigned width;
};

/// Where the entries of a tile lie: the first one's chunk, and its rank there. One division of 64
/// bits a tile; the others are of 32.
struct PackedTile {
  std::uint64_t chunk;
  std::uint32_t rank;

  __device__ __forceinline__ PackedTile(std::uint64_t first, const PackedShape& shape)
      : chunk(first / shape.per_chunk),
        rank(static_cast<std::uint32_t>(first - chunk * shape.per_chunk)) {}
};

struct PackedEncodeArgs {
  PackedShape shape;
  const std::uint32_t* indices;
  std::uint32_t base;
  std::byte* out;
};

__global__ void __launch_bounds__(kThreads)
    packed_encode_kernel(const __grid_constant__ PackedEncodeArgs args) {
  __shared__ Tile locals;
  const PackedShape& shape = args.shape;
  const std::uint64_t first = std::uint64_t{blockIdx.x} * kTile;
  const auto n = static_cast<unsigned>(min(std::uint64_t{kTile}, shape.k - first));
  const PackedTile tile(first, shape);
  const std::uint32_t base = args.base + static_cast<std::uint32_t>(tile.chunk * shape.chunk);
  for (unsigned i = threadIdx.x; i < n; i += kThreads)
    locals[i] = args.indices[first + i] - base - (tile.rank + i) / shape.per_chunk * shape.chunk;
  __syncthreads();
  locals.store_low_bits(n, shape.width, args.out + first / 8 * shape.width);
}

struct PackedDecodeArgs {
  PackedShape shape;
  ByteStream stream;
  std::uint32_t* indices;
  std::int32_t* corrupt;
};

__global__ void __launch_bounds__(kThreads)
    packed_decode_kernel(const __grid_constant__ PackedDecodeArgs args) {
  const PackedShape& shape = args.shape;
  const ByteStream& stream = args.stream;
  const std::uint64_t first = std::uint64_t{blockIdx.x} * kTile;
  const auto n = static_cast<unsigned>(min(std::uint64_t{kTile}, shape.k - first));
  const PackedTile tile(first, shape);
  bool good = true;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const unsigned used = shape.k * shape.width % 8;
    good = used == 0 || static_cast<unsigned>(stream.bytes[stream.n_bytes - 1]) >> used == 0;
  }
  for (unsigned i = threadIdx.x; i < n; i += kThreads) {
    const std::uint64_t at = (first + i) * shape.width;
    const std::uint32_t chunks = (tile.rank + i) / shape.per_chunk;
    const std::uint32_t rank = tile.rank + i - chunks * shape.per_chunk;
    const std::uint32_t local = stream.bits(at, shape.width);
    const std::uint64_t begin = (tile.chunk + chunks) * shape.chunk;
    good = good && local < shape.chunk && begin + local < shape.n &&
           (rank == 0 || stream.bits(at - shape.width, shape.width) < local);
    args.indices[first + i] = static_cast<std::uint32_t>(begin) + local;
  }
  if (!good) *args.corrupt = 1;
}

}  // namespace fedcomm::cuda::coding
