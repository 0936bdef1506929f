// The quantization kernels of one instruction set, FEDCOMM_ISA: plain loops over a block that lies
// in L1, which compilers vectorise. Memory is passed over once; what is left between two loops
// (sums, random bits, unpacked codes) stays on the stack.
#include <cstring>

#include "quant/draw_isa.h"
#include "quant/kernels.h"
#include "quant/pack_isa.h"

namespace fedcomm::FEDCOMM_ISA {
namespace {

using std::int32_t, std::size_t, std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t;

#define FEDCOMM_INLINE [[gnu::always_inline]] inline

constexpr uint32_t kMagnitude = 0x7fffffffu;
/// This many elements, in L1, are worked on at a time; or a block, if that is larger.
constexpr size_t kStrip = 2048;

// --- the parts of a block ------------------------------------------------------------------------

FEDCOMM_INLINE size_t smaller_size(size_t a, size_t b) {
  return a < b ? a : b;
}

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

struct Magnitudes {
  uint32_t largest;  // as absmax_bits()
  float sum;
};

/// The sum in an order that suits vectors and warps alike: lane j of 32 adds the elements j,
/// j + 32, ... in turn, then the upper half of the lanes is added to the lower, 5 times.
FEDCOMM_INLINE Magnitudes magnitudes_of(const float* x, size_t n) {
  constexpr size_t kLanes = 32, kVectors = kLanes * sizeof *x / kVectorBytes;
  using Floats [[gnu::vector_size(kVectorBytes)]] = float;
  using Bits [[gnu::vector_size(kVectorBytes)]] =
      int32_t;  // signed order will do, none is negative
  Floats sum[kVectors] = {};
  Bits largest[kVectors] = {};
  const auto add = [&](const float* row) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      Bits bits;
      std::memcpy(&bits, row + v * kLanes / kVectors, sizeof bits);
      bits &= static_cast<int32_t>(kMagnitude);
      sum[v] += reinterpret_cast<Floats>(bits);
      largest[v] = bits > largest[v] ? bits : largest[v];
    }
  };
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    add(x + i);
  if (i < n) {
    float rest[kLanes] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof *x);
    add(rest);
  }
  float sums[kLanes];
  int32_t most[kLanes];
  std::memcpy(sums, sum, sizeof sums);
  std::memcpy(most, largest, sizeof most);
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j) {
      sums[j] += sums[j + half];
      most[j] = most[j] > most[j + half] ? most[j] : most[j + half];
    }
  }
  return {static_cast<uint32_t>(most[0]), sums[0]};
}

