// Selection on a GPU against the CPU: the same entries, residuals and verdicts in random cases and
// awkward ones, and nothing written beside them. What is right is for test_topk.cpp. Empty without
// CUDA.
#ifdef FEDCOMM_HAS_CUDA
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/dtype.h"
#include "coding_device.h"
#include "topk/topk.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Residual { none, apart, in_place };

/// What to select from. No element has a NaN in both x and before: which one the sum takes after is
/// open.
struct Data {
  Floats x, before;
  Residual residual = Residual::none;
  float beta = 1.0f;
  std::string name;
};

/// A selection, from the whole tensor where chunk is 0.
struct Selection {
  std::size_t chunk, k;

  std::size_t count(std::size_t n) const { return chunk == 0 ? k : chunk_top_k_count(n, chunk, k); }
};

struct Rig {
  Stream stream;
  cuda::TopKWorkspace workspace;
  TopKWorkspace cpu_workspace;
};

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct Answer {
  Indices indices;
  Floats values, after;
  bool finite;
};

Answer on_cpu(const Data& data, const Selection& what, Rig& rig) {
  const std::size_t n_out = what.count(data.x.size());
  Answer answer{Indices(n_out), Floats(n_out), Floats(data.before.size()), true};
  const TopKInput input{data.x, data.before, answer.after, data.beta};
  const TopKOutput out{answer.indices, answer.values};
  answer.finite = what.chunk == 0
                      ? cpu::top_k(input, out, rig.cpu_workspace)
                      : cpu::chunk_top_k(input, what.chunk, what.k, out, rig.cpu_workspace);
  return answer;
}

void start(const TopKInput& input, const Selection& what, const TopKOutput& out,
           std::int32_t* non_finite, Rig& rig) {
  if (what.chunk == 0) {
    cuda::top_k(input, out, non_finite, rig.workspace, rig.stream.get());
  } else {
    cuda::chunk_top_k(input, {what.chunk, what.k}, out, non_finite, rig.stream.get());
  }
}

/// The arrays of one case on the device, between guards.
class There {
 public:
  There(const Data& data, std::size_t n_out, Random& random)
      : data_(data),
        offset_(random() % 2 == 0 ? 0 : random() % 4),
        x_(data.x, offset_),
        before_(data.before, offset_),
        after_(data.before.size(), random() % 4 == 0 ? random() % 4 : offset_),
        indices_(n_out, random() % 4),
        values_(n_out, random() % 4),
        flag_before_(static_cast<std::int32_t>(random() % 3)),
        non_finite_(flag_before_) {}

  TopKInput input() {
    return {x_.span(), before_.span(),
            data_.residual == Residual::in_place ? before_.span() : after_.span(), data_.beta};
  }
  TopKOutput out() { return {indices_.span(), values_.span()}; }
  std::int32_t* non_finite() { return non_finite_.data(); }

  void check(const Answer& expected, const std::string& text) const {
    CHECK_CASE(indices_.get() == expected.indices, text);
    CHECK_CASE(same_bits(values_.get(), expected.values), text);
    CHECK_CASE(non_finite_.get() == (expected.finite ? flag_before_ : 1), text);
    const bool in_place = data_.residual == Residual::in_place;
    CHECK_CASE(same_bits(in_place ? before_.get() : after_.get(), expected.after), text);
    CHECK_CASE(in_place || same_bits(before_.get(), data_.before), text);
    CHECK_CASE(same_bits(x_.get(), data_.x), text);
    CHECK_CASE(x_.intact(data_.x.size()) && before_.intact() && after_.intact(), text);
    CHECK_CASE(indices_.intact() && values_.intact(), text);
  }

 private:
  const Data& data_;
  std::size_t offset_;
  Guarded<float> x_, before_, after_;
  Guarded<std::uint32_t> indices_;
  Guarded<float> values_;
  std::int32_t flag_before_;
  OnDevice<std::int32_t> non_finite_;
};

