#include "checks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace fedcomm::bench {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string at(std::size_t i, const std::string& what) {
  return "element " + std::to_string(i) + ": " + what;
}

/// The codes and steps of a payload, one at a time.
class Payload {
 public:
  Payload(const QuantSpec& spec, std::span<const std::byte> bytes, std::size_t n_elems)
      : spec_(spec), bytes_(bytes) {
    const std::size_t n_blocks = spec.block == 1 ? 0 : (n_elems + spec.block - 1) / spec.block;
    codes_at_ = n_blocks * size_of(spec.scale);
  }

  float step(std::size_t block) const {
    if (spec_.block == 1) return 1.0f;
    std::uint32_t bits = 0;
    const std::size_t size = size_of(spec_.scale);
    std::memcpy(&bits, bytes_.data() + block * size, size);
    return std::bit_cast<float>(spec_.scale == ScaleType::bf16 ? bits << 16 : bits);
  }
  /// Little-endian machines only, like the library.
  std::uint32_t code(unsigned n_bits, std::size_t i) const {
    std::uint32_t word = 0;
    const std::byte* from = bytes_.data() + codes_at_ + i * n_bits / 8;
    if (n_bits >= 8) {
      std::memcpy(&word, from, n_bits / 8);
      return word;
    }
    return std::to_integer<std::uint32_t>(*from) >> (i * n_bits % 8) & ((1u << n_bits) - 1);
  }

 private:
  QuantSpec spec_;
  std::span<const std::byte> bytes_;
  std::size_t codes_at_;
};

/// What a code is worth where the step is `step`.
template <typename F>
float worth(std::uint32_t code, float step) {
  if constexpr (F::kScaled) {
    return F::dequantize(static_cast<std::uint8_t>(code), step);
  } else if constexpr (F::kBits == 32) {
    return F::dequantize(std::bit_cast<float>(code));
  } else {
    return F::dequantize(static_cast<typename F::Code>(code));
  }
}

/// A code's value in steps, and its neighbours among all codes'.
struct Level {
  double value, below, above;
};

template <typename F>
std::vector<Level> levels_of() {
  constexpr std::uint32_t kCodes = 1u << F::kBits;
  std::vector<double> values;
  for (std::uint32_t code = 0; code < kCodes; ++code) {
    const float value = worth<F>(code, 1.0f);
    if (std::isfinite(value)) values.push_back(value);
  }
  std::ranges::sort(values);
  std::vector<Level> levels;
  for (std::uint32_t code = 0; code < kCodes; ++code) {
    const double value = worth<F>(code, 1.0f);
    const auto low = std::ranges::lower_bound(values, value);
    const auto high = std::ranges::upper_bound(values, value);
    levels.push_back({.value = value,
                      .below = low == values.begin() ? -kInfinity : *(low - 1),
                      .above = high == values.end() ? kInfinity : *high});
  }
  return levels;
}

template <typename F>
std::string check_step(const QuantSpec& spec, std::span<const float> block, float step) {
  double largest = 0, total = 0;
  for (const float value : block) {
    largest = std::max(largest, std::abs(double{value}));
    total += std::abs(double{value});
  }
  const bool bf16 = spec.scale == ScaleType::bf16;
  double exact = total / static_cast<double>(block.size());
  double low = exact * (bf16 ? 1 - 0x1p-8 : 1 - 1e-5),
         high = exact * (bf16 ? 1 + 0x1p-8 : 1 + 1e-5);
  if constexpr (requires { F::kTop; }) {
    exact = largest / double{F::kTop};
    low = exact * (1 - 1e-6);  // a step that is too small would clip
    high = exact * (bf16 ? 1 + 0x1p-7 : 1 + 1e-6);
  }
  if (exact < 0x1p-125 || (step >= low && step <= high)) return "";
  return "step " + std::to_string(step) + " of its block should be " + std::to_string(exact);
}

