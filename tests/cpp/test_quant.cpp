#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/isa.h"
#include "check.h"
#include "codec/codec.h"
#include "quant/quant.h"

namespace fedcomm {
namespace {

std::vector<float> gaussian(std::size_t n, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& each : values)
    each = normal(generator);
  return values;
}

const QuantSpec kInt8 = default_spec(Format::Int8);

const std::vector<std::size_t> kSizes = {0, 1, 2, 255, 256, 257, 511, 1021, 4096, 100003};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST(half_conversions_round_trip_every_pattern) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto h = static_cast<std::uint16_t>(bits);
    const float as_half = half_to_float(h), as_bf16 = bf16_to_float(h);
    if (std::isnan(as_half)) {
      CHECK(std::isnan(half_to_float(float_to_half(as_half))));
    } else {
      CHECK_EQUAL(float_to_half(as_half), h);
    }
    if (std::isnan(as_bf16)) {
      CHECK(std::isnan(bf16_to_float(float_to_bf16(as_bf16))));
    } else {
      CHECK_EQUAL(float_to_bf16(as_bf16), h);
    }
  }
}

TEST(half_conversions_round_to_nearest_even) {
  // Between two neighbours: the nearer, and the even one from the middle.
  for (std::uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const float low = half_to_float(static_cast<std::uint16_t>(bits));
    const float high = half_to_float(static_cast<std::uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    CHECK_EQUAL(float_to_half(middle), bits % 2 == 0 ? bits : bits + 1);
    CHECK_EQUAL(float_to_half(std::nextafterf(middle, low)), bits);
    CHECK_EQUAL(float_to_half(std::nextafterf(middle, high)), bits + 1);
  }
  CHECK_EQUAL(float_to_half(65520.0f), 0x7c00);  // the middle above the largest half
  CHECK_EQUAL(float_to_half(65519.99f), 0x7bff);
  CHECK_EQUAL(float_to_half(-1e-9f), 0x8000);
}

TEST(int8_is_within_half_a_step_and_uses_its_range) {
  for (const std::size_t n : kSizes) {
    for (const float magnitude : {1e-30f, 1e-3f, 1.0f, 1e30f}) {
      const auto x = gaussian(n, static_cast<unsigned>(n), magnitude);
      std::vector<std::byte> payload(quant_bytes(kInt8, n));
      CHECK(cpu::encode(kInt8, x, {}, {}, payload));
      std::vector<float> back(n);
      cpu::decode(kInt8, payload, back);
      for (std::size_t begin = 0; begin < n; begin += std::size_t{Int8::kBlock}) {
        const std::size_t end = std::min(begin + std::size_t{Int8::kBlock}, n);
        float absmax = 0;
        for (std::size_t i = begin; i < end; ++i)
          absmax = std::max(absmax, std::fabs(x[i]));
        const double step = static_cast<double>(absmax) / 127.0;
        for (std::size_t i = begin; i < end; ++i) {
          const double error = std::fabs(static_cast<double>(x[i]) - static_cast<double>(back[i]));
          CHECK(error <= 0.5001 * step);
        }
        const auto codes = reinterpret_cast<const std::int8_t*>(
            payload.data() +
            (n + std::size_t{Int8::kBlock} - 1) / std::size_t{Int8::kBlock} * sizeof(float));
        int largest = 0;
        for (std::size_t i = begin; i < end; ++i)
          largest = std::max(largest, std::abs(codes[i]));
        CHECK_EQUAL(largest, 127);
      }
    }
  }
}

TEST(int8_of_zero_denormal_and_extreme_blocks) {
  std::vector<float> x(4 * std::size_t{Int8::kBlock}, 0.0f);
  for (std::size_t i = 0; i < std::size_t{Int8::kBlock}; ++i) {
    x[std::size_t{Int8::kBlock} + i] = 1e-42f;                                 // denormal
    x[2 * std::size_t{Int8::kBlock} + i] = std::numeric_limits<float>::max();  // largest
    x[3 * std::size_t{Int8::kBlock} + i] =
        (i % 2 ? 1.0f : -1.0f) * 0x1p-120f;  // below a full scale
  }
  std::vector<std::byte> payload(quant_bytes(kInt8, x.size()));
  CHECK(cpu::encode(kInt8, x, {}, {}, payload));
  std::vector<float> back(x.size(), kNan);
  cpu::decode(kInt8, payload, back);
  for (std::size_t i = 0; i < std::size_t{Int8::kBlock}; ++i) {
    CHECK_EQUAL(back[i], 0.0f);
    CHECK(std::fabs(back[std::size_t{Int8::kBlock} + i] - 1e-42f) <= 0x1p-127f);
    CHECK(std::isfinite(back[2 * std::size_t{Int8::kBlock} + i]));
    CHECK_EQUAL(back[3 * std::size_t{Int8::kBlock} + i], x[3 * std::size_t{Int8::kBlock} + i]);
  }
}

TEST(fp32_is_exact_and_bf16_rounds_once) {
  for (const std::size_t n : kSizes) {
    const auto x = gaussian(n, 7);
    std::vector<float> back(n);
    std::vector<std::byte> payload(quant_bytes(default_spec(Format::Fp32), n));
    CHECK(cpu::encode(default_spec(Format::Fp32), x, {}, {}, payload));
    cpu::decode(default_spec(Format::Fp32), payload, back);
    CHECK(back == x);
    payload.resize(quant_bytes(default_spec(Format::Bf16), n));
    CHECK(cpu::encode(default_spec(Format::Bf16), x, {}, {}, payload));
    cpu::decode(default_spec(Format::Bf16), payload, back);
    for (std::size_t i = 0; i < n; ++i)
      CHECK_EQUAL(back[i], bf16_to_float(float_to_bf16(x[i])));
  }
}

TEST(decode_add_rounds_product_and_sum_each) {
  for (const std::string& name : codec_names()) {
    const auto codec = make_codec(name);
    const auto x = gaussian(1021, 11), start = gaussian(1021, 12);
    std::vector<std::byte> payload(codec->wire_bytes(x.size()));
    payload.resize(codec->encode(x, {}, payload));
    std::vector<float> decoded(x.size()), sum = start;
    codec->decode(payload, decoded);
    codec->decode_add(payload, 0.3f, sum);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const volatile float product = 0.3f * decoded[i];  // rounded before it is added
      const float expected = start[i] + product;
      CHECK_EQUAL(sum[i], expected);
    }
  }
}

