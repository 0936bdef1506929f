// The CUDA kernels of quantization against the CPU's: the same bytes and bits in random cases, and
// nothing written beside them. What the bytes mean is for test_quant.cpp. Empty without CUDA.
#ifdef FEDCOMM_HAS_CUDA
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <vector>

#include "check.h"
#include "device.h"
#include "quant/quant.h"

namespace fedcomm {
namespace {

using testing::DeviceArray, testing::Stream, testing::need_device;
using Bytes = std::vector<std::byte>;
using Floats = std::vector<float>;

constexpr std::size_t kGuard = 8;  // floats beside an array, which must stay as they were
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  QuantSpec spec;
  std::size_t n = 0;
  Draw draw;
  bool feedback = false, in_place = false, non_finite = false;
  float beta = 1.0f, weight = 1.0f;
  std::size_t x_offset = 0, before_offset = 0, after_offset = 0, out_offset = 0;  // in floats

  std::string text() const {
    std::ostringstream out;
    out << format_name(spec.format) << " block " << spec.block << " scale "
        << static_cast<int>(spec.scale) << " rounding " << static_cast<int>(spec.rounding) << " n "
        << n << " first " << draw.first << " feedback " << feedback << in_place << " non-finite "
        << non_finite << " offsets " << x_offset << before_offset << after_offset << out_offset;
    return out.str();
  }
};

bool same(const Floats& a, const Floats& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) == std::bit_cast<std::uint32_t>(b[i])) continue;
    if (!std::isnan(a[i]) || !std::isnan(b[i])) return false;  // NaNs may differ in their bits
  }
  return a.size() == b.size();
}

/// An array with guards, `offset` floats from an aligned address.
class Guarded {
 public:
  Guarded(const Floats& values, std::size_t offset)
      : n_(values.size()), begin_(kGuard + offset), array_(n_ + 2 * kGuard + offset) {
    array_.fill_bytes(0x5a);
    array_.put(begin_, values);
  }
  float* data() const { return array_.data() + begin_; }
  Floats get() const { return array_.get(begin_, n_); }
  bool intact() const {
    Floats around = array_.get(0, begin_);
    const Floats behind = array_.get(begin_ + n_, kGuard);
    around.insert(around.end(), behind.begin(), behind.end());
    for (const float each : around)
      if (std::bit_cast<std::uint32_t>(each) != 0x5a5a5a5au) return false;
    return true;
  }

 private:
  std::size_t n_, begin_;
  DeviceArray<float> array_;
};

using Generator = std::mt19937_64;

std::size_t below(Generator& generator, std::size_t n) {
  return std::uniform_int_distribution<std::size_t>(0, n - 1)(generator);
}

/// Values of very different magnitudes from piece to piece: with zeros, ties and denormals.
Floats values_of(Generator& generator, std::size_t n, bool non_finite) {
  std::normal_distribution<float> normal;
  Floats values(n);
  float scale = 1.0f;
  std::size_t kind = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (i % 64 == 0 && below(generator, 4) == 0) {
      kind = below(generator, 8);
      scale = std::ldexp(1.0f, static_cast<int>(below(generator, 250)) - 150);
    }
    const float value = normal(generator);
    const float small_integer = static_cast<float>(static_cast<int>(below(generator, 15)) - 7);
    values[i] = kind == 0   ? 0.0f
                : kind == 1 ? small_integer * 0.5f * scale
                : kind == 2 ? std::copysign(std::numeric_limits<float>::max(), value)
                            : value * scale;
  }
  if (non_finite && n > 0) {
    const float bad[] = {kNan, -kNan, kInf, -kInf};
    for (std::size_t i = 0; i <= n / 5000; ++i)
      values[below(generator, n)] = bad[below(generator, 4)];
  }
  return values;
}

