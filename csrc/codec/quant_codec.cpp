#include "codec/quant_codec.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/error.h"
#include "codec/device_codec.h"

namespace fedcomm {
namespace {

constexpr std::string_view kUsage =
    "a format with block=N, scale=fp32|bf16, stochastic, seed=N and beta=X where these apply";

std::optional<Format> format_named(std::string_view name) {
#define FEDCOMM_TRY(F) \
  if (name == F::kName) return Format::F;
  FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_TRY)
#undef FEDCOMM_TRY
  return std::nullopt;
}

/// A format on a GPU; needs no memory of its own.
class DeviceQuant final : public DeviceCodec {
 public:
  DeviceQuant(const ValueCodec& values, float beta) : values_(values), beta_(beta) {}

  void reserve_encode(std::size_t) override {}
  void reserve_decode(std::size_t, std::size_t) override {}

  std::optional<std::size_t> encode(std::span<const float> x, const EncodeOptions& options,
                                    const DeviceOutput& out, void* stream) override {
    const std::size_t n_bytes = quant_bytes(values_.spec, x.size());
    if (out.payload.size() < n_bytes) {
      fail(ErrorKind::invalid_argument, "[cuda] room for " + std::to_string(out.payload.size()) +
                                            " bytes; the payload takes " + std::to_string(n_bytes));
    }
    const cuda::Input input{.x = x.data(),
                            .n_elems = x.size(),
                            .before = options.feedback.before.data(),
                            .after = options.feedback.after.data(),
                            .beta = beta_};
    cuda::encode(values_.spec, input, values_.draw(options.draw), out.payload.data(),
                 out.non_finite, stream);
    return n_bytes;
  }
  void begin(std::span<const float>, const EncodeOptions&, std::int32_t*, void*) override {
    refuse_pieces();
  }
  std::optional<std::size_t> encode_piece(std::size_t, std::size_t, const DeviceOutput&,
                                          void*) override {
    refuse_pieces();
  }

  void decode(const DevicePayload& payload, std::span<float> out, std::int32_t*,
              void* stream) override {
    check_size(payload, out.size());
    cuda::decode(values_.spec, payload.bytes.data(), out.size(), out.data(), stream);
  }
  void decode_add(const DevicePayload& payload, float weight, std::span<float> accumulator,
                  std::int32_t*, void* stream) override {
    check_size(payload, accumulator.size());
    cuda::decode_add(values_.spec, payload.bytes.data(), accumulator.size(), weight,
                     accumulator.data(), stream);
  }

 private:
  [[noreturn]] static void refuse_pieces() {
    fail(ErrorKind::internal, "bug in libfedcomm: formats do not choose from a whole tensor");
  }
  void check_size(const DevicePayload& payload, std::size_t n_elems) const {
    const std::size_t n_bytes = quant_bytes(values_.spec, n_elems);
    if (payload.bytes.size() == n_bytes) return;
    fail(ErrorKind::corrupt_frame, "payload of " + std::to_string(payload.bytes.size()) +
                                       " bytes cannot hold " + std::to_string(n_elems) +
                                       " elements, which take " + std::to_string(n_bytes));
  }

  ValueCodec values_;
  float beta_;
};

class QuantCodec final : public Codec {
 public:
  QuantCodec(const ValueCodec& values, float beta)
      : Codec(values.text(beta_text(beta))), values_(values), beta_(beta) {}

  std::size_t block() const override { return values_.spec.block; }
  std::size_t wire_bytes(std::size_t n_elems) const override {
    return quant_bytes(values_.spec, n_elems);
  }

  std::size_t encode(std::span<const float> x, const EncodeOptions& options,
                     std::span<std::byte> payload) const override {
    const std::size_t n_bytes = wire_bytes(x.size());
    Feedback feedback = options.feedback;
    feedback.beta = beta_;
    const bool finite =
        cpu::encode(values_.spec, x, feedback, values_.draw(options.draw), payload.first(n_bytes));
    if (!finite && options.policy == NonFinitePolicy::error) {
      fail_non_finite(values_.spec.format, x, feedback);
    }
    return n_bytes;
  }
  void decode(std::span<const std::byte> payload, std::span<float> out) const override {
    cpu::decode(values_.spec, payload, out);
  }
  void decode_add(std::span<const std::byte> payload, float weight,
                  std::span<float> accumulator) const override {
    cpu::decode_add(values_.spec, payload, weight, accumulator);
  }
  void decode_first(std::span<const std::byte> payload, float weight,
                    std::span<float> accumulator) const override {
    cpu::decode_first(values_.spec, payload, weight, accumulator);
  }
  std::unique_ptr<DeviceCodec> on_device() const override {
    return std::make_unique<DeviceQuant>(values_, beta_);
  }