TEST(decode_first_is_decode_add_to_zeros) {
  const Isa usual = current_isa();
  for (const Isa isa : available_isas()) {
    use_isa(name_of(isa));
    for (const std::string& name : codec_names()) {
      for (const std::size_t n : kSizes) {
        const auto codec = make_codec(name);
        auto x = gaussian(n, 13);
        for (std::size_t i = 0; i < n; i += 3)
          x[i] = -0.0f;
        std::vector<std::byte> payload(codec->wire_bytes(n));
        payload.resize(codec->encode(x, {}, payload));
        for (const float weight : {1.0f, 0.3f, 0.0f}) {
          std::vector<float> expected(n, 0.0f), sum(n, kNan);
          codec->decode_add(payload, weight, expected);
          codec->decode_first(payload, weight, sum);
          CHECK(n == 0 || std::memcmp(sum.data(), expected.data(), n * sizeof(float)) == 0);
        }
      }
    }
  }
  use_isa(name_of(usual));
}

TEST(non_finite_is_found_by_every_codec_at_every_place) {
  for (const std::string& name : codec_names()) {
    const auto codec = make_codec(name);
    for (const std::size_t n : {1u, 256u, 257u, 5000u}) {
      std::vector<std::byte> payload(codec->wire_bytes(n));
      for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
        for (const float bad : {kNan, kInf, -kInf}) {
          auto x = gaussian(n, 5);
          x[at] = bad;
          try {
            codec->encode(x, {}, payload);
            CHECK(false);
          } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::non_finite);
            CHECK_EQUAL(error.detail(), static_cast<std::int64_t>(at));
          }
          const EncodeOptions propagate{.policy = NonFinitePolicy::propagate};
          const std::size_t n_bytes = codec->encode(x, propagate, payload);
          std::vector<float> back(n);
          codec->decode(std::span(payload).first(n_bytes), back);
          CHECK(!std::isfinite(back[at]));
        }
      }
    }
  }
}

TEST(feedback_loses_nothing) {
  for (const std::string& name : codec_names()) {
    const auto codec = make_codec(name);
    const auto x = gaussian(3000, 21), before = gaussian(3000, 22, 0.01f);
    std::vector<float> after(3000), decoded(3000);
    std::vector<std::byte> payload(codec->wire_bytes(3000));
    const float beta = name.find("beta=0.95") == std::string::npos ? 1.0f : 0.95f;
    payload.resize(codec->encode(x, {.feedback = {before, after}}, payload));
    codec->decode(payload, decoded);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float sum = x[i] + beta * before[i];
      CHECK_EQUAL(after[i], sum - decoded[i]);  // one rounding; exact where Sterbenz's lemma holds
    }
  }
}