FEDCOMM_INLINE void store_steps(const float* values, size_t n, ScaleType type, std::byte* out) {
  if (type == ScaleType::fp32) {
    std::memcpy(out, values, n * sizeof *values);
    return;
  }
  for (size_t i = 0; i < n; ++i) {
    const auto upper = static_cast<uint16_t>(float_bits(values[i]) >> 16);
    std::memcpy(out + i * sizeof upper, &upper, sizeof upper);
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

/// Codes of an unscaled format. A payload may begin at any address.
template <typename Code>
FEDCOMM_INLINE void store_code(Code code, std::byte* codes, size_t index) {
  std::memcpy(codes + index * sizeof code, &code, sizeof code);
}

template <typename Code>
FEDCOMM_INLINE Code load_code(const std::byte* codes, size_t index) {
  Code code;
  std::memcpy(&code, codes + index * sizeof code, sizeof code);
  return code;
}

// --- whole kernels -------------------------------------------------------------------------------

/// The blocks of a strip, and what is known of each. Steps are found for all of them together: one
/// block after the other, each would wait for the reduction and the divisions of its own.
struct StripBlocks {
  static constexpr size_t kMost = kStrip / kMinBlock;
  alignas(64) uint32_t absmax[kMost];
  alignas(64) float step[kMost];
  alignas(64) float inverse[kMost];
};

template <typename F>
FEDCOMM_INLINE void find_steps(const float* values, size_t n, size_t block, ScaleType type,
                               StripBlocks& blocks) {
  const size_t n_blocks = (n + block - 1) / block;
  for (size_t b = 0; b < n_blocks; ++b) {
    const size_t length = smaller_size(block, n - b * block);
    blocks.absmax[b] = absmax_bits(values + b * block, length);
  }
  for (size_t b = 0; b < n_blocks; ++b) {
    const float step = step_from_absmax<F>(bits_float(blocks.absmax[b]), type);
    const bool finite = blocks.absmax[b] < F::kOverflow;
    blocks.step[b] = finite ? step : bits_float(kNonFiniteStep);
    blocks.inverse[b] = finite ? inverse_of(blocks.step[b]) : 0.0f;
  }
}

/// Asks for what will be read next, while there is much to compute: a strip is read at once, and
/// memory would be idle until the next.
FEDCOMM_INLINE void prefetch(const EncodeJob& job, size_t begin, size_t end) {
  constexpr size_t kLine = 64 / sizeof(float);
  if (end > job.n) return;
  for (size_t i = begin; i < end; i += kLine)
    __builtin_prefetch(job.x + i);
  if (job.after == nullptr) return;
  for (size_t i = begin; i < end; i += kLine)
    __builtin_prefetch(job.before + i);
}

template <typename F, Rounding rounding>
bool encode_scaled(const EncodeJob& job) {
  alignas(64) float sums[kMaxBlock];
  alignas(64) uint8_t unpacked[kMaxBlock + kPadding];
  alignas(64) uint16_t random[rounding == Rounding::stochastic ? kMaxBlock + kDrawn : 1];
  const PhiloxKeys keys(job.draw.seed);
  StripBlocks blocks;
  bool finite = true;
  Draw draw = job.draw;
  const size_t strip = job.block > kStrip ? job.block : kStrip;
  for (size_t begin = 0; begin < job.n; begin += strip) {
    const size_t n = smaller_size(strip, job.n - begin);
    const float* values = job.x + begin;
    if (job.after != nullptr) {
      add_residual(values, job.before + begin, job.beta, n, sums);
      values = sums;
    }
    find_steps<F>(values, n, job.block, job.scale, blocks);
    const size_t n_blocks = (n + job.block - 1) / job.block;
    store_steps(blocks.step, n_blocks, job.scale,
                job.steps + begin / job.block * size_of(job.scale));
    std::byte* out = job.codes + begin * F::kBits / 8;
    uint8_t* codes = F::kBits == 8 ? reinterpret_cast<uint8_t*>(out) : unpacked;
    if constexpr (rounding == Rounding::stochastic) {
      draw.first = job.draw.first + begin;
      draw_bits(draw, keys, n, random);
    }
    for (size_t b = 0; b < n_blocks; ++b) {
      const size_t first = b * job.block, last = smaller_size(first + job.block, n);
      const float inverse = blocks.inverse[b];
      prefetch(job, begin + strip + first, begin + strip + last);
      for (size_t i = first; i < last; ++i) {
        if constexpr (rounding == Rounding::stochastic) {
          codes[i] = F::quantize(values[i] * inverse, random[i]);
        } else {
          codes[i] = F::quantize(values[i] * inverse);
        }
      }
      if (blocks.absmax[b] >= F::kOverflow) {
        finite = false;
        std::memset(codes + first, 0, last - first);
      }
    }
    if (job.after != nullptr) {
      for (size_t b = 0; b < n_blocks; ++b) {
        const size_t first = b * job.block, last = smaller_size(first + job.block, n);
        const float step = blocks.step[b];
        if (blocks.absmax[b] >= F::kOverflow) {
          std::memset(job.after + begin + first, 0, (last - first) * sizeof(float));
          continue;
        }
        for (size_t i = first; i < last; ++i)
          job.after[begin + i] = values[i] - F::dequantize(codes[i], step);
      }
    }
    if constexpr (F::kBits < 8) {
      std::memset(codes + n, 0, 8);
      pack<F::kBits>(codes, n, out);
    }
  }
  return finite;
}

/// One bit an element, the sign as it is, and a mean for a step.
template <typename F>
bool encode_signs(const EncodeJob& job) {
  alignas(64) float sums[kMaxBlock];
  bool finite = true;
  for (size_t begin = 0; begin < job.n; begin += job.block) {
    const size_t n = smaller_size(job.block, job.n - begin);
    const float* values = job.x + begin;
    if (job.after != nullptr) {
      add_residual(values, job.before + begin, job.beta, n, sums);
      values = sums;
    }
    const Magnitudes all = magnitudes_of(values, n);
    const bool kept = all.largest < F::kOverflow;
    const float step = kept ? step_from_mean(all.sum, n, job.scale) : bits_float(kNonFiniteStep);
    store_steps(&step, 1, job.scale, job.steps + begin / job.block * size_of(job.scale));
    if (kept) {
      pack_signs(values, n, job.codes + begin / 8);
    } else {
      finite = false;
      std::memset(job.codes + begin / 8, 0, (n + 7) / 8);
    }
    if (job.after != nullptr) {
      for (size_t i = 0; i < n; ++i) {
        const float rest = values[i] - F::dequantize(F::quantize(values[i]), step);
        job.after[begin + i] = kept ? rest : 0.0f;
      }
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
  using Code = typename F::Code;
  for (size_t begin = 0; begin < job.n; begin += kStrip) {
    const size_t n = begin + kStrip <= job.n ? kStrip : job.n - begin;
    const float* values = job.x + begin;
    std::byte* codes = job.codes + begin * sizeof(Code);
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
        store_code(F::quantize(values[i], random[i]), codes, i);
    } else {
      for (size_t i = 0; i < n; ++i)
        store_code(F::quantize(values[i]), codes, i);
    }
    if (job.after != nullptr) {
      float* after = job.after + begin;
      for (size_t i = 0; i < n; ++i)
        after[i] = values[i] - F::dequantize(load_code<Code>(codes, i));
    }
  }
  return largest < F::kOverflow;
}

template <typename F, Rounding rounding>
bool encode(const EncodeJob& job) {
  if constexpr (F::kBits == 1) {
    return encode_signs<F>(job);
  } else if constexpr (F::kScaled) {
    return encode_scaled<F, rounding>(job);
  } else {
    return encode_plain<F, rounding>(job);
  }
}

enum class Put { value, first, sum };

template <Put how>
FEDCOMM_INLINE void put(float value, float weight, float& target) {
  if constexpr (how == Put::sum) {
    target += weight * value;
  } else if constexpr (how == Put::first) {
    target = 0.0f + weight * value;
  } else {
    target = value;
  }
}

template <typename F, Put how>
FEDCOMM_INLINE void decode_into(const DecodeJob& job, float weight, float* out) {
  if constexpr (F::kScaled) {
    alignas(64) uint8_t unpacked[kMaxBlock + kPadding];
    const size_t strip = job.block > kStrip ? job.block : kStrip;
    for (size_t begin = 0; begin < job.n; begin += strip) {
      const size_t n = smaller_size(strip, job.n - begin);
      const std::byte* in = job.codes + begin * F::kBits / 8;
      const auto* codes = reinterpret_cast<const uint8_t*>(in);
      if constexpr (F::kBits < 8) {
        unpack<F::kBits>(in, n, unpacked);
        codes = unpacked;
      }
      float* target = out + begin;
      for (size_t first = 0; first < n; first += job.block) {
        const float step = load_step(job.scale, (begin + first) / job.block, job.steps);
        const size_t last = smaller_size(first + job.block, n);
        for (size_t i = first; i < last; ++i)
          put<how>(F::dequantize(codes[i], step), weight, target[i]);
      }
    }
  } else {
    for (size_t i = 0; i < job.n; ++i)
      put<how>(F::dequantize(load_code<typename F::Code>(job.codes, i)), weight, out[i]);
  }
}

template <typename F>
void decode(const DecodeJob& job, float* out) {
  decode_into<F, Put::value>(job, 0.0f, out);
}

template <typename F>
void decode_add(const DecodeJob& job, float weight, float* accumulator) {
  decode_into<F, Put::sum>(job, weight, accumulator);
}

template <typename F>
void decode_first(const DecodeJob& job, float weight, float* accumulator) {
  decode_into<F, Put::first>(job, weight, accumulator);
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
#define FEDCOMM_FIRST(F) decode_first<F>,
  static constexpr QuantKernels kKernels = {
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ENCODERS)},
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_DECODER)},
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ADDER)},
      {FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_FIRST)},
  };
#undef FEDCOMM_ENCODERS
#undef FEDCOMM_DECODER
#undef FEDCOMM_ADDER
#undef FEDCOMM_FIRST
  return kKernels;
}

}  // namespace fedcomm::FEDCOMM_ISA
