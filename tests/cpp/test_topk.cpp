// The selections against a stable sort, on every instruction set and several numbers of threads,
// with inputs made to mislead the sample.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/thread_pool.h"
#include "check.h"
#include "topk/topk.h"

using namespace fedcomm;

namespace {

using Floats = std::vector<float>;
using Indices = std::vector<std::uint32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t magnitude(float value) {
  return float_bits(value) & 0x7fffffffu;
}

bool same_bits(const Floats& a, const Floats& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return float_bits(x) == float_bits(y); });
}

/// The k largest of [begin, end), ascending.
void append_truth(const Floats& sum, std::size_t begin, std::size_t end, std::size_t k,
                  Indices& out) {
  Indices order(end - begin);
  std::iota(order.begin(), order.end(), static_cast<std::uint32_t>(begin));
  const auto before = [&](std::uint32_t a, std::uint32_t b) {
    return magnitude(sum[a]) > magnitude(sum[b]);
  };
  std::stable_sort(order.begin(), order.end(), before);
  order.resize(std::min(k, order.size()));
  std::sort(order.begin(), order.end());
  out.insert(out.end(), order.begin(), order.end());
}

/// Everything the tests vary for one input and its truth.
template <typename Body>
void everywhere(const Body& body) {
  for (const Isa isa : available_isas()) {
    for (const std::size_t n_threads : {1, 2, 3}) {
      use_isa(name_of(isa));
      use_threads(n_threads);
      body(std::string(name_of(isa)) + ", " + std::to_string(n_threads) + " threads");
    }
  }
  use_isa(name_of(available_isas().back()));
}

enum class Residual { none, apart, in_place };

struct Case {
  std::string name;
  Floats x;
  Floats before;  // empty: no feedback
  float beta = 1.0f;
};

Floats sum_of(const Case& c) {
  Floats sum = c.x;
  if (c.before.empty()) return sum;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    const volatile float product = c.beta * c.before[i];  // rounded on its own
    sum[i] = c.x[i] + product;
  }
  return sum;
}

/// Calls select(input, out), which returns whether all is finite, and compares.
template <typename Select>
void compare(const Case& c, const Floats& sum, const Indices& truth, Residual residual,
             const std::string& where, const Select& select) {
  Floats before = c.before, apart(c.before.size(), -1.0f);
  Floats& after = residual == Residual::apart ? apart : before;
  TopKInput input{.x = c.x, .before = {}, .after = {}, .beta = c.beta};
  if (residual != Residual::none) {
    input.before = before;
    input.after = after;
  }
  Indices indices(truth.size());
  Floats values(truth.size()), expected;
  const bool finite = select(input, TopKOutput{indices, values});
  for (const std::uint32_t i : truth)
    expected.push_back(sum[i]);
  const bool truly_finite = std::all_of(sum.begin(), sum.end(),
                                        [](float value) { return magnitude(value) < 0x7f800000u; });
  const std::string what = c.name + ", " + where + ", k = " + std::to_string(truth.size());
  if (indices != truth) testing::report(__FILE__, __LINE__, "indices: " + what);
  if (!same_bits(values, expected)) testing::report(__FILE__, __LINE__, "values: " + what);
  if (finite != truly_finite) testing::report(__FILE__, __LINE__, "finite: " + what);
  if (residual == Residual::none) return;
  if (!same_bits(after, sum)) testing::report(__FILE__, __LINE__, "after: " + what);
}

/// With the residual apart and in place where the case has one, with the workspace of all tests
/// before (of other sizes).
template <typename Select>
void check_everywhere(const Case& c, const Indices& truth, const Select& select) {
  const Floats sum = sum_of(c);
  static TopKWorkspace workspace;
  everywhere([&](const std::string& where) {
    const auto run = [&](const TopKInput& input, const TopKOutput& out) {
      return select(input, out, workspace);
    };
    if (c.before.empty()) {
      compare(c, sum, truth, Residual::none, where, run);
    } else {
      compare(c, sum, truth, Residual::apart, where + ", apart", run);
      compare(c, sum, truth, Residual::in_place, where + ", in place", run);
    }
  });
}

void check_top_k(const Case& c, std::vector<std::size_t> ks) {
  const Floats sum = sum_of(c);
  for (const std::size_t k : ks) {
    if (k > sum.size()) continue;
    Indices truth;
    append_truth(sum, 0, sum.size(), k, truth);
    check_everywhere(c, truth, [](const auto& input, const auto& out, TopKWorkspace& workspace) {
      return cpu::top_k(input, out, workspace);
    });
  }
}

