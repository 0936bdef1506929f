// Random codecs, drawn from the whole grammar of names, and tensors for them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/codec.h"

namespace fedcomm::testing {

using Floats = std::vector<float>;
using RandomBits = std::mt19937_64;

/// NaNs may differ in their bits: those that arithmetic has made are the machine's own.
inline bool same_floats(const Floats& a, const Floats& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y) ||
           (std::isnan(x) && std::isnan(y));
  });
}

template <typename... Text>
std::string one_of(RandomBits& random, const Text&... texts) {
  const std::string all[] = {texts...};
  return all[random() % sizeof...(texts)];
}

inline std::string with_arguments(const std::string& word, const std::vector<std::string>& all) {
  std::string text = word;
  for (std::size_t i = 0; i < all.size(); ++i)
    text += (i == 0 ? "(" : ", ") + all[i];
  return all.empty() ? text : text + ")";
}

inline std::string random_beta(RandomBits& random) {
  return "beta=" + one_of(random, "0", "0.95", "0.5", "1");
}

inline std::string random_format(RandomBits& random, bool with_beta) {
  const auto format = static_cast<Format>(random() % kNumFormats);
  const auto [scaled, stochastic] =
      visit_format(format, []<typename F>(F) { return std::pair(F::kScaled, kStochastic<F>); });
  std::vector<std::string> arguments;
  if (scaled && random() % 2 == 0) {
    arguments.push_back("block=" + std::to_string(kMinBlock << random() % 8));
  }
  if (scaled && random() % 3 == 0) arguments.push_back("scale=" + one_of(random, "fp32", "bf16"));
  if (stochastic && random() % 2 == 0) {
    arguments.emplace_back("stochastic");
    if (random() % 2 == 0) {
      arguments.push_back("seed=" + std::to_string(static_cast<std::uint32_t>(random())));
    }
  }
  if (with_beta && random() % 2 == 0) arguments.push_back(random_beta(random));
  return with_arguments(format_name(format), arguments);
}

inline std::string random_codec(RandomBits& random) {
  std::vector<std::string> arguments;
  switch (random() % 3) {
    case 0: return random_format(random, true);
    case 1:
      arguments.push_back(random() % 3 == 0 ? "k=" + std::to_string(1 + random() % 3000)
                                            : one_of(random, "0.0001", "0.01", "0.03", "0.3", "1"));
      break;
    default: {
      const std::size_t chunk = random() % 3 == 0 ? 256 + random() % 65281 : 256u << random() % 9;
      const std::size_t ks[] = {1, 7, 64, 1 + random() % chunk, chunk};
      arguments = {std::to_string(chunk),
                   std::to_string(std::min(chunk, ks[random() % std::size(ks)]))};
    }
  }
  const bool chunked = arguments.size() == 2;
  if (random() % 6 != 0) arguments.push_back(random_format(random, false));
  if (random() % 2 == 0) arguments.push_back(random_beta(random));
  if (chunked && random() % 3 != 0)
    arguments.push_back("index=" + one_of(random, "rice", "packed"));
  return with_arguments(chunked ? "chunk_topk" : "topk", arguments);
}

enum class Special : std::uint8_t { none, non_finite };

/// Magnitudes differ much from piece to piece; with zeros, ties and denormals.
inline Floats random_floats(std::size_t n, Special special, RandomBits& random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::normal_distribution<float> normal;
  Floats values(n);
  float scale = 1.0f;
  std::size_t kind = 4;
  for (std::size_t i = 0; i < n; ++i) {
    if (i % 64 == 0 && random() % 4 == 0) {
      kind = random() % 8;
      scale = std::ldexp(1.0f, static_cast<int>(random() % 200) - 150);
    }
    const float value = normal(random);
    values[i] = kind == 0   ? 0.0f
                : kind == 1 ? static_cast<float>(static_cast<int>(random() % 15) - 7) * scale
                            : value * scale;
  }
  if (special == Special::non_finite && n > 0) {
    const float bad[] = {kNan, -kNan, kInfinity, -kInfinity, std::numeric_limits<float>::max()};
    for (std::size_t i = 0; i <= n / 5000; ++i)
      values[random() % n] = bad[random() % std::size(bad)];
  }
  return values;
}

enum class Residual : std::uint8_t { none, apart, in_place };

struct CodecCase {
  std::shared_ptr<const Codec> codec;
  Floats x = {}, before = {};
  Residual residual = Residual::none;
  Draw draw = {};
  std::size_t x_offset = 0, after_offset = 0;  // floats from an aligned address
  bool nan_bits_are_open = false;              // of the payload

  std::string text() const {
    return codec->name() + " of " + std::to_string(x.size()) + " residual " +
           std::to_string(static_cast<int>(residual)) + " offsets " + std::to_string(x_offset) +
           std::to_string(after_offset);
  }
};

inline std::size_t random_n(RandomBits& random) {
  switch (random() % 8) {
    case 0: return random() % 3;
    case 1: return random() % 300;
    case 2: return 4096 * (1 + random() % 5) + random() % 3 - 1;
    case 3: return 262'000 + random() % 100'000;  // a sample of it is taken
    default: return random() % 30'000;
  }
}

inline CodecCase random_codec_case(RandomBits& random, std::size_t n) {
  CodecCase one{.codec = make_codec(random_codec(random))};
  const bool non_finite = random() % 5 == 0;
  one.x = random_floats(n, non_finite ? Special::non_finite : Special::none, random);
  if (random() % 3 != 0) {
    one.residual = random() % 2 == 0 ? Residual::apart : Residual::in_place;
    one.before = random_floats(n, Special::none, random);
  }
  one.draw = {.seed = random() % 65536,
              .round = static_cast<std::uint32_t>(random()),
              .bucket = static_cast<std::uint32_t>(random()),
              .hop = static_cast<std::uint8_t>(random() % 2),
              .first = random() % 1'000'000 / 8 * 8};
  if (random() % 2 == 0) {
    one.x_offset = random() % 4;
    one.after_offset = random() % 4;
  }
  one.nan_bits_are_open = non_finite && one.residual != Residual::none && one.codec->block() == 1 &&
                          !one.codec->chooses_from_whole();
  return one;
}

}  // namespace fedcomm::testing
