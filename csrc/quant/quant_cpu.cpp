// Portable kernels, written so that compilers vectorise them. One pass over memory: a block is read
// once from memory and a second time from L1.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "quant/quant.h"

namespace fedcomm::cpu {
namespace {

constexpr std::uint32_t kMagnitude = 0x7fffffffu;

/// Bit pattern of the largest magnitude: integer order is magnitude order, with NaN on top.
std::uint32_t absmax_bits(const float* x, std::size_t n) {
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i)
    largest = std::max(largest, float_bits(x[i]) & kMagnitude);
  return largest;
}

template <typename F>
bool encode_as(std::span<const float> x, std::byte* payload) {
  using Code = typename F::Code;
  bool finite = true;
  if constexpr (F::kScaled) {
    const std::size_t n_blocks = (x.size() + F::kBlock - 1) / F::kBlock;
    auto* codes = reinterpret_cast<Code*>(payload + n_blocks * sizeof(float));
    for (std::size_t block = 0; block < n_blocks; ++block) {
      const std::size_t begin = block * F::kBlock;
      const std::size_t n = std::min(F::kBlock, x.size() - begin);
      const std::uint32_t bits = absmax_bits(x.data() + begin, n);
      finite = finite && bits < F::kOverflow;
      // A block that held a NaN or infinity gets a NaN for its scale and decodes to NaN.
      const float scale =
          bits < F::kOverflow ? F::scale(bits_float(bits)) : bits_float(0x7fc00000u);
      std::memcpy(payload + block * sizeof(float), &scale, sizeof scale);
      if (bits >= F::kOverflow) {
        std::memset(codes + begin, 0, n * sizeof(Code));
        continue;
      }
      const float inverse = 1.0f / scale;
      for (std::size_t i = 0; i < n; ++i)
        codes[begin + i] = F::quantize(x[begin + i], inverse);
    }
  } else {
    auto* codes = reinterpret_cast<Code*>(payload);
    constexpr std::size_t kStrip = 1024;
    for (std::size_t begin = 0; begin < x.size(); begin += kStrip) {
      const std::size_t n = std::min(kStrip, x.size() - begin);
      finite = finite && absmax_bits(x.data() + begin, n) < F::kOverflow;
      for (std::size_t i = 0; i < n; ++i)
        codes[begin + i] = F::quantize(x[begin + i]);
    }
  }
  return finite;
}

/// Calls use(index, decoded value) for every element.
template <typename F, typename Use>
void decode_as(const std::byte* payload, std::size_t n_elems, Use use) {
  using Code = typename F::Code;
  if constexpr (F::kScaled) {
    const std::size_t n_blocks = (n_elems + F::kBlock - 1) / F::kBlock;
    const auto* codes = reinterpret_cast<const Code*>(payload + n_blocks * sizeof(float));
    for (std::size_t block = 0; block < n_blocks; ++block) {
      float scale;
      std::memcpy(&scale, payload + block * sizeof(float), sizeof scale);
      const std::size_t begin = block * F::kBlock;
      const std::size_t end = std::min(begin + F::kBlock, n_elems);
      for (std::size_t i = begin; i < end; ++i)
        use(i, F::dequantize(codes[i], scale));
    }
  } else {
    const auto* codes = reinterpret_cast<const Code*>(payload);
    for (std::size_t i = 0; i < n_elems; ++i)
      use(i, F::dequantize(codes[i]));
  }
}

void check_size(Format format, std::size_t n_bytes, std::size_t n_elems) {
  if (n_bytes != format_bytes(format, n_elems)) {
    fail(ErrorKind::corrupt_frame, "payload of " + std::to_string(n_bytes) + " bytes cannot hold " +
                                       std::to_string(n_elems) + " elements, which take " +
                                       std::to_string(format_bytes(format, n_elems)));
  }
}

}  // namespace

std::size_t first_non_finite(Format format, std::span<const float> x) {
  return first_beyond(
      x, visit_format(format, []<typename F>(F) -> std::uint32_t { return F::kOverflow; }));
}

bool encode(Format format, std::span<const float> x, std::span<std::byte> payload) {
  check_size(format, payload.size(), x.size());
  return visit_format(format,
                      [&]<typename F>(F) -> bool { return encode_as<F>(x, payload.data()); });
}

void decode(Format format, std::span<const std::byte> payload, std::span<float> out) {
  check_size(format, payload.size(), out.size());
  float* target = out.data();
  visit_format(format, [&]<typename F>(F) {
    decode_as<F>(payload.data(), out.size(), [target](std::size_t i, float x) { target[i] = x; });
  });
}

void decode_add(Format format, std::span<const std::byte> payload, float weight,
                std::span<float> accumulator) {
  check_size(format, payload.size(), accumulator.size());
  float* target = accumulator.data();
  visit_format(format, [&]<typename F>(F) {
    decode_as<F>(payload.data(), accumulator.size(),
                 [target, weight](std::size_t i, float x) { target[i] += weight * x; });
  });
}

}  // namespace fedcomm::cpu