TEST(a_block_that_is_not_finite_has_codes_and_residuals_of_zero) {
  // What CUDA writes too, so that both leave the same bytes behind.
  for (const Format format :
       {Format::Int8, Format::Int4, Format::Int2, Format::E3m0, Format::Sign}) {
    const QuantSpec spec = default_spec(format);
    const std::size_t n = 40 * spec.block + 17, bad = 3 * spec.block + 5;
    std::vector<float> x = gaussian(n, 5), before = gaussian(n, 6), after(n, 9.0f), decoded(n);
    x[bad] = kInf;
    std::vector<std::byte> payload(quant_bytes(spec, n), std::byte{0x5a});
    CHECK(!cpu::encode(spec, x, {before, after, 1.0f}, {}, payload));
    cpu::decode(spec, payload, decoded);
    for (std::size_t i = 0; i < n; ++i) {
      const bool in_block = i / spec.block == bad / spec.block;
      CHECK_EQUAL(std::isnan(decoded[i]), in_block);
      if (in_block) CHECK_EQUAL(after[i], 0.0f);
      if (!in_block) CHECK_EQUAL(after[i], (x[i] + before[i]) - decoded[i]);
    }
  }
}

TEST(payload_of_a_wrong_size_is_refused) {
  for (const std::string& name : codec_names()) {
    const auto codec = make_codec(name);
    std::vector<float> out(300);
    for (const std::size_t n :
         {std::size_t{0}, codec->wire_bytes(300) - 1, codec->wire_bytes(300) + 1}) {
      const std::vector<std::byte> payload(n);
      CHECK_THROWS(ErrorKind::corrupt_frame, codec->decode(payload, out));
      CHECK_THROWS(ErrorKind::corrupt_frame, codec->decode_add(payload, 1.0f, out));
      CHECK_THROWS(ErrorKind::corrupt_frame, codec->decode_first(payload, 1.0f, out));
    }
  }
}

TEST(payloads_may_begin_at_any_address) {
  std::vector<std::string> names = codec_names();
  names.emplace_back("bf16(stochastic)");
  for (const std::string& name : names) {
    const auto codec = make_codec(name);
    const auto x = gaussian(1021, 31), before = gaussian(1021, 32);
    std::vector<float> after(x.size()), decoded(x.size()), sum(x.size());
    std::vector<std::byte> aligned(codec->wire_bytes(x.size()));
    aligned.resize(codec->encode(x, {.feedback = {before, after}}, aligned));
    codec->decode(aligned, decoded);
    for (std::size_t skip = 1; skip < 8; ++skip) {
      std::vector<std::byte> memory(skip + codec->wire_bytes(x.size()));
      auto payload = std::span(memory).subspan(skip);
      std::vector<float> after_here(x.size()), decoded_here(x.size());
      payload = payload.first(codec->encode(x, {.feedback = {before, after_here}}, payload));
      CHECK(std::equal(payload.begin(), payload.end(), aligned.begin(), aligned.end()));
      CHECK(after_here == after);
      codec->decode(payload, decoded_here);
      CHECK(decoded_here == decoded);
      std::fill(sum.begin(), sum.end(), 0.0f);
      codec->decode_add(payload, 1.0f, sum);
      CHECK(sum == decoded);
    }
  }
}

TEST(as_many_entries_as_can_be_asked_for_are_all) {
  constexpr auto kAll = std::numeric_limits<std::size_t>::max();
  const auto x = gaussian(300, 33);
  for (const std::string& name : {"topk(k=" + std::to_string(kAll) + ")", std::string("topk(1)")}) {
    const auto codec = make_codec(name);
    std::vector<std::byte> payload(codec->wire_bytes(x.size()));
    std::vector<float> back(x.size());
    payload.resize(codec->encode(x, {}, payload));
    codec->decode(payload, back);
    CHECK(back == x);
  }
}

TEST(codec_names_parse_and_print) {
  for (const std::string& name : codec_names()) {
    CHECK_EQUAL(std::string(make_codec(name)->name()), name);
    CHECK(make_codec(name)->id() != 0);
  }
  CHECK_THROWS(ErrorKind::invalid_argument, make_codec("int9"));
  CHECK_THROWS(ErrorKind::invalid_argument, make_codec(""));
}

TEST(without_a_device_cuda_says_so) {
  if (cuda::available()) return;
  CHECK_THROWS(ErrorKind::cuda, cuda::decode({}, nullptr, 1, nullptr, nullptr));
}

}  // namespace fedcomm
