// fedcomm-digests: a line of checksums for each codec and size, over payload, residual, decoded and
// accumulated values. The input comes from integer arithmetic alone, so that two machines, two
// compilers or two instruction sets must print the same text. It says nothing about which text is
// right: the tests against references do. NaN is left out: its bits are each machine's own.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "codec/codec.h"
#include "wire/crc32c.h"

using namespace fedcomm;

namespace {

/// SplitMix64.
struct Generator {
  std::uint64_t state;

  std::uint64_t next() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
};

/// Bit patterns with exponents from `low` up, 16 of them, now and then a zero or a denormal; ties
/// are frequent, as the mantissa has few bits half of the time.
std::vector<float> values(std::size_t n, std::uint64_t seed, std::uint32_t low) {
  Generator generator{seed};
  std::vector<float> all(n);
  for (float& each : all) {
    const std::uint64_t random = generator.next();
    const auto exponent = static_cast<std::uint32_t>(random >> 60);
    const std::uint32_t mantissa =
        (random & 1) != 0 ? (random >> 8 & 7) << 20 : random >> 8 & 0x7fffff;
    const auto sign = static_cast<std::uint32_t>(random >> 33 & 1) << 31;
    const std::uint32_t biased = random >> 40 & 31 ? low + exponent : 0;
    each = bits_float(sign | biased << 23 | mantissa);
  }
  return all;
}

template <typename T>
std::uint32_t digest(const std::vector<T>& all) {
  return crc32c(std::as_bytes(std::span(all)));
}

std::vector<std::string> names() {
  std::vector<std::string> all = codec_names();
  for (const std::string& format : codec_names()) {
    if (format.find('(') != std::string::npos) continue;
    all.push_back("topk(0.03, " + format + ", beta=0.9)");
    all.push_back("chunk_topk(1000, 40, " + format + ", index=packed)");
    if (format == "fp32") continue;
    if (format != "bf16") {
      all.push_back(format + "(block=32, scale=fp32)");
      all.push_back(format + "(block=4096, scale=bf16)");
    }
    if (format != "sign") all.push_back(format + "(stochastic, seed=3, beta=0.7)");
  }
  return all;
}

void print(const Codec& codec, std::size_t n, std::uint32_t low) {
  const auto x = values(n, n, low), before = values(n, n + 1, low - 2);
  std::vector<float> after(n), decoded(n), sum = values(n, n + 2, low);
  std::vector<std::byte> payload(codec.wire_bytes(n));
  EncodeOptions options;
  options.feedback = {before, after};
  options.draw = {.seed = 5, .round = 7, .bucket = 9};
  payload.resize(codec.encode(x, options, payload));
  codec.decode(payload, decoded);
  codec.decode_add(payload, 0.3f, sum);
  std::printf("%s n=%zu low=%u: %08x %08x %08x %08x\n", codec.name().c_str(), n, low,
              digest(payload), digest(after), digest(decoded), digest(sum));
}

}  // namespace

int main() {
  for (const std::string& name : names()) {
    const auto codec = make_codec(name);
    for (const std::size_t n : {0u, 1u, 7u, 255u, 1021u, 4099u, 70'001u}) {
      for (const std::uint32_t low : {3u, 112u, 225u})  // small, about 1, large
        print(*codec, n, low);
    }
  }
  return 0;
}