void check_chunks(const Case& c, std::size_t chunk, std::size_t k) {
  const Floats sum = sum_of(c);
  Indices truth;
  for (std::size_t begin = 0; begin < sum.size(); begin += chunk)
    append_truth(sum, begin, std::min(sum.size(), begin + chunk), k, truth);
  CHECK_EQUAL(truth.size(), chunk_top_k_count(sum.size(), chunk, k));
  check_everywhere(c, truth, [&](const auto& input, const auto& out, TopKWorkspace& workspace) {
    return cpu::chunk_top_k(input, chunk, k, out, workspace);
  });
}

Floats gaussian(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Floats x(n);
  for (float& each : x)
    each = normal(random);
  return x;
}

Case with_residual(Case c, float beta) {
  c.before = gaussian(c.x.size(), 77);
  c.beta = beta;
  c.name += ", with residual";
  return c;
}

/// Inputs of every awkward kind; sizes above 65536 are sampled.
std::vector<Case> awkward(std::size_t n) {
  std::vector<Case> cases;
  std::mt19937 random(3);
  const auto make = [&](const char* name, const auto& value_at) {
    Floats x(n);
    for (std::size_t i = 0; i < n; ++i)
      x[i] = value_at(i);
    cases.push_back({std::string(name) + " " + std::to_string(n), std::move(x), {}, 1.0f});
  };
  const auto uniform = [&] { return static_cast<float>(random() >> 8) * 0x1p-24f; };
  const auto ramp = [](std::size_t i) { return static_cast<float>(i); };
  const Floats normal = gaussian(n, 5);
  make("gaussian", [&](std::size_t i) { return normal[i]; });
  make("constant", [](std::size_t) { return -0.25f; });
  make("zero", [](std::size_t i) { return i % 2 == 0 ? 0.0f : -0.0f; });
  make("sorted", [&](std::size_t i) { return ramp(i); });
  make("reversed", [&](std::size_t i) { return -ramp(n - i); });
  make("cauchy", [&](std::size_t) { return std::tan(3.14159f * (uniform() - 0.5f)); });
  make("one huge", [&](std::size_t i) { return i == n / 3 ? -1e30f : normal[i]; });
  make("one huge in zeros", [&](std::size_t i) { return i == n / 3 ? -1e30f : 0.0f; });
  make("mostly zero", [&](std::size_t i) { return random() % 50 == 0 ? normal[i] : 0.0f; });
  make("zero then not", [&](std::size_t i) { return i > n - n / 20 ? normal[i] : 0.0f; });
  make("few values", [&](std::size_t) { return static_cast<float>(random() % 7) - 3.0f; });
  make("denormal", [&](std::size_t) { return bits_float(random() & 0x807fffffu); });
  make("any bits but NaN", [&](std::size_t) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random());
    return bits_float((bits & 0x7f800000u) == 0x7f800000u ? bits & 0x807fffffu : bits);
  });
  make("rows of unlike scale", [&](std::size_t i) {
    return normal[i] * std::exp2(static_cast<float>(i / 700 * 7919 % 13));
  });
  make("a cluster", [&](std::size_t i) {
    return i > n / 2 && i < n / 2 + n / 40 ? 100.0f + normal[i] : normal[i];
  });
  make("NaN and infinity", [&](std::size_t i) {
    return i % 997 == 5 ? kNan : i % 991 == 7 ? -kInfinity : normal[i];
  });
  make("all NaN", [](std::size_t) { return kNan; });
  return cases;
}

}  // namespace

TEST(topk_small) {
  for (const std::size_t n : {0, 1, 2, 3, 31, 63, 64, 65, 127, 1000}) {
    for (const Case& c : awkward(n)) {
      check_top_k(c, {0, 1, 2, n / 3, n - 1, n});
      if (n > 0 && magnitude(c.x[0]) < 0x7f800000u)
        check_top_k(with_residual(c, 0.9f), {0, 1, n / 2, n});
    }
  }
}

TEST(topk_awkward_and_sampled) {
  constexpr std::size_t n = 150'001;
  for (const Case& c : awkward(n)) {
    check_top_k(c, {0, 1, 150, n / 20, n / 2, n - 1, n});
    Case with = c;
    with.before = Floats(n, 0.0f);
    check_top_k(with, {1, 1500, n / 2});
  }
}

// Feedback whose sum is awkward: the passes after the first must read the sum, not add again.
TEST(topk_residual_in_every_path) {
  constexpr std::size_t n = 140'000;
  for (Case& c : awkward(n)) {
    c.before = Floats(n);
    for (std::size_t i = 0; i < n; ++i) {
      c.before[i] = static_cast<float>(i % 5);
      if (magnitude(c.x[i]) < 0x4e800000u) c.x[i] -= 0.5f * c.before[i];
    }
    c.beta = 0.5f;
    check_top_k(c, {0, 1, n / 100, n / 3});
  }
}