 private:
  ValueCodec values_;
  float beta_;
};

}  // namespace

std::string ValueCodec::text(const std::string& more) const {
  const QuantSpec usual = default_spec(spec.format);
  std::vector<std::string> arguments;
  if (spec.block != usual.block) arguments.push_back("block=" + std::to_string(spec.block));
  if (spec.scale != usual.scale) {
    arguments.emplace_back(spec.scale == ScaleType::fp32 ? "scale=fp32" : "scale=bf16");
  }
  if (spec.rounding == Rounding::stochastic) arguments.emplace_back("stochastic");
  if (seed != 0) arguments.push_back("seed=" + std::to_string(seed));
  if (!more.empty()) arguments.push_back(more);
  std::string all = format_name(spec.format);
  for (std::size_t i = 0; i < arguments.size(); ++i)
    all += (i == 0 ? "(" : ", ") + arguments[i];
  return arguments.empty() ? all : all + ")";
}

ValueCodec value_codec(const CodecText& text, CodecArguments& arguments) {
  const auto format = format_named(text.word);
  if (!format) {
    std::string known;
#define FEDCOMM_NAME(F) known += (known.empty() ? "" : ", ") + std::string(F::kName);
    FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_NAME)
#undef FEDCOMM_NAME
    fail(ErrorKind::invalid_argument,
         "there is no number format '" + text.word + "'; known: " + known);
  }
  ValueCodec values{.spec = default_spec(*format)};
  if (const CodecText* block = arguments.keyword("block")) {
    const std::size_t n = count_of(*block, "block");
    values.spec.block = static_cast<std::uint32_t>(std::min<std::size_t>(n, kMaxBlock + 1));
    if (n == 1) values.spec.block = 0;  // what unscaled formats have; not for anyone to choose
  }
  if (const CodecText* scale = arguments.keyword("scale")) {
    const std::string type = scale->value();
    if (values.spec.block == 1 || (type != "fp32" && type != "bf16")) {
      fail(ErrorKind::invalid_argument,
           text.word + ": scale is '" + type + "'; formats that have one take fp32 or bf16");
    }
    values.spec.scale = type == "fp32" ? ScaleType::fp32 : ScaleType::bf16;
  }
  if (arguments.flag("stochastic")) values.spec.rounding = Rounding::stochastic;
  if (const CodecText* seed = arguments.keyword("seed")) {
    const std::size_t n = count_of(*seed, "seed");
    if (n > 0xffffffffu || values.spec.rounding != Rounding::stochastic) {
      fail(ErrorKind::invalid_argument,
           text.word + ": a seed is below 2^32 and goes with stochastic rounding");
    }
    values.seed = static_cast<std::uint32_t>(n);
  }
  check_spec(values.spec);
  return values;
}

ValueCodec value_codec(const CodecText& text) {
  CodecArguments arguments(text);
  const ValueCodec values = value_codec(text, arguments);
  arguments.finish("a format inside another codec: block=N, scale=fp32|bf16, stochastic, seed=N");
  return values;
}

float beta_of(CodecArguments& arguments) {
  const double beta = arguments.number("beta").value_or(1.0);
  if (!(beta >= 0.0 && beta <= 1.0)) {
    fail(ErrorKind::invalid_argument, "beta is " + text_of(beta) + "; it must be from 0 to 1");
  }
  return static_cast<float>(beta);
}

std::string beta_text(float beta) {
  if (beta == 1.0f) return "";
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, beta);
  static_cast<void>(error);
  return "beta=" + std::string(buffer, end);
}

void fail_non_finite(Format format, std::span<const float> x, const Feedback& feedback) {
  std::size_t index = cpu::first_non_finite(format, x);
  if (index == x.size() && !feedback.after.empty()) {  // only the sum is too large
    for (index = 0; index < x.size(); ++index) {
      const float sum = x[index] + feedback.beta * feedback.before[index];
      if (cpu::first_non_finite(format, {&sum, 1}) == 0) break;
    }
  }
  // Where the new residual took the place of the old one, the sum cannot be seen any more.
  const auto known = index < x.size() ? static_cast<std::int64_t>(index) : std::int64_t{-1};
  fail(ErrorKind::non_finite, "NaN or infinity", known);
}

std::shared_ptr<const Codec> make_quant_codec(const CodecText& text) {
  if (!format_named(text.word)) return nullptr;
  CodecArguments arguments(text);
  const ValueCodec values = value_codec(text, arguments);
  const float beta = beta_of(arguments);
  arguments.finish(kUsage);
  return std::make_shared<QuantCodec>(values, beta);
}

}  // namespace fedcomm
