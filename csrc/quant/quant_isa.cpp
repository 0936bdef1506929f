// The quantization kernels of one instruction set, FEDCOMM_ISA: plain loops over a block that lies
// in L1, which compilers vectorise. Memory is passed over once; what is left between two loops
// (sums, random bits, unpacked codes) stays on the stack.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "quant/kernels.h"

namespace fedcomm::FEDCOMM_ISA {
namespace {

using std::size_t, std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t;

#define FEDCOMM_INLINE [[gnu::always_inline]] inline

constexpr uint32_t kMagnitude = 0x7fffffffu;
/// Unscaled formats have no blocks; this many elements are worked on at a time.
constexpr size_t kStrip = 1024;

// --- 64-bit lanes --------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr size_t kLanes64 = 8;
#elif defined(__AVX2__)
constexpr size_t kLanes64 = 4;
#else
constexpr size_t kLanes64 = 2;
#endif
using Lanes64 [[gnu::vector_size(kLanes64 * 8)]] = uint64_t;

/// The lower half of each lane times `factor`: one instruction, but no compiler sees that.
FEDCOMM_INLINE Lanes64 multiply_low(Lanes64 x, uint32_t factor) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes64>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(factor)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(factor)));
#elif defined(__SSE2__)
  return reinterpret_cast<Lanes64>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(x), _mm_set1_epi64x(factor)));
#else
  return (x & 0xffffffffu) * factor;
#endif
}

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

/// The random bits of elements [0, n) (rounded up to 64) of a block that begins at draw.first.
FEDCOMM_INLINE void draw_bits(const Draw& draw, size_t n, uint16_t* random) {
  // Counters side by side, in the lower halves of 64-bit lanes; the upper halves may hold anything.
  constexpr size_t kCounters = 8, kVectors = kCounters / kLanes64;
  for (size_t i = 0; i < n; i += kCounters * 8) {
    const uint64_t first = (draw.first + i) / 8;
    uint64_t start[4][kCounters];
    for (size_t j = 0; j < kCounters; ++j) {
      start[0][j] = first + j;
      start[1][j] = ((first + j) >> 32) | uint64_t{draw.hop} << 24;
      start[2][j] = draw.bucket;
      start[3][j] = draw.round;
    }
    Lanes64 a[kVectors], b[kVectors], c[kVectors], d[kVectors];
    std::memcpy(a, start[0], sizeof a);
    std::memcpy(b, start[1], sizeof b);
    std::memcpy(c, start[2], sizeof c);
    std::memcpy(d, start[3], sizeof d);
    uint32_t key0 = static_cast<uint32_t>(draw.seed), key1 = static_cast<uint32_t>(draw.seed >> 32);
    for (int round = 0; round < Philox::kRounds; ++round) {
      for (size_t v = 0; v < kVectors; ++v) {
        const Lanes64 product0 = multiply_low(a[v], Philox::kMultiplier0);
        const Lanes64 product1 = multiply_low(c[v], Philox::kMultiplier1);
        a[v] = (product1 >> 32) ^ b[v] ^ uint64_t { key0 };
        c[v] = (product0 >> 32) ^ d[v] ^ uint64_t { key1 };
        b[v] = product1;
        d[v] = product0;
      }
      key0 += Philox::kWeyl0;
      key1 += Philox::kWeyl1;
    }
    uint64_t halves[2][kCounters], words[2 * kCounters];
    for (size_t v = 0; v < kVectors; ++v) {
      const Lanes64 low = (a[v] & 0xffffffffu) | b[v] << 32;
      const Lanes64 high = (c[v] & 0xffffffffu) | d[v] << 32;
      std::memcpy(halves[0] + v * kLanes64, &low, sizeof low);
      std::memcpy(halves[1] + v * kLanes64, &high, sizeof high);
    }
    for (size_t j = 0; j < kCounters; ++j) {
      words[2 * j] = halves[0][j];
      words[2 * j + 1] = halves[1][j];
    }
    std::memcpy(random + i, words, sizeof words);
  }
}

