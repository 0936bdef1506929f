// The formats on a GPU: chooses and starts the kernels of cuda_*.cuh. Same bytes as quant_isa.cpp:
// the same functions of formats/*.h, compiled without fused multiply-add, and sums in the same
// order. Only launches: no allocation, no synchronisation.
#include <bit>

#include "base/error.h"
#include "quant/cuda_decode.cuh"
#include "quant/cuda_encode.cuh"
#include "quant/cuda_sign.cuh"

namespace fedcomm::cuda {
namespace {

/// Thread blocks for `n` elements, each taking `per_block`. A grid may have 2^31 - 1, and no memory
/// holds that many tiles, so kernels need not stride.
unsigned grid_for(std::size_t n, std::size_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

bool is_multiple(const void* pointer, std::uintptr_t of) {
  return reinterpret_cast<std::uintptr_t>(pointer) % of == 0;
}

unsigned shift_of(const QuantSpec& spec) {
  return static_cast<unsigned>(std::countr_zero(spec.block));
}

/// Bytes of the steps, which the codes follow.
std::size_t step_bytes(const QuantSpec& spec, std::size_t n_elems) {
  return quant_bytes(spec, n_elems) - quant_bytes({.format = spec.format}, n_elems);
}

template <typename F, Rounding rounding, bool kFeedback>
void launch_encode(const EncodeArgs& args, cudaStream_t stream) {
  if constexpr (F::kScaled && F::kBits == 1) {
    const std::size_t unit = sign_unit(1u << args.block_shift);
    encode_sign_kernel<F, kFeedback>
        <<<grid_for(args.n, unit * (kThreads / kWarp)), kThreads, 0, stream>>>(args);
  } else {
    encode_kernel<F, rounding, kFeedback><<<grid_for(args.n, kTile), kThreads, 0, stream>>>(args);
  }
}

template <bool kAdd>
void launch_decode(const QuantSpec& spec, const DecodeArgs& args, cudaStream_t stream) {
  visit_format(spec.format, [&]<typename F>(F) {
    decode_kernel<F, kAdd><<<grid_for(args.n, kTile), kThreads, 0, stream>>>(args);
  });
}

DecodeArgs decode_args(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems,
                       float* out) {
  const std::byte* codes = payload + step_bytes(spec, n_elems);
  return {.steps = payload,
          .codes = codes,
          .n = n_elems,
          .out = out,
          .weight = 0,
          .block_shift = shift_of(spec),
          .scale = spec.scale,
          .wide = is_multiple(out, 16),
          .codes_aligned = is_multiple(codes, 4)};
}

}  // namespace

bool available() {
  return true;
}

void encode(const QuantSpec& spec, const Input& input, const Draw& draw, std::byte* payload,
            std::int32_t* non_finite, void* stream) {
  if (input.n_elems == 0) return;
  std::byte* codes = payload + step_bytes(spec, input.n_elems);
  const EncodeArgs args{
      .x = input.x,
      .before = input.before,
      .after = input.after,
      .beta = input.beta,
      .n = input.n_elems,
      .steps = payload,
      .codes = codes,
      .block_shift = shift_of(spec),
      .scale = spec.scale,
      .wide =
          is_multiple(input.x, 16) && is_multiple(input.before, 16) && is_multiple(input.after, 16),
      .codes_aligned = is_multiple(codes, 4),
      .draw = draw,
      .keys = philox_keys(draw.seed),
      .non_finite = non_finite,
  };
  const auto on = static_cast<cudaStream_t>(stream);
  visit_format(spec.format, [&]<typename F>(F) {
    const bool feedback = input.after != nullptr;
    if constexpr (kStochastic<F>) {
      if (spec.rounding == Rounding::stochastic) {
        feedback ? launch_encode<F, Rounding::stochastic, true>(args, on)
                 : launch_encode<F, Rounding::stochastic, false>(args, on);
        return;
      }
    }
    expect(spec.rounding == Rounding::nearest, "cuda::encode: rounding");
    feedback ? launch_encode<F, Rounding::nearest, true>(args, on)
             : launch_encode<F, Rounding::nearest, false>(args, on);
  });
  check_launch("encode");
}

void decode(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems, float* out,
            void* stream) {
  if (n_elems == 0) return;
  launch_decode<false>(spec, decode_args(spec, payload, n_elems, out),
                       static_cast<cudaStream_t>(stream));
  check_launch("decode");
}

void decode_add(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems, float weight,
                float* accumulator, void* stream) {
  if (n_elems == 0) return;
  DecodeArgs args = decode_args(spec, payload, n_elems, accumulator);
  args.weight = weight;
  launch_decode<true>(spec, args, static_cast<cudaStream_t>(stream));
  check_launch("decode_add");
}

}  // namespace fedcomm::cuda