std::string text_of(const Data& data, const Selection& what) {
  constexpr const char* kResiduals[] = {"no residual", "apart", "in place"};
  return data.name + ", " + kResiduals[static_cast<int>(data.residual)] + ", " +
         size_text(data.x.size(), what.k) + " by " + std::to_string(what.chunk);
}

void compare(const Data& data, const Selection& what, Random& random, Rig& rig) {
  There there(data, what.count(data.x.size()), random);
  start(there.input(), what, there.out(), there.non_finite(), rig);
  rig.stream.wait();
  there.check(on_cpu(data, what, rig), text_of(data, what));
}

float uniform(Random& random) {
  return static_cast<float>(random() >> 40) * 0x1p-24f;
}

/// Nearly normal, and quick.
float normal(Random& random) {
  return uniform(random) + uniform(random) + uniform(random) + uniform(random) - 2.0f;
}

constexpr const char* kKinds[] = {
    "normal",     "constant",          "zero",          "sorted",     "reversed",
    "cauchy",     "one huge in zeros", "mostly zero",   "few values", "denormal",
    "any finite", "any bits",          "unlike scales", "a cluster",  "some not finite",
    "all NaN"};
constexpr std::size_t kNKinds = std::size(kKinds);

Data make(std::size_t kind, std::size_t n, Random& random) {
  Data data;
  data.name = kKinds[kind];
  const auto fill = [&](const auto& value_at) {
    data.x.resize(n);
    for (std::size_t i = 0; i < n; ++i)
      data.x[i] = value_at(i);
  };
  const auto bits = [&] { return static_cast<std::uint32_t>(random() >> 32); };
  switch (kind) {
    case 0: fill([&](std::size_t) { return normal(random); }); break;
    case 1: fill([&](std::size_t) { return -0.25f; }); break;
    case 2: fill([&](std::size_t) { return random() % 2 == 0 ? 0.0f : -0.0f; }); break;
    case 3: fill([&](std::size_t i) { return static_cast<float>(i); }); break;
    case 4: fill([&](std::size_t i) { return -static_cast<float>(n - i); }); break;
    case 5: fill([&](std::size_t) { return std::tan(3.14159f * (uniform(random) - 0.5f)); }); break;
    case 6: fill([&](std::size_t i) { return i == n / 3 ? -1e30f : 0.0f; }); break;
    case 7: fill([&](std::size_t) { return random() % 500 == 0 ? normal(random) : 0.0f; }); break;
    case 8: fill([&](std::size_t) { return static_cast<float>(random() % 7) - 3.0f; }); break;
    case 9: fill([&](std::size_t) { return bits_float(bits() & 0x807fffffu); }); break;
    case 10:
      fill([&](std::size_t) {
        const std::uint32_t any = bits();
        return bits_float((any & 0x7f800000u) == 0x7f800000u ? any & 0x807fffffu : any);
      });
      break;
    case 11: fill([&](std::size_t) { return bits_float(bits()); }); break;
    case 12:
      fill([&](std::size_t i) {
        return std::ldexp(normal(random), static_cast<int>(i / 700 * 7919 % 13));
      });
      break;
    case 13:
      fill([&](std::size_t i) {
        return (i > n / 2 && i < n / 2 + n / 40 ? 100.0f : 0.0f) + normal(random);
      });
      break;
    case 14:
      fill([&](std::size_t i) {
        if (i % 9973 == 5) return bits_float(0x7f800001u + static_cast<std::uint32_t>(i));
        return i % 9907 == 7 ? -kInfinity : normal(random);
      });
      break;
    default: fill([&](std::size_t) { return bits_float(0xffc00000u | (bits() & 0xffu)); }); break;
  }
  return data;
}