/// n codes, one a byte, to kBits each. `codes` is readable, and zero, up to a multiple of 8.
template <unsigned kBits>
FEDCOMM_INLINE void pack(const uint8_t* codes, size_t n, std::byte* out) {
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  const size_t n_bytes = (n * kBits + 7) / 8;
  if constexpr (kBits == 4) {
    for (size_t i = 0; i < n_bytes; ++i) {
      uint16_t pair;
      std::memcpy(&pair, codes + 2 * i, sizeof pair);
      bytes[i] = static_cast<uint8_t>((pair | pair >> 4) & 0xff);
    }
  } else if constexpr (kBits == 2) {
    for (size_t i = 0; i < n_bytes; ++i) {
      uint32_t four;
      std::memcpy(&four, codes + 4 * i, sizeof four);
      bytes[i] = static_cast<uint8_t>((four | four >> 6 | four >> 12 | four >> 18) & 0xff);
    }
  } else {
    static_assert(kBits == 1);
    for (size_t i = 0; i < n_bytes; ++i) {
      uint64_t eight;
      std::memcpy(&eight, codes + 8 * i, sizeof eight);
      bytes[i] = static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
    }
  }
}

/// The reverse; writes up to a multiple of 8 codes.
template <unsigned kBits>
FEDCOMM_INLINE void unpack(const std::byte* in, size_t n, uint8_t* codes) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(in);
  const size_t n_bytes = (n * kBits + 7) / 8;
  if constexpr (kBits == 4) {
    for (size_t i = 0; i < n_bytes; ++i) {
      const uint32_t byte = bytes[i];
      const auto pair = static_cast<uint16_t>((byte | byte << 4) & 0x0f0fu);
      std::memcpy(codes + 2 * i, &pair, sizeof pair);
    }
  } else if constexpr (kBits == 2) {
    for (size_t i = 0; i < n_bytes; ++i) {
      const uint32_t byte = bytes[i];
      const uint32_t four = (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303u;
      std::memcpy(codes + 4 * i, &four, sizeof four);
    }
  } else {
    static_assert(kBits == 1);
    for (size_t i = 0; i < n_bytes; ++i) {
      const uint64_t byte = bytes[i];
      const uint64_t eight =
          (byte * 0x0101010101010101u & 0x8040201008040201u) + 0x7f7f7f7f7f7f7f7fu;
      const uint64_t codes_of = eight >> 7 & 0x0101010101010101u;
      std::memcpy(codes + 8 * i, &codes_of, sizeof codes_of);
    }
  }
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
  alignas(64) uint16_t random[rounding == Rounding::stochastic ? kMaxBlock : 1];
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
      draw_bits(draw, n, random);
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
      draw_bits(draw, n, random);
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
  if constexpr (F::kScaled) {
    return encode_scaled<F, rounding>(job);
  } else {
    return encode_plain<F, rounding>(job);
  }
}

template <typename F, bool kAdd>
FEDCOMM_INLINE void decode_into(const DecodeJob& job, float weight, float* out) {
  const auto use = [=](float value, float& target) {
    if constexpr (kAdd) {
      target += weight * value;
    } else {
      target = value;
    }
  };
  if constexpr (F::kScaled) {
    alignas(64) uint8_t unpacked[kMaxBlock + 8];
    for (size_t begin = 0, index = 0; begin < job.n; begin += job.block, ++index) {
      const size_t n = begin + job.block <= job.n ? job.block : job.n - begin;
      const std::byte* in = job.codes + begin * F::kBits / 8;
      const float step = load_step(job.scale, index, job.steps);
      const uint8_t* codes = reinterpret_cast<const uint8_t*>(in);
      if constexpr (F::kBits < 8) {
        unpack<F::kBits>(in, n, unpacked);
        codes = unpacked;
      }
      float* target = out + begin;
      for (size_t i = 0; i < n; ++i)
        use(F::dequantize(codes[i], step), target[i]);
    }
  } else {
    for (size_t i = 0; i < job.n; ++i)
      use(F::dequantize(load_code<typename F::Code>(job.codes, i)), out[i]);
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
