// The encoding kernel of formats of one bit whose step is the mean magnitude of a block. Such a sum
// has an order (sum_of_magnitudes in quant_isa.cpp), and this kernel follows it: lane j of a warp
// holds the elements j, j + 32, ... of a block and adds them in turn; a vote makes a row of 32
// elements their word of codes.
//
// A warp works on a unit of 1024 elements, with one or more blocks, or on one larger block, in
// passes of 1024 elements.
#pragma once

#include "quant/cuda_encode.cuh"

namespace fedcomm::cuda {

inline constexpr unsigned kRows = 32;  // of 32 elements, in one pass
inline constexpr unsigned kPass = kRows * kWarp;

__host__ __device__ constexpr unsigned sign_unit(unsigned block) {
  return block > kPass ? block : kPass;
}

/// Element `lane` of each row of a pass, of which `n` elements exist.
template <Rest rest, bool kWhole>
__device__ __forceinline__ void load_rows(const EncodeArgs& args, std::size_t begin, unsigned n,
                                          float (&v)[kRows]) {
  const unsigned lane = threadIdx.x % kWarp;
  const float* x = args.x + begin + lane;
#pragma unroll
  for (unsigned r = 0; r < kRows; ++r)
    v[r] = kWhole || r * kWarp + lane < n ? x[r * kWarp] : 0.0f;
  if constexpr (rest == Rest::dense) {
    const float* before = args.before + begin + lane;
    float of_row[kRows];
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r)
      of_row[r] = kWhole || r * kWarp + lane < n ? before[r * kWarp] : 0.0f;
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r)
      v[r] = v[r] + args.beta * of_row[r];
  }
}

__device__ __forceinline__ void put_row(const EncodeArgs& args, std::size_t begin, unsigned n,
                                        std::uint32_t word) {
  std::byte* out = args.codes + begin / 8;
  if (n >= kWarp) {
    put_word(out, word, args.codes_aligned);
  } else {
    put_bytes(out, word, (n + 7) / 8);
  }
}

template <typename F, Rest rest, bool kWhole>
__device__ __forceinline__ void encode_unit(const EncodeArgs& args, std::size_t base, unsigned n) {
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned row_shift = args.block_shift - 5;  // rows to blocks
  const unsigned last_row = (1u << row_shift) - 1;
  const unsigned n_passes = sign_unit(1u << args.block_shift) / kPass;
  const auto left_from = [n](unsigned begin) { return begin < n ? n - begin : 0u; };

  // Codes, and what lane b keeps of block b.
  float v[kRows];
  float block_sum = 0, sum = 0;
  bool block_finite = true, finite = true;
  for (unsigned pass = 0; pass < n_passes; ++pass) {
    load_rows<rest, kWhole>(args, base + pass * kPass, left_from(pass * kPass), v);
    std::uint32_t word = 0;
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
      const std::uint32_t magnitude = float_bits(v[r]) & kMagnitude;
      sum += bits_float(magnitude);
      finite = finite && magnitude < F::kOverflow;
      const std::uint32_t row = __ballot_sync(kAllLanes, F::quantize(v[r]) != 0);
      if (lane == r) word = row;
      const unsigned row_of_unit = pass * kRows + r;
      if ((row_of_unit & last_row) != last_row) continue;
#pragma unroll
      for (unsigned half = kWarp / 2; half > 0; half /= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, half);
      finite = __all_sync(kAllLanes, finite);
      if (lane == row_of_unit >> row_shift) {
        block_sum = sum;
        block_finite = finite;
      }
      sum = 0;
      finite = true;
    }
    const unsigned at = pass * kPass + lane * kWarp;
    put_row(args, base + at, kWhole ? kWarp : left_from(at), word);
  }

  const unsigned first = lane << args.block_shift;  // of block `lane`
  float step = bits_float(kNonFiniteStep);
  if (first < n) {
    const unsigned count = min(n - first, 1u << args.block_shift);
    if (block_finite) step = step_from_mean(block_sum, count, args.scale);
    put_step(args.steps, ((base >> args.block_shift) + lane), step, args.scale);
  }
  if (__any_sync(kAllLanes, !block_finite)) {  // zero codes for such blocks
    if (lane == 0) *args.non_finite = 1;
    for (unsigned pass = 0; pass < n_passes; ++pass) {
      const unsigned at = pass * kPass + lane * kWarp;
      const unsigned of_block = (pass * kRows + lane) >> row_shift;
      if (!__shfl_sync(kAllLanes, block_finite, of_block)) {
        put_row(args, base + at, left_from(at), 0);
      }
    }
  }
  if constexpr (rest != Rest::none) {
    for (unsigned pass = 0; pass < n_passes; ++pass) {
      const unsigned left = left_from(pass * kPass);
      if (n_passes > 1) load_rows<rest, kWhole>(args, base + pass * kPass, left, v);
      const std::size_t begin = base + pass * kPass + lane;
#pragma unroll
      for (unsigned r = 0; r < kRows; ++r) {
        const float of_block = __shfl_sync(kAllLanes, step, (pass * kRows + r) >> row_shift);
        const float residual = v[r] - F::dequantize(F::quantize(v[r]), of_block);
        if (!kWhole && r * kWarp + lane >= left) continue;
        const float after = of_block == of_block ? residual : 0.0f;
        if constexpr (rest == Rest::dense) {
          __stcs(args.after + begin + r * kWarp, after);
        } else {
          args.after[args.indices[begin + r * kWarp]] = after;
        }
      }
    }
  }
}

template <typename F, Rest rest>
__device__ __forceinline__ void encode_unit_of_warp(const EncodeArgs& args) {
  static_assert(F::kBits == 1);
  const unsigned unit = sign_unit(1u << args.block_shift);
  const std::size_t warp = std::size_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const std::size_t base = warp * unit;
  if (base >= args.n) return;
  if (args.n - base >= unit) {
    encode_unit<F, rest, true>(args, base, unit);
  } else {
    encode_unit<F, rest, false>(args, base, static_cast<unsigned>(args.n - base));
  }
}

template <typename F, Rest rest>
__global__ void __launch_bounds__(kThreads)
    encode_sign_kernel(const __grid_constant__ EncodeArgs args) {
  encode_unit_of_warp<F, rest>(args);
}

template <typename F, Rest rest>
__global__ void __launch_bounds__(kThreads)
    encode_sign_entries_kernel(const __grid_constant__ EntryArgs given) {
  wait_for_previous();
  encode_unit_of_warp<F, rest>(find_entries<F>(given));
}

}  // namespace fedcomm::cuda