void add_residual(Data& data, Random& random) {
  data.residual = random() % 2 == 0 ? Residual::apart : Residual::in_place;
  data.beta = random() % 4 == 0 ? 1.0f : 0.37f + uniform(random);
  data.before.resize(data.x.size());
  const bool zero = random() % 3 == 0;
  for (std::size_t i = 0; i < data.x.size(); ++i) {
    data.before[i] = zero ? 0.0f : normal(random);
    // What a CPU makes of NaN and infinity in the residual, too.
    const bool plain = data.x[i] == data.x[i];
    if (data.name == kKinds[14] && plain && i % 1009 == 3)
      data.before[i] = i % 2 == 0 ? kInfinity : bits_float(0xff800100u + (i & 0xffu));
  }
}

std::size_t random_size(Random& random) {
  switch (random() % 8) {
    case 0: return random() % 40;
    case 1: return 4096 * (1 + random() % 5) + random() % 3 - 1;
    case 2: return 255 + random() % 3;
    case 3: return (1u << 18) - 2 + random() % 5;
    case 4: return 262'000 + random() % 200'000;
    default: return random() % 30'000;
  }
}

std::size_t random_k(Random& random, std::size_t n) {
  const std::size_t ks[] = {0, 1, n, n - 1, n / 1000, n / 100, n / 10, n / 8 + 1, n / 2};
  if (n == 0) return 0;
  if (random() % 3 == 0) return random() % (n + 1);
  return std::min(n, ks[random() % std::size(ks)]);
}

}  // namespace

TEST(cuda_topk_selects_what_the_cpu_selects) {
  need_device();
  Rig rig;
  Random random(21);
  for (std::uint64_t i = 0; i < testing::cases_of(1000); ++i) {
    const std::size_t n = random_size(random);
    Data data = make(static_cast<std::size_t>(i) % kNKinds, n, random);
    if (random() % 4 != 0) add_residual(data, random);
    compare(data, {0, random_k(random, n)}, random, rig);
  }
}

TEST(cuda_topk_of_millions) {
  testing::need_time();
  need_device();
  Rig rig;
  Random random(22);
  for (std::size_t kind = 0; kind < kNKinds; ++kind) {
    const std::size_t n = 2'000'000 + random() % 3'000'000;
    Data data = make(kind, n, random);
    for (const std::size_t k : {std::size_t{3}, n / 1000, n / 100, n / 9}) {
      data.before.clear();
      data.residual = Residual::none;
      if (k % 2 == 0) add_residual(data, random);
      compare(data, {0, k}, random, rig);
    }
  }
}

// What the sample sees is large and rare, or small; all else is not.
TEST(cuda_topk_of_a_misled_sample) {
  need_device();
  Rig rig;
  Random random(23);
  constexpr std::uint64_t n = 1u << 20, kSample = 1u << 14, kPart = n / kSample;
  for (const float where_seen : {0.0f, 1e-9f, 1e9f}) {
    Data data = make(0, n, random);
    data.name = "misled";
    for (std::uint64_t i = 0; i < kSample; ++i) {
      const std::uint64_t hash = (i + 1) * 0x9e3779b97f4a7c15u >> 32;
      data.x[i * kPart + (hash * kPart >> 32)] *= where_seen;
    }
    for (const std::size_t k : {std::size_t{1}, n / 1000, n / 100, n / 8}) {
      compare(data, {0, k}, random, rig);
      add_residual(data, random);
      compare(data, {0, k}, random, rig);
      data.residual = Residual::none;
      data.before.clear();
    }
  }
}

TEST(cuda_chunk_topk_selects_what_the_cpu_selects) {
  need_device();
  Rig rig;
  Random random(24);
  constexpr std::size_t kChunks[] = {256, 300, 1000, 1024, 1025, 4096, 4097, 16384, 65536};
  for (std::uint64_t i = 0; i < testing::cases_of(1000); ++i) {
    const std::size_t n = random_size(random);
    Data data = make(static_cast<std::size_t>(i) % kNKinds, n, random);
    if (random() % 4 != 0) add_residual(data, random);
    const std::size_t chunk =
        random() % 3 == 0 ? 256 + random() % 65281 : kChunks[random() % std::size(kChunks)];
    const std::size_t ks[] = {0, 1, 16, 64, 200, chunk / 4, chunk - 1, chunk, chunk + 7};
    compare(data, {chunk, ks[random() % std::size(ks)]}, random, rig);
  }
}

