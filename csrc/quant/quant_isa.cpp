// The quantization kernels of one instruction set, FEDCOMM_ISA: plain loops over a block that lies
// in L1, which compilers vectorise. Memory is passed over once; what is left between two loops
// (sums, random bits, unpacked codes) stays on the stack.
#include <cstring>

#include "quant/draw_isa.h"
#include "quant/kernels.h"
#include "quant/pack_isa.h"

namespace fedcomm::FEDCOMM_ISA {
namespace {

using std::size_t, std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t;

#define FEDCOMM_INLINE [[gnu::always_inline]] inline

constexpr uint32_t kMagnitude = 0x7fffffffu;
/// Unscaled formats have no blocks; this many elements are worked on at a time.
constexpr size_t kStrip = 1024;

// --- the parts of a block ------------------------------------------------------------------------

FEDCOMM_INLINE void add_residual(const float* x, const float* before, float beta, size_t n,
                                 float* sum) {
  for (size_t i = 0; i < n; ++i)
    sum[i] = x[i] + beta * before[i];
}

/// Bit pattern of the largest magnitude: integer order is magnitude order, with NaN on top.
FEDCOMM_INLINE uint32_t absmax_bits(const float* x, size_t n) {
  uint32_t largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t bits = float_bits(x[i]) & kMagnitude;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

/// Sum of magnitudes, in an order that suits vectors and warps alike: lane j of 32 adds the
/// elements j, j + 32, ... in turn, then the upper half of the lanes is added to the lower, 5
/// times.
FEDCOMM_INLINE float sum_of_magnitudes(const float* x, size_t n) {
  constexpr size_t kLanes = 32;
  float lanes[kLanes] = {};
  const size_t n_full = n / kLanes * kLanes;
  for (size_t i = 0; i < n_full; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j)
      lanes[j] += bits_float(float_bits(x[i + j]) & kMagnitude);
  }
  for (size_t j = 0; j < n - n_full; ++j)
    lanes[j] += bits_float(float_bits(x[n_full + j]) & kMagnitude);
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j)
      lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

FEDCOMM_INLINE void store_step(float step, ScaleType type, size_t index, std::byte* steps) {
  if (type == ScaleType::fp32) {
    std::memcpy(steps + index * sizeof step, &step, sizeof step);
  } else {
    const auto upper = static_cast<uint16_t>(float_bits(step) >> 16);
    std::memcpy(steps + index * sizeof upper, &upper, sizeof upper);
  }
}

FEDCOMM_INLINE float load_step(ScaleType type, size_t index, const std::byte* steps) {
  if (type == ScaleType::fp32) {
    float step;
    std::memcpy(&step, steps + index * sizeof step, sizeof step);
    return step;
  }
  uint16_t upper;
  std::memcpy(&upper, steps + index * sizeof upper, sizeof upper);
  return bf16_to_float(upper);
}

template <typename F>
FEDCOMM_INLINE float step_of_block(const float* x, size_t n, uint32_t absmax, ScaleType type) {
  if constexpr (requires { F::kTop; }) {
    return step_from_absmax<F>(bits_float(absmax), type);
  } else {
    return step_from_mean(sum_of_magnitudes(x, n), n, type);
  }
}

// --- whole kernels -------------------------------------------------------------------------------

template <typename F, Rounding rounding>
bool encode_scaled(const EncodeJob& job) {
  alignas(64) float sums[kMaxBlock];
  alignas(64) uint8_t unpacked[kMaxBlock + 64];
  alignas(64) uint16_t random[rounding == Rounding::stochastic ? kMaxBlock + kDrawn : 1];
  const PhiloxKeys keys(job.draw.seed);
  bool finite = true;
  Draw draw = job.draw;
  for (size_t begin = 0, index = 0; begin < job.n; begin += job.block, ++index) {
    const size_t n = begin + job.block <= job.n ? job.block : job.n - begin;
    const float* values = job.x + begin;
    if (job.after != nullptr) {
      add_residual(values, job.before + begin, job.beta, n, sums);
      values = sums;
    }
    const uint32_t absmax = absmax_bits(values, n);
    std::byte* out = job.codes + begin * F::kBits / 8;
    if (absmax >= F::kOverflow) {
      finite = false;
      store_step(bits_float(kNonFiniteStep), job.scale, index, job.steps);
      std::memset(out, 0, (n * F::kBits + 7) / 8);
      if (job.after != nullptr) std::memset(job.after + begin, 0, n * sizeof(float));
      continue;
    }
    const float step = step_of_block<F>(values, n, absmax, job.scale);
    store_step(step, job.scale, index, job.steps);
    const float inverse = inverse_of(step);
    uint8_t* codes = F::kBits == 8 ? reinterpret_cast<uint8_t*>(out) : unpacked;
    if constexpr (rounding == Rounding::stochastic) {
      draw.first = job.draw.first + begin;
      draw_bits(draw, keys, n, random);
      for (size_t i = 0; i < n; ++i)
        codes[i] = F::quantize(values[i] * inverse, random[i]);
    } else {
      for (size_t i = 0; i < n; ++i)
        codes[i] = F::quantize(values[i] * inverse);
    }
    if constexpr (F::kBits < 8) {
      std::memset(codes + n, 0, 8);
      pack<F::kBits>(codes, n, out);
    }
    if (job.after != nullptr) {
      float* after = job.after + begin;
      for (size_t i = 0; i < n; ++i)
        after[i] = values[i] - F::dequantize(codes[i], step);
    }
  }
  return finite;
}

template <typename F, Rounding rounding>
bool encode_plain(const EncodeJob& job) {
  alignas(64) float sums[kStrip];
  alignas(64) uint16_t random[rounding == Rounding::stochastic ? kStrip : 1];
  const PhiloxKeys keys(job.draw.seed);
  uint32_t largest = 0;
  Draw draw = job.draw;
  auto* all = reinterpret_cast<typename F::Code*>(job.codes);
  for (size_t begin = 0; begin < job.n; begin += kStrip) {
    const size_t n = begin + kStrip <= job.n ? kStrip : job.n - begin;
    const float* values = job.x + begin;
    typename F::Code* codes = all + begin;
    if (job.after != nullptr) {
      add_residual(values, job.before + begin, job.beta, n, sums);
      values = sums;
    }
    const uint32_t absmax = absmax_bits(values, n);
    largest = absmax > largest ? absmax : largest;
    if constexpr (rounding == Rounding::stochastic) {
      draw.first = job.draw.first + begin;
      draw_bits(draw, keys, n, random);
      for (size_t i = 0; i < n; ++i)
        codes[i] = F::quantize(values[i], random[i]);
    } else {
      for (size_t i = 0; i < n; ++i)
        codes[i] = F::quantize(values[i]);
    }
    if (job.after != nullptr) {
      float* after = job.after + begin;
      for (size_t i = 0; i < n; ++i)
        after[i] = values[i] - F::dequantize(codes[i]);
    }
  }
  return largest < F::kOverflow;
}

template <typename F, Rounding rounding>
bool encode(const EncodeJob& job) {
  if constexpr (F::kScaled) {
    return encode_scaled<F, rounding>(job);
  } else {
    return encode_plain<F, rounding>(job);
  }
}

template <bool kAdd>
FEDCOMM_INLINE void put(float value, float weight, float& target) {
  if constexpr (kAdd) {
    target += weight * value;
  } else {
    target = value;
  }
}

template <typename F, bool kAdd>
FEDCOMM_INLINE void decode_into(const DecodeJob& job, float weight, float* out) {
  if constexpr (F::kScaled) {
    alignas(64) uint8_t unpacked[kMaxBlock + 8];
    for (size_t begin = 0, index = 0; begin < job.n; begin += job.block, ++index) {
      const size_t n = begin + job.block <= job.n ? job.block : job.n - begin;
      const std::byte* in = job.codes + begin * F::kBits / 8;
      const float step = load_step(job.scale, index, job.steps);
      const auto* codes = reinterpret_cast<const uint8_t*>(in);
      if constexpr (F::kBits < 8) {
        unpack<F::kBits>(in, n, unpacked);
        codes = unpacked;
      }
      float* target = out + begin;
      for (size_t i = 0; i < n; ++i)
        put<kAdd>(F::dequantize(codes[i], step), weight, target[i]);
    }
  } else {
    const auto* codes = reinterpret_cast<const typename F::Code*>(job.codes);
    for (size_t i = 0; i < job.n; ++i)
      put<kAdd>(F::dequantize(codes[i]), weight, out[i]);
  }
}

template <typename F>
void decode(const DecodeJob& job, float* out) {
  decode_into<F, false>(job, 0.0f, out);
}

template <typename F>
void decode_add(const DecodeJob& job, float weight, float* accumulator) {
  decode_into<F, true>(job, weight, accumulator);
}

template <typename F>
constexpr auto stochastic_encoder() -> bool (*)(const EncodeJob&) {
  if constexpr (kStochastic<F>) {
    return encode<F, Rounding::stochastic>;
  } else {
    return nullptr;
  }
}

}  // namespace

const QuantKernels& quant_kernels() {
#define FEDCOMM_ENCODERS(F) {encode<F, Rounding::nearest>, stochastic_encoder<F>()},
#define FEDCOMM_DECODER(F) decode<F>,
#define FEDCOMM_ADDER(F) decode_add<F>,
  static constexpr QuantKernels kKernels = {
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ENCODERS)},
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_DECODER)},
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ADDER)},
  };
#undef FEDCOMM_ENCODERS
#undef FEDCOMM_DECODER
#undef FEDCOMM_ADDER
  return kKernels;
}

}  // namespace fedcomm::FEDCOMM_ISA
