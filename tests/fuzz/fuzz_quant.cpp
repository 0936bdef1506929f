// Decoders of every number format against a reference that takes one element after the other: they
// accept exactly the payloads of the right size, at any alignment, with the same bits on every
// instruction set; decode_add is decode, a product and a sum.
#include "coding_reference.h"
#include "fuzz.h"
#include "quant/quant.h"

using namespace fedcomm;
using fedcomm::testing::on_every_isa;

namespace {

std::uint64_t bits_at(std::span<const std::byte> bytes, std::size_t first, unsigned n_bits) {
  std::uint64_t word = 0;
  const auto from = bytes.subspan(first / 8);
  std::memcpy(&word, from.data(), std::min(sizeof word, from.size()));
  return word >> (first % 8) & ((std::uint64_t{1} << n_bits) - 1);  // at most 32: they never cross
}

float reference_value(const QuantSpec& spec, std::span<const std::byte> payload, std::size_t n,
                      std::size_t i) {
  return visit_format(spec.format, [&]<typename F>(F) -> float {
    if constexpr (F::kScaled) {
      const unsigned step_bits = spec.scale == ScaleType::fp32 ? 32 : 16;
      const std::size_t n_blocks = (n + spec.block - 1) / spec.block;
      const std::uint64_t step = bits_at(payload, i / spec.block * step_bits, step_bits);
      const std::uint64_t code = bits_at(payload, n_blocks * step_bits + i * F::kBits, F::kBits);
      return F::dequantize(static_cast<std::uint8_t>(code),
                           bits_float(static_cast<std::uint32_t>(step << (32 - step_bits))));
    } else {
      const auto bits = static_cast<std::uint32_t>(bits_at(payload, i * F::kBits, F::kBits));
      return bits_float(bits << (32 - F::kBits));
    }
  });
}

QuantSpec spec_of(fuzz::Input& input) {
  QuantSpec spec = default_spec(static_cast<Format>(input.below(kNumFormats)));
  const std::size_t block = input.below(16), scale = input.below(3);
  if (spec.block == 1) return spec;
  if (block < 8) spec.block = kMinBlock << block;  // else the usual one
  if (scale < 2) spec.scale = scale == 0 ? ScaleType::fp32 : ScaleType::bf16;
  return spec;
}

void check_payload(const QuantSpec& spec, std::span<const std::byte> payload, std::size_t n,
                   float weight) {
  const bool fits = payload.size() == quant_bytes(spec, n);
  std::vector<float> truth(n), sum(n), start(n);
  for (std::size_t i = 0; i < n; ++i) {
    truth[i] = fits ? reference_value(spec, payload, n, i) : 0.0f;
    start[i] = static_cast<float>(i % 17) - 8.0f;
    sum[i] = start[i] + weight * truth[i];
  }
  on_every_isa([&] {
    std::vector<float> out(n, -1.0f), again(n, 1.0f), accumulator = start;
    const auto decode = [&](std::span<float> target) {
      return fuzz::accepts(ErrorKind::corrupt_frame, [&] { cpu::decode(spec, payload, target); });
    };
    const bool added = fuzz::accepts(ErrorKind::corrupt_frame,
                                     [&] { cpu::decode_add(spec, payload, weight, accumulator); });
    CHECK(decode(out) == fits && decode(again) == fits && added == fits);
    if (!fits) {
      CHECK(fuzz::same_bits(accumulator, start));
      return;
    }
    CHECK(fuzz::same_bits(out, truth) && fuzz::same_bits(again, truth));
    for (std::size_t i = 0; i < n; ++i)
      CHECK(fuzz::same_sum(accumulator[i], sum[i]));
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const QuantSpec spec = spec_of(input);
  const std::size_t n = input.size();
  const std::size_t skip = input.below(8);
  const float weight = bits_float(input.number<std::uint32_t>());
  const auto rest = input.rest();
  check_spec(spec);
  check_payload(spec, fuzz::Exact(rest, skip).bytes(), n, weight);
  const auto whole = fuzz::repeated(rest, quant_bytes(spec, n));
  check_payload(spec, fuzz::Exact(whole, skip).bytes(), n, weight);
  return 0;
}