// The same launches for data of which one needs the further passes and the other does not.
TEST(cuda_topk_in_a_graph) {
  need_device();
  Rig rig;
  Random random(25);
  for (const Selection& what : {Selection{0, 5000}, Selection{0, 0}, Selection{4096, 64}}) {
    constexpr std::size_t n = 1'000'003;
    Data data = make(0, n, random);
    add_residual(data, random);
    data.residual = Residual::apart;
    There there(data, what.count(n), random);
    const TopKInput input = there.input();
    if (what.chunk == 0) rig.workspace.reserve(n, what.k);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    check_cuda(cudaStreamBeginCapture(rig.stream.get(), cudaStreamCaptureModeThreadLocal));
    start(input, what, there.out(), there.non_finite(), rig);
    check_cuda(cudaStreamEndCapture(rig.stream.get(), &graph));
    check_cuda(cudaGraphInstantiate(&replay, graph, 0));
    for (const std::size_t kind : {0, 1, 6, 0}) {
      data.x = make(kind, n, random).x;
      check_cuda(cudaMemcpy(const_cast<float*>(input.x.data()), data.x.data(), n * sizeof(float),
                            cudaMemcpyHostToDevice));
      check_cuda(cudaStreamSynchronize(nullptr));
      check_cuda(cudaGraphLaunch(replay, rig.stream.get()));
      rig.stream.wait();
      there.check(on_cpu(data, what, rig), text_of(data, what) + kKinds[kind]);
    }
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
  }
}

TEST(cuda_topk_of_2_to_the_28) {
  testing::need_time();
  need_device();
  Rig rig;
  Random random(26);
  constexpr std::size_t n = std::size_t{1} << 28;
  if (free_device_bytes() < 8 * n + (std::size_t{1} << 30)) throw Skipped("too little memory");
  Data data;
  data.name = "2^28";
  data.x.resize(n);
  data.before.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t bits = random();
    data.x[i] = std::ldexp(static_cast<float>(static_cast<std::int32_t>(bits)),
                           -static_cast<int>(bits >> 59));
    data.before[i] = static_cast<float>(static_cast<std::int32_t>(bits >> 32));
  }
  data.residual = Residual::in_place;
  data.beta = 0.9f;
  compare(data, {0, n / 100}, random, rig);
  compare(data, {4096, 64}, random, rig);
}

TEST(cuda_topk_arguments) {
  need_device();
  Rig rig;
  const OnDevice<std::int32_t> flag(0);
  const Guarded<float> x(1000), values(1001), half(500);
  const Guarded<std::uint32_t> indices(1001);
  const auto kind = ErrorKind::invalid_argument;
  const auto run = [&](const TopKInput& input, std::size_t n_indices, std::size_t n_values,
                       std::size_t chunk) {
    start(input, {chunk, 1}, {indices.span().first(n_indices), values.span().first(n_values)},
          flag.data(), rig);
  };
  const TopKInput plain{.x = x.span(), .before = {}, .after = {}};
  CHECK_THROWS(kind, run(plain, 1001, 1001, 0));
  CHECK_THROWS(kind, run(plain, 10, 11, 0));
  CHECK_THROWS(kind, run({.x = x.span(), .before = half.span(), .after = half.span()}, 1, 1, 0));
  CHECK_THROWS(kind, run({.x = x.span(), .before = x.span(), .after = {}}, 1, 1, 0));
  CHECK_THROWS(kind, run(plain, 4, 4, 255));
  CHECK_THROWS(kind, run(plain, 1, 1, 65537));
  CHECK_THROWS(kind, run(plain, 3, 3, 500));
  rig.stream.wait();
  CHECK(values.intact(0) && indices.intact(0));
}

#endif  // FEDCOMM_HAS_CUDA