Case random_case(Generator& generator) {
  Case one;
  one.spec = default_spec(static_cast<Format>(below(generator, kNumFormats)));
  const auto [scaled, stochastic] = visit_format(
      one.spec.format, []<typename F>(F) { return std::pair(F::kScaled, kStochastic<F>); });
  if (scaled) {
    one.spec.block = kMinBlock << below(generator, 8);
    one.spec.scale = below(generator, 2) == 0 ? ScaleType::fp32 : ScaleType::bf16;
  }
  if (stochastic && below(generator, 2) == 0) one.spec.rounding = Rounding::stochastic;
  const std::size_t limits[] = {40, 600, 5000, 40000};
  one.n = below(generator, limits[below(generator, 4)]);
  if (below(generator, 3) == 0) one.n = one.n / 4096 * 4096 + below(generator, 3);
  one.draw = {.seed = generator(),
              .round = static_cast<std::uint32_t>(generator()),
              .bucket = static_cast<std::uint32_t>(generator()),
              .hop = static_cast<std::uint8_t>(below(generator, 2)),
              .first = (generator() >> 6 >> below(generator, 58)) / 8 * 8};
  one.feedback = below(generator, 2) == 0;
  one.in_place = below(generator, 2) == 0;
  one.non_finite = below(generator, 5) == 0;
  const float betas[] = {1.0f, 0.0f, 0.9f, -0.3f};
  one.beta = betas[below(generator, 4)];
  one.weight = betas[below(generator, 4)];
  if (below(generator, 2) == 0) {
    one.x_offset = below(generator, 4);
    one.before_offset = below(generator, 4);
    one.after_offset = below(generator, 4);
    one.out_offset = below(generator, 4);
  }
  return one;
}

#define CHECK_CASE(condition) \
  if (!(condition)) testing::report(__FILE__, __LINE__, #condition " not true: " + one.text())

/// The CPU's truth and CUDA's answer of one case.
void compare(const Case& one, Generator& generator, const Stream& stream) {
  const Floats x = values_of(generator, one.n, one.non_finite);
  const Floats before = values_of(generator, one.n, one.non_finite && below(generator, 2) == 0);
  const Floats start = values_of(generator, one.n, false);

  Bytes payload(quant_bytes(one.spec, one.n));
  Floats after(one.n);
  const Feedback feedback{before, after, one.beta};
  const bool finite =
      cpu::encode(one.spec, x, one.feedback ? feedback : Feedback{}, one.draw, payload);
  Floats decoded(one.n), sum = start;
  cpu::decode(one.spec, payload, decoded);
  cpu::decode_add(one.spec, payload, one.weight, sum);

  const Guarded x_there(x, one.x_offset), before_there(before, one.before_offset);
  const Guarded after_there(Floats(one.n, kNan), one.after_offset);
  const Guarded decoded_there(Floats(one.n, kNan), one.out_offset);
  const Guarded sum_there(start, one.out_offset);
  DeviceArray<std::byte> payload_there(payload.size() + kGuard);
  payload_there.fill_bytes(0x5a);
  DeviceArray<std::int32_t> flag(std::vector<std::int32_t>{0});
  cuda::Input input{.x = x_there.data(), .n_elems = one.n};
  const Guarded& residual = one.in_place ? before_there : after_there;
  if (one.feedback) {
    input.before = before_there.data();
    input.after = residual.data();
    input.beta = one.beta;
  }
  cuda::encode(one.spec, input, one.draw, payload_there.data(), flag.data(), stream.get());
  cuda::decode(one.spec, payload_there.data(), one.n, decoded_there.data(), stream.get());
  cuda::decode_add(one.spec, payload_there.data(), one.n, one.weight, sum_there.data(),
                   stream.get());
  stream.wait();

  CHECK_CASE(flag.get()[0] == (finite ? 0 : 1));
  Bytes got = payload_there.get();
  for (std::size_t i = payload.size(); i < got.size(); ++i)
    CHECK_CASE(got[i] == std::byte{0x5a});
  got.resize(payload.size());
  const bool nans_may_differ = !finite && one.feedback && one.spec.block == 1;
  CHECK_CASE(nans_may_differ || got == payload);
  if (one.feedback) CHECK_CASE(same(residual.get(), after));
  CHECK_CASE(same(decoded_there.get(), decoded));
  CHECK_CASE(same(sum_there.get(), sum));
  CHECK_CASE(x_there.intact() && before_there.intact() && after_there.intact());
  CHECK_CASE(decoded_there.intact() && sum_there.intact());
}

}  // namespace

TEST(cuda_quantization_gives_the_bits_of_the_cpu) {
  need_device();
  const Stream stream;
  for (std::uint64_t seed = 0; seed < testing::cases_of(3000); ++seed) {
    Generator generator(seed);
    const Case one = random_case(generator);
    compare(one, generator, stream);
  }
}