// What the sample sees, it sees everywhere; so put large values where it looks, or only elsewhere.
TEST(topk_misled_sample) {
  constexpr std::size_t n = 1u << 17, kGroup = 16, kGroups = n / (16 * kGroup);
  std::vector<bool> seen(n, false);
  for (std::size_t group = 0; group < kGroups; ++group) {
    const std::uint64_t random = (group + 1) * 0x9e3779b97f4a7c15u >> 32;
    const std::size_t first =
        group * n / kGroups / kGroup + (random * (n / kGroups / kGroup) >> 32);
    for (std::size_t i = 0; i < kGroup; ++i)
      seen[first * kGroup + i] = true;
  }
  const Floats normal = gaussian(n, 9);
  for (const float where_seen : {1e-9f, 1e9f, 0.0f}) {
    Case c{"misled", normal, {}, 1.0f};
    for (std::size_t i = 0; i < n; ++i)
      c.x[i] *= seen[i] ? where_seen : 1.0f;
    check_top_k(c, {1, 100, n / 100, n / 16, n / 4, n / 2, n - n / 10});
    c.before = Floats(n, 0.0f);
    check_top_k(c, {1, n / 100, n / 2});
    for (std::size_t i = 0; i < n; ++i)
      c.x[i] = seen[i] ? where_seen : 0.125f;
    check_top_k(c, {1, 100, n / 100, n / 2});
  }
}

TEST(topk_random) {
  std::mt19937 random(11);
  for (int i = 0; i < 12; ++i) {
    const std::size_t n = 1 + random() % (i % 2 == 0 ? 5000 : 200'000);
    const std::size_t k = random() % (n + 1);
    const Case c{"random", gaussian(n, static_cast<unsigned>(i)), {}, 1.0f};
    check_top_k(i % 3 == 0 ? c : with_residual(c, 0.37f), {k, k / 64});
  }
}

TEST(topk_beta_is_not_fused) {
  // A fused multiply-add keeps what rounding the product loses.
  const float beta = 1.0f + 0x1p-12f;
  Case c{"not fused", Floats(200, -1.0f - 0x1p-11f), Floats(200, beta), beta};
  for (const float each : sum_of(c))
    CHECK_EQUAL(each, 0.0f);
  check_top_k(c, {200, 3});
  check_chunks(c, 256, 7);
}

TEST(topk_chunks) {
  for (const std::size_t n : {0, 1, 255, 4096, 10'000, 140'001}) {
    for (const Case& c : awkward(n)) {
      check_chunks(c, 4096, 64);
      if (n <= 10'000) {
        for (const std::size_t chunk : {256, 300, 1000, 4096, 65536}) {
          for (const std::size_t k : {std::size_t{0}, std::size_t{1}, chunk / 4, chunk - 1, chunk})
            check_chunks(c, chunk, k);
        }
      }
    }
  }
}

TEST(topk_chunks_random) {
  std::mt19937 random(12);
  for (int i = 0; i < 20; ++i) {
    const std::size_t chunk = 256 + random() % (i % 2 == 0 ? 5000 : 65281);
    const std::size_t k = random() % (i % 3 == 0 ? chunk : 300);
    const Case c{"random", gaussian(random() % 150'000, static_cast<unsigned>(i)), {}, 1.0f};
    check_chunks(i % 2 == 0 || c.x.empty() ? c : with_residual(c, 1.5f), chunk, k);
  }
}

TEST(topk_arguments) {
  TopKWorkspace workspace;
  Floats x(1000), half(500), values(1001);
  Indices indices(1001);
  const auto out = [&](std::size_t n_indices, std::size_t n_values) {
    return TopKOutput{std::span(indices).first(n_indices), std::span(values).first(n_values)};
  };
  const TopKInput plain{.x = x, .before = {}, .after = {}};
  const auto kind = ErrorKind::invalid_argument;
  CHECK_THROWS(kind, cpu::top_k(plain, out(1001, 1001), workspace));
  CHECK_THROWS(kind, cpu::top_k(plain, out(10, 11), workspace));
  CHECK_THROWS(kind, cpu::top_k({.x = x, .before = half, .after = half}, out(1, 1), workspace));
  CHECK_THROWS(kind, cpu::top_k({.x = x, .before = x, .after = {}}, out(1, 1), workspace));
  const TopKInput huge{
      .x = std::span<const float>(x.data(), std::size_t{1} << 32), .before = {}, .after = {}};
  CHECK_THROWS(kind, cpu::top_k(huge, out(1, 1), workspace));
  CHECK_THROWS(kind, cpu::chunk_top_k(plain, 255, 1, out(4, 4), workspace));
  CHECK_THROWS(kind, cpu::chunk_top_k(plain, 65537, 1, out(1, 1), workspace));
  CHECK_THROWS(kind, cpu::chunk_top_k(plain, 500, 1, out(3, 3), workspace));
  CHECK_EQUAL(chunk_top_k_count(1000, 300, 200), std::size_t{700});
  CHECK_EQUAL(chunk_top_k_count(1000, 300, 400), std::size_t{1000});
}
