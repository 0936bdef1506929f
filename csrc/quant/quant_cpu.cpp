// Checks, and divides the work among threads; the kernels are in quant_isa.cpp.
#include <atomic>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"
#include "quant/kernels.h"

namespace fedcomm::cpu {
namespace {

/// Elements that a thread takes at a time: a multiple of any block, 256 KiB of floats.
constexpr std::size_t kPiece = 1u << 16;

/// Where the payload of elements [begin, ...) lies; begin is a multiple of kPiece.
template <typename Byte>
struct Parts {
  Byte* steps;
  Byte* codes;
};

template <typename Byte>
Parts<Byte> parts_from(const QuantSpec& spec, Byte* payload, std::size_t n_elems,
                       std::size_t begin) {
  const QuantSpec codes_only{.format = spec.format};
  const std::size_t all_steps = quant_bytes(spec, n_elems) - quant_bytes(codes_only, n_elems);
  const std::size_t steps_before = spec.block == 1 ? 0 : begin / spec.block * size_of(spec.scale);
  return {payload + steps_before, payload + all_steps + quant_bytes(codes_only, begin)};
}

void check_size(const QuantSpec& spec, std::size_t n_bytes, std::size_t n_elems) {
  if (n_bytes != quant_bytes(spec, n_elems)) {
    fail(ErrorKind::corrupt_frame, "payload of " + std::to_string(n_bytes) + " bytes cannot hold " +
                                       std::to_string(n_elems) + " elements, which take " +
                                       std::to_string(quant_bytes(spec, n_elems)));
  }
}

}  // namespace

std::size_t first_non_finite(Format format, std::span<const float> x) {
  return first_beyond(
      x, visit_format(format, []<typename F>(F) -> std::uint32_t { return F::kOverflow; }));
}

bool encode(const QuantSpec& spec, std::span<const float> x, const Feedback& feedback,
            const Draw& draw, std::span<std::byte> payload) {
  check_size(spec, payload.size(), x.size());
  const auto kernel =
      quant_kernels()
          .encode[static_cast<std::size_t>(spec.format)][static_cast<std::size_t>(spec.rounding)];
  std::atomic<bool> finite = true;
  parallel_for(x.size(), kPiece, [&](std::size_t begin, std::size_t end) {
    const auto [steps, codes] = parts_from(spec, payload.data(), x.size(), begin);
    EncodeJob job{.x = x.data() + begin,
                  .before = nullptr,
                  .after = nullptr,
                  .beta = feedback.beta,
                  .n = end - begin,
                  .steps = steps,
                  .codes = codes,
                  .block = spec.block,
                  .scale = spec.scale,
                  .draw = draw};
    job.draw.first += begin;
    if (!feedback.after.empty()) {
      job.before = feedback.before.data() + begin;
      job.after = feedback.after.data() + begin;
    }
    if (!kernel(job)) finite = false;
  });
  return finite;
}

void decode(const QuantSpec& spec, std::span<const std::byte> payload, std::span<float> out) {
  check_size(spec, payload.size(), out.size());
  const auto kernel = quant_kernels().decode[static_cast<std::size_t>(spec.format)];
  parallel_for(out.size(), kPiece, [&](std::size_t begin, std::size_t end) {
    const auto [steps, codes] = parts_from(spec, payload.data(), out.size(), begin);
    kernel({steps, codes, end - begin, spec.block, spec.scale}, out.data() + begin);
  });
}

namespace {

using Adder = void (*)(const DecodeJob& job, float weight, float* accumulator);

void add_up(Adder kernel, const QuantSpec& spec, std::span<const std::byte> payload, float weight,
            std::span<float> accumulator) {
  check_size(spec, payload.size(), accumulator.size());
  parallel_for(accumulator.size(), kPiece, [&](std::size_t begin, std::size_t end) {
    const auto [steps, codes] = parts_from(spec, payload.data(), accumulator.size(), begin);
    kernel({steps, codes, end - begin, spec.block, spec.scale}, weight, accumulator.data() + begin);
  });
}

}  // namespace

void decode_add(const QuantSpec& spec, std::span<const std::byte> payload, float weight,
                std::span<float> accumulator) {
  add_up(quant_kernels().decode_add[static_cast<std::size_t>(spec.format)], spec, payload, weight,
         accumulator);
}

void decode_first(const QuantSpec& spec, std::span<const std::byte> payload, float weight,
                  std::span<float> accumulator) {
  add_up(quant_kernels().decode_first[static_cast<std::size_t>(spec.format)], spec, payload, weight,
         accumulator);
}

}  // namespace fedcomm::cpu