TEST(cuda_quantization_of_every_size_near_a_boundary) {
  need_device();
  const Stream stream;
  Generator generator(7);
  for (std::size_t format = 0; format < kNumFormats; ++format) {
    for (std::size_t n = 0; n < 70; ++n) {
      Case one{.spec = default_spec(static_cast<Format>(format)), .n = n, .draw = {.seed = n}};
      one.feedback = n % 2 == 0;
      if (one.spec.block > 1) one.spec.block = kMinBlock;
      compare(one, generator, stream);
      one.n += 4096 - 35;
      compare(one, generator, stream);
    }
  }
}

TEST(cuda_quantization_can_be_captured_in_a_graph) {
  need_device();
  const Stream stream;
  const QuantSpec spec = default_spec(Format::Int4);
  constexpr std::size_t kN = 10007;
  DeviceArray<float> x(kN), out(kN);
  DeviceArray<std::byte> payload(quant_bytes(spec, kN));
  DeviceArray<std::int32_t> flag(std::vector<std::int32_t>{0});
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  testing::check_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
  cuda::encode(spec, {.x = x.data(), .n_elems = kN}, {}, payload.data(), flag.data(), stream.get());
  cuda::decode(spec, payload.data(), kN, out.data(), stream.get());
  testing::check_cuda(cudaStreamEndCapture(stream.get(), &graph));
  testing::check_cuda(cudaGraphInstantiate(&ready, graph, 0));
  Generator generator(3);
  for (int replay = 0; replay < 3; ++replay) {
    const Floats values = values_of(generator, kN, false);
    x.put(0, values);
    testing::check_cuda(cudaGraphLaunch(ready, stream.get()));
    stream.wait();
    Bytes expected(quant_bytes(spec, kN));
    Floats decoded(kN);
    cpu::encode(spec, values, {}, {}, expected);
    cpu::decode(spec, expected, decoded);
    CHECK(payload.get() == expected);
    CHECK(same(out.get(), decoded));
  }
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
}

TEST(cuda_quantization_of_more_than_2_31_elements) {
  testing::need_time();
  // Zeros, and values in the last blocks: those, encoded by themselves, give the payload's end.
  constexpr std::size_t kN = (std::size_t{1} << 31) + 4096 + 77, kTail = 8192 + 77;
  need_device();
  if (testing::free_device_bytes() < kN * 6) throw testing::Skipped("too little memory free");
  const Stream stream;
  Generator generator(5);
  const Floats tail = values_of(generator, kTail, false);
  DeviceArray<float> x(kN);
  DeviceArray<std::byte> payload(kN + kN / 8);
  DeviceArray<std::int32_t> flag(std::vector<std::int32_t>{0});
  for (std::size_t format = 0; format < kNumFormats; ++format) {
    QuantSpec spec = default_spec(static_cast<Format>(format));
    if (spec.block == 1) continue;
    if (spec.format != Format::Sign) spec.rounding = Rounding::stochastic;
    x.fill_bytes(0);
    x.put(kN - kTail, tail);
    payload.fill_bytes(0x5a);
    cuda::encode(spec, {.x = x.data(), .n_elems = kN}, {.seed = 9}, payload.data(), flag.data(),
                 stream.get());
    stream.wait();
    x.fill_bytes(0x5a);
    cuda::decode(spec, payload.data(), kN, x.data(), stream.get());
    stream.wait();

    const Draw draw{.seed = 9, .first = kN - kTail};
    Bytes expected(quant_bytes(spec, kTail));
    Floats decoded(kTail);
    cpu::encode(spec, tail, {}, draw, expected);
    cpu::decode(spec, expected, decoded);
    const std::size_t n_codes = quant_bytes({.format = spec.format}, kTail);
    const std::size_t n_steps = expected.size() - n_codes;
    const std::size_t all = quant_bytes(spec, kN);
    const std::size_t all_steps = all - quant_bytes({.format = spec.format}, kN);
    Bytes got = payload.get(all_steps - n_steps, n_steps);
    const Bytes codes = payload.get(all - n_codes, n_codes);
    got.insert(got.end(), codes.begin(), codes.end());
    CHECK(got == expected);
    CHECK(same(x.get(kN - kTail, kTail), decoded));
    CHECK(same(x.get((kN - kTail) / 2, 4096), Floats(4096, 0.0f)) || spec.format == Format::Int2);
  }
}

}  // namespace fedcomm
#endif