template <typename F>
std::string check_format(const QuantSpec& spec, std::span<const float> sum, const Payload& payload,
                         std::span<const float> after) {
  std::vector<Level> levels;
  if constexpr (F::kBits <= 16) levels = levels_of<F>();
  const bool stochastic = spec.rounding == Rounding::stochastic;
  const std::size_t block = spec.block == 1 ? 1024 : spec.block;
  double bias = 0;
  for (std::size_t begin = 0, index = 0; begin < sum.size(); begin += block, ++index) {
    const std::size_t n = std::min(block, sum.size() - begin);
    const float step = payload.step(index);
    if (F::kScaled) {
      const std::string wrong = check_step<F>(spec, sum.subspan(begin, n), step);
      if (!wrong.empty()) return at(begin, wrong);
    }
    for (std::size_t i = begin; i < begin + n; ++i) {
      const std::uint32_t code = payload.code(F::kBits, i);
      const float decoded = worth<F>(code, step);
      if (!after.empty() &&
          std::bit_cast<std::uint32_t>(after[i]) != std::bit_cast<std::uint32_t>(sum[i] - decoded))
        return at(i, "residual is not what decoding leaves over");
      if constexpr (F::kBits == 32) {
        if (std::bit_cast<std::uint32_t>(decoded) != std::bit_cast<std::uint32_t>(sum[i]))
          return at(i, "fp32 changed");
        continue;
      } else {
        if (step == 0.0f) continue;
        const Level& level = levels[code];
        const double y = double{sum[i]} / double{step};
        // Encoders multiply by a rounded inverse; unscaled ones have nothing to round.
        const double slack = F::kScaled ? 5e-7 * (1 + std::abs(y)) : 0.0;
        const double low = stochastic ? level.below : (level.below + level.value) / 2;
        const double high = stochastic ? level.above : (level.value + level.above) / 2;
        if (!(y >= low - slack && y <= high + slack))
          return at(i, std::to_string(y) + " steps became " + std::to_string(level.value));
        const double gap = level.value > y ? level.value - level.below : level.above - level.value;
        if (std::isfinite(gap)) bias += (level.value - y) / gap;
      }
    }
  }
  // Errors of one gap at most have a standard deviation of half a gap at most.
  const double limit = 6 * 0.5 * std::sqrt(static_cast<double>(sum.size())) + 1;
  if (stochastic && std::abs(bias) > limit)
    return "stochastic rounding is biased by " + std::to_string(bias) + " steps in all";
  return "";
}

std::uint64_t bits_at(std::span<const std::byte> bytes, std::size_t first, unsigned n_bits) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < n_bits; ++i) {
    const std::size_t bit = first + i;
    value |= (std::to_integer<std::uint64_t>(bytes[bit / 8]) >> (bit % 8) & 1) << i;
  }
  return value;
}

/// The order of selection, as one integer.
std::uint64_t rank_of(float value, std::size_t index) {
  const std::uint64_t magnitude = std::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
  return magnitude << 32 | (0xffffffffu - static_cast<std::uint32_t>(index));
}

}  // namespace

std::vector<float> slow_decode(const QuantSpec& spec, std::span<const std::byte> payload,
                               std::size_t n_elems) {
  const Payload parts(spec, payload, n_elems);
  return visit_format(spec.format, [&]<typename F>(F) {
    std::vector<float> out(n_elems);
    for (std::size_t i = 0; i < n_elems; ++i)
      out[i] = worth<F>(parts.code(F::kBits, i), parts.step(i / spec.block));
    return out;
  });
}

std::vector<float> slow_sum(std::span<const float> x, std::span<const float> before, float beta) {
  std::vector<float> sum(x.begin(), x.end());
  for (std::size_t i = 0; i < before.size(); ++i) {
    const float product = beta * before[i];
    sum[i] += product;
  }
  return sum;
}

std::string check_encoding(const QuantSpec& spec, std::span<const float> sum,
                           std::span<const std::byte> payload, std::span<const float> after) {
  const Payload parts(spec, payload, sum.size());
  return visit_format(spec.format,
                      [&]<typename F>(F) { return check_format<F>(spec, sum, parts, after); });
}

std::string check_same(std::span<const float> expected, std::span<const float> found) {
  if (expected.size() != found.size()) return "wrong number of elements";
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(expected[i]) != std::bit_cast<std::uint32_t>(found[i]))
      return at(i, std::to_string(found[i]) + " should be " + std::to_string(expected[i]));
  }
  return "";
}

