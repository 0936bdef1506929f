// The formats on a GPU: chooses and starts the kernels of cuda_*.cuh. Same bytes as quant_isa.cpp:
// the same functions of formats/*.h, compiled without fused multiply-add, and sums in the same
// order. Only launches: no allocation, no synchronisation.
#include <algorithm>
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

unsigned code_unit(Format format) {
  return visit_format(format, []<typename F>(F) { return kCodeUnit<F>; });
}

/// Where both are known on the host.
EncodeArgs encode_args(const QuantSpec& spec, std::size_t n_elems, const Draw& draw,
                       std::byte* payload) {
  std::byte* codes = payload + step_bytes(spec, n_elems);
  return {.x = nullptr,
          .before = nullptr,
          .after = nullptr,
          .indices = nullptr,
          .beta = 0,
          .n = n_elems,
          .steps = payload,
          .codes = codes,
          .block_shift = shift_of(spec),
          .scale = spec.scale,
          .wide = false,
          .codes_aligned = is_multiple(codes, code_unit(spec.format)),
          .draw = draw,
          .keys = philox_keys(draw.seed),
          .non_finite = nullptr};
}

/// Thread blocks for n elements of this format.
template <typename F>
unsigned encode_grid(std::size_t n, unsigned block_shift) {
  if constexpr (F::kScaled && F::kBits == 1) {
    return grid_for(n, std::size_t{sign_unit(1u << block_shift)} * (kThreads / kWarp));
  }
  return grid_for(n, kTile);
}

template <typename F, Rounding rounding, Rest rest>
void launch_encode(const EncodeArgs& args, cudaStream_t stream) {
  const unsigned grid = encode_grid<F>(args.n, args.block_shift);
  if constexpr (F::kScaled && F::kBits == 1) {
    encode_sign_kernel<F, rest><<<grid, kThreads, 0, stream>>>(args);
  } else {
    encode_kernel<F, rounding, rest><<<grid, kThreads, 0, stream>>>(args);
  }
}

template <typename F, Rounding rounding, Rest rest>
void launch_encode(const EntryArgs& args, cudaStream_t stream) {
  // At least one, which tells of how many.
  const unsigned grid = std::max(1u, encode_grid<F>(args.encode.n, args.encode.block_shift));
  if constexpr (F::kScaled && F::kBits == 1) {
    launch_next(encode_sign_entries_kernel<F, rest>, grid, kThreads, stream, args);
  } else {
    launch_next(encode_entries_kernel<F, rounding, rest>, grid, kThreads, stream, args);
  }
}

/// `kRest` where there shall be a rest of any kind.
template <Rest kRest, typename Args>
void launch_encode(const QuantSpec& spec, bool has_rest, const Args& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  visit_format(spec.format, [&]<typename F>(F) {
    if constexpr (kStochastic<F>) {
      if (spec.rounding == Rounding::stochastic) {
        has_rest ? launch_encode<F, Rounding::stochastic, kRest>(args, on)
                 : launch_encode<F, Rounding::stochastic, Rest::none>(args, on);
        return;
      }
    }
    expect(spec.rounding == Rounding::nearest, "cuda::encode: rounding");
    has_rest ? launch_encode<F, Rounding::nearest, kRest>(args, on)
             : launch_encode<F, Rounding::nearest, Rest::none>(args, on);
  });
  check_launch("encode");
}

template <Into into>
void launch_decode(const QuantSpec& spec, const DecodeArgs& args, void* stream) {
  if (args.n == 0) return;
  visit_format(spec.format, [&]<typename F>(F) {
    decode_kernel<F, into>
        <<<grid_for(args.n, kTile), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("decode");
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
          .codes_aligned = is_multiple(codes, code_unit(spec.format)),
          .indices = nullptr,
          .corrupt = nullptr};
}

DecodeArgs decode_args(const QuantSpec& spec, const std::byte* payload,
                       const EntriesTarget& target) {
  DecodeArgs args = decode_args(spec, payload, target.indices.size(), target.out);
  args.indices = target.indices.data();
  args.corrupt = target.corrupt;
  return args;
}

}  // namespace

bool available() {
  return true;
}

void encode(const QuantSpec& spec, const Input& input, const Draw& draw, std::byte* payload,
            std::int32_t* non_finite, void* stream) {
  if (input.n_elems == 0) return;
  EncodeArgs args = encode_args(spec, input.n_elems, draw, payload);
  args.x = input.x;
  args.before = input.before;
  args.after = input.after;
  args.beta = input.beta;
  args.wide =
      is_multiple(input.x, 16) && is_multiple(input.before, 16) && is_multiple(input.after, 16);
  args.non_finite = non_finite;
  launch_encode<Rest::dense>(spec, input.after != nullptr, args, stream);
}

void encode_entries(const QuantSpec& spec, const Entries& entries, const Draw& draw,
                    const EntriesOutput& out, std::int32_t* non_finite, void* stream) {
  EntryArgs args{.encode = encode_args(spec, entries.n, draw, out.payload + sizeof(std::uint32_t)),
                 .range = entries.range,
                 .n_entries = reinterpret_cast<std::uint32_t*>(out.payload),
                 .n_bytes = out.n_bytes};
  args.encode.x = entries.values;
  args.encode.indices = entries.indices;
  args.encode.after = out.after;
  args.encode.wide = is_multiple(entries.values, 16);
  args.encode.non_finite = non_finite;
  launch_encode<Rest::scattered>(spec, out.after != nullptr, args, stream);
}

void measure_entries(const QuantSpec& spec, const Entries& entries, std::uint64_t* n_bytes,
                     void* stream) {
  const EntryArgs args{.encode = encode_args(spec, entries.n, {}, nullptr),
                       .range = entries.range,
                       .n_entries = nullptr,
                       .n_bytes = n_bytes};
  visit_format(spec.format, [&]<typename F>(F) {
    measure_entries_kernel<F><<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("measure_entries");
}

void decode(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems, float* out,
            void* stream) {
  launch_decode<Into::dense>(spec, decode_args(spec, payload, n_elems, out), stream);
}

void decode_add(const QuantSpec& spec, const std::byte* payload, std::size_t n_elems, float weight,
                float* accumulator, void* stream) {
  DecodeArgs args = decode_args(spec, payload, n_elems, accumulator);
  args.weight = weight;
  launch_decode<Into::dense_sum>(spec, args, stream);
}

void decode_entries(const QuantSpec& spec, const std::byte* payload, const EntriesTarget& target,
                    void* stream) {
  launch_decode<Into::scattered>(spec, decode_args(spec, payload, target), stream);
}

void decode_add_entries(const QuantSpec& spec, const std::byte* payload, float weight,
                        const EntriesTarget& target, void* stream) {
  DecodeArgs args = decode_args(spec, payload, target);
  args.weight = weight;
  launch_decode<Into::scattered_sum>(spec, args, stream);
}

}  // namespace fedcomm::cuda
