#include "codec/codec.h"

#include <algorithm>

#include "base/error.h"
#include "quant/quant.h"

namespace fedcomm {
namespace {

/// A number format on its own.
class FormatCodec final : public Codec {
 public:
  FormatCodec(Format format, const char* name) : format_(format), name_(name) {}

  std::string_view name() const override { return name_; }
  std::size_t block() const override { return format_block(format_); }
  std::size_t wire_bytes(std::size_t n_elems) const override {
    return format_bytes(format_, n_elems);
  }

  using Codec::encode;
  std::size_t encode(std::span<const float> x, std::span<std::byte> payload,
                     NonFinitePolicy policy) const override {
    const std::size_t n_bytes = wire_bytes(x.size());
    const bool finite = cpu::encode(format_, x, payload.first(n_bytes));
    if (!finite && policy == NonFinitePolicy::error) {
      const std::size_t index = cpu::first_non_finite(format_, x);
      fail(ErrorKind::non_finite, "NaN or infinity", static_cast<std::int64_t>(index));
    }
    return n_bytes;
  }
  void decode(std::span<const std::byte> payload, std::span<float> out) const override {
    cpu::decode(format_, payload, out);
  }
  void decode_add(std::span<const std::byte> payload, float weight,
                  std::span<float> accumulator) const override {
    cpu::decode_add(format_, payload, weight, accumulator);
  }

 private:
  Format format_;
  const char* name_;
};

struct Named {
  const char* name;
  Format format;
};

constexpr Named kFormats[] = {
#define FEDCOMM_ROW(F) {F::kName, Format::F},
    FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_ROW)
#undef FEDCOMM_ROW
};

}  // namespace

std::size_t Codec::encode(std::span<const float> x, const Feedback& feedback,
                          std::span<std::byte> payload, NonFinitePolicy policy) const {
  if (feedback.after.empty()) return encode(x, payload, policy);
  std::vector<float> sum(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    sum[i] = x[i] + feedback.before[i];
  const std::size_t n_bytes = encode(sum, payload, policy);
  decode(payload.first(n_bytes), feedback.after);
  for (std::size_t i = 0; i < x.size(); ++i)
    feedback.after[i] = sum[i] - feedback.after[i];
  return n_bytes;
}

std::uint32_t Codec::id() const {
  std::uint32_t hash = 2166136261u;  // FNV-1a
  for (const char c : name())
    hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash == 0 ? 1 : hash;
}

std::shared_ptr<const Codec> make_codec(std::string_view name) {
  for (const Named& row : kFormats) {
    if (name == row.name) return std::make_shared<FormatCodec>(row.format, row.name);
  }
  std::string known;
  for (const std::string& each : codec_names())
    known += (known.empty() ? "" : ", ") + each;
  fail(ErrorKind::invalid_argument,
       "there is no codec '" + std::string(name) + "'; known: " + known);
}

std::vector<std::string> codec_names() {
  std::vector<std::string> names;
  for (const Named& row : kFormats)
    names.emplace_back(row.name);
  return names;
}

}  // namespace fedcomm