std::string check_largest(std::span<const float> sum, std::span<const std::uint32_t> indices,
                          std::span<const float> values, std::size_t first_index) {
  if (indices.size() != values.size()) return "as many indices as values are needed";
  std::uint64_t last = std::numeric_limits<std::uint64_t>::max();
  for (std::size_t j = 0; j < indices.size(); ++j) {
    const std::size_t i = indices[j] - first_index;  // wraps where the index is too small
    if (i >= sum.size()) return "index " + std::to_string(indices[j]) + " is out of range";
    if (j > 0 && indices[j] <= indices[j - 1]) return "indices do not ascend";
    if (std::bit_cast<std::uint32_t>(values[j]) != std::bit_cast<std::uint32_t>(sum[i]))
      return at(indices[j], "another value was selected than stands there");
    last = std::min(last, rank_of(sum[i], i));
  }
  std::size_t n_up_to_last = 0;
  for (std::size_t i = 0; i < sum.size(); ++i)
    n_up_to_last += rank_of(sum[i], i) >= last;
  if (!indices.empty() && n_up_to_last != indices.size())
    return std::to_string(n_up_to_last) + " entries, not " + std::to_string(indices.size()) +
           ", are as large as the smallest selected one";
  return "";
}

std::string check_chunks(std::span<const float> sum, std::size_t chunk, std::size_t k_per_chunk,
                         std::span<const std::uint32_t> indices, std::span<const float> values) {
  std::size_t done = 0;
  for (std::size_t begin = 0; begin < sum.size(); begin += chunk) {
    const std::size_t n = std::min(chunk, sum.size() - begin);
    const std::size_t k = std::min(k_per_chunk, n);
    if (done + k > indices.size()) return "too few entries";
    const std::string wrong = check_largest(sum.subspan(begin, n), indices.subspan(done, k),
                                            values.subspan(done, k), begin);
    if (!wrong.empty()) return wrong;
    done += k;
  }
  return done == indices.size() ? "" : "too many entries";
}

std::vector<std::uint32_t> slow_rice_decode(std::span<const std::byte> bytes, std::uint64_t n,
                                            std::size_t k) {
  std::vector<std::uint32_t> indices(k);
  const unsigned shift = rice_shift(n, k);
  std::size_t unary = (k * shift + 7) / 8 * 8;
  std::uint64_t next = 0;
  if (k == n) {  // takes no bytes
    for (std::uint32_t& index : indices)
      index = static_cast<std::uint32_t>(next++);
    return indices;
  }
  for (std::size_t j = 0; j < k; ++j) {
    std::uint64_t quotient = 0;
    while (unary < bytes.size() * 8 && bits_at(bytes, unary++, 1) == 0)
      ++quotient;
    next += (quotient << shift) + bits_at(bytes, j * shift, shift);
    indices[j] = static_cast<std::uint32_t>(next++);
  }
  return indices;
}

std::vector<std::uint32_t> slow_packed_decode(std::span<const std::byte> bytes,
                                              const Chunking& chunking) {
  const auto width = static_cast<unsigned>(std::bit_width(chunking.chunk - 1));
  std::vector<std::uint32_t> indices;
  std::size_t bit = 0;
  for (std::uint64_t begin = 0; begin < chunking.n; begin += chunking.chunk) {
    const std::uint64_t n = std::min<std::uint64_t>(chunking.chunk, chunking.n - begin);
    for (std::uint64_t j = 0; j < std::min<std::uint64_t>(chunking.k_per_chunk, n); ++j) {
      indices.push_back(static_cast<std::uint32_t>(begin + bits_at(bytes, bit, width)));
      bit += width;
    }
  }
  return indices;
}

std::string check_indices(std::span<const std::uint32_t> expected,
                          std::span<const std::uint32_t> found) {
  if (expected.size() != found.size()) return "wrong number of indices";
  for (std::size_t j = 0; j < expected.size(); ++j) {
    if (expected[j] != found[j])
      return "index " + std::to_string(j) + " is " + std::to_string(found[j]) + ", not " +
             std::to_string(expected[j]);
  }
  return "";
}

}  // namespace fedcomm::bench
