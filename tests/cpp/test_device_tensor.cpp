// Tensors in device memory: conversions, sums and divisions have the bits of the CPU's. Empty
// without CUDA.
#ifdef FEDCOMM_HAS_CUDA
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/device_tensor.h"
#include "codec_cases.h"
#include "coding_device.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};

/// Any bit patterns: NaNs, infinities and subnormals of all kinds.
Floats random_patterns(std::size_t n, Random& random) {
  Floats values(n);
  for (float& value : values) {
    const auto bits = static_cast<std::uint32_t>(random());
    // Every other one near what half precision holds, some halfway between two of those.
    const std::uint32_t near_half = (bits & 0x8fffffffu) | 0x30000000u;
    value = bits_float(bits % 4 == 0   ? bits
                       : bits % 4 == 1 ? (near_half & ~0xfffu)
                       : bits % 4 == 2 ? near_half
                                       : (bits & 0xffff8000u));
  }
  return values;
}

/// A tensor of n elements at an odd address, and the same on the device.
struct Pair {
  std::vector<std::uint16_t> host;
  Guarded<std::uint16_t> device;
  std::size_t n;
  DType dtype;

  Pair(DType dtype_, std::size_t n_, std::size_t offset, Random& random)
      : host(n_ * size_of(dtype_) / 2),
        device(host.size(), offset * size_of(dtype_) / 2),
        n(n_),
        dtype(dtype_) {
    for (auto& each : host)
      each = static_cast<std::uint16_t>(random());
    device.put(host);
  }
  TensorView there() const { return {device.span().data(), n, dtype}; }
  TensorView here() { return {host.data(), n, dtype}; }
};

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

std::string text_of(const Pair& pair, std::size_t begin, std::size_t n) {
  return "dtype " + std::to_string(static_cast<int>(pair.dtype)) + " " + std::to_string(begin) +
         " + " + std::to_string(n) + " of " + std::to_string(pair.n);
}

}  // namespace

TEST(device_tensors_load_every_half) {
  need_device();
  const Stream stream;
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i] = static_cast<std::uint16_t>(i);
  const Guarded<std::uint16_t> there(all, 0);
  for (const DType dtype : {DType::f16, DType::bf16}) {
    Floats expected(all.size());
    load_floats({all.data(), all.size(), dtype}, 0, expected);
    const Guarded<float> out(all.size());
    cuda::load_floats({there.span().data(), all.size(), dtype}, 0, out.span(), stream.get());
    stream.wait();
    CHECK(same_bits(out.get(), expected));
  }
}

TEST(device_tensors_have_the_bits_of_the_cpu) {
  need_device();
  const Stream stream;
  for (std::uint64_t seed = 0; seed < testing::cases_of(400); ++seed) {
    Random random(seed);
    const std::size_t total = random_n(random);
    Pair pair(kDTypes[seed % 3], total, random() % 4, random);
    const std::size_t begin = random() % (total + 1), n = random() % (total - begin + 1);
    const std::string text = text_of(pair, begin, n);

    Floats loaded(n);
    load_floats(pair.here(), begin, loaded);
    const Guarded<float> out(n, random() % 4);
    cuda::load_floats(pair.there(), begin, out.span(), stream.get());
    stream.wait();
    CHECK_CASE(same_bits(out.get(), loaded) && out.intact(), text);

    Floats sum = random_patterns(n, random);
    Guarded<float> sum_there(sum, random() % 4);
    const float weight = random() % 4 == 0 ? 1.0f : 0.3f, divisor = random() % 4 == 0 ? 3.0f : 0.7f;
    const bool start = random() % 3 == 0;
    for (std::size_t i = 0; i < n; ++i)
      sum[i] = start ? weight * loaded[i] : sum[i] + weight * loaded[i];
    cuda::accumulate(pair.there(), begin, weight, sum_there.span(),
                     start ? cuda::Sum::start : cuda::Sum::go_on, stream.get());
    stream.wait();
    CHECK_CASE(same_floats(sum_there.get(), sum), text);
    for (float& each : sum)
      each /= divisor;
    cuda::divide(sum_there.span(), divisor, stream.get());
    stream.wait();
    CHECK_CASE(same_floats(sum_there.get(), sum) && sum_there.intact(), text);

    Floats values = random_patterns(n, random);
    const float by = random() % 2 == 0 ? 1.0f : divisor;
    if (by != 1.0f) {  // a GPU does not keep the bits of a NaN that it computes with
      constexpr float kInfinity = std::numeric_limits<float>::infinity();
      std::ranges::replace_if(values, [](float x) { return std::isnan(x); }, kInfinity);
    }
    sum_there.put(values);
    Floats quotients = values;
    for (float& each : quotients)
      each = by == 1.0f ? each : each / by;
    const std::size_t bad = first_beyond(quotients, overflow_bits(pair.dtype));
    const std::uint64_t limit = random() % 3 == 0 ? begin + n / 2 : ~std::uint64_t{0};
    const OnDevice<std::uint64_t> lowest(limit);
    const bool look = random() % 4 != 0;
    store_floats(quotients, pair.here(), begin);
    cuda::store_floats(sum_there.span(), by, pair.there(), begin, look ? lowest.data() : nullptr,
                       stream.get());
    stream.wait();
    CHECK_CASE(pair.device.get() == pair.host && pair.device.intact(), text);
    const std::uint64_t expected = bad < n ? std::min<std::uint64_t>(limit, begin + bad) : limit;
    CHECK_CASE(lowest.get() == (look ? expected : limit), text);

    const OnDevice<std::uint64_t> first(~std::uint64_t{0});
    cuda::first_beyond(sum_there.span(), 0x7f800000u, first.data(), stream.get());
    cuda::fill_zero(out.span(), stream.get());
    stream.wait();
    const std::size_t infinite = first_beyond(values, 0x7f800000u);
    CHECK_CASE(first.get() == (infinite < n ? infinite : ~std::uint64_t{0}), text);
    CHECK_CASE(same_bits(out.get(), Floats(n, 0.0f)) && out.intact(), text);
  }
}

#endif  // FEDCOMM_HAS_CUDA
