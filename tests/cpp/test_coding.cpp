// Index coding against the reference: the same bytes, on every instruction set of this machine.
// Hostile bytes are in test_coding_hostile.cpp; speed is bench/'s business.
#include "coding/shape.h"
#include "coding_reference.h"

using namespace fedcomm;
using namespace fedcomm::testing;

// --- rice ----------------------------------------------------------------------------------------

TEST(rice_layout_is_fixed) {
  // n = 100, k = 3: shift 4. Gaps 5, 44, 48: low bits 5, 12, 0; quotients 0, 2, 3.
  const Indices indices = {5, 50, 99};
  CHECK_EQUAL(rice_shift(100, 3), 4u);
  on_every_isa([&] { CHECK_EQUAL(shown(rice(indices, 100)), "c50089"); });
  // Shift 0: the bitmap.
  CHECK_EQUAL(shown(rice({0, 2, 3, 8}, 9)), "0d01");
}

TEST(rice_equals_reference_for_small_sets) {
  Random random(1);
  for (std::size_t k = 0; k <= 66; ++k) {
    for (const std::uint64_t n : {k, k + 1, k + 2, 2 * k + 1, 3 * k + 5, 10 * k + 7, 100 * k + 1}) {
      check_rice(random_set_of(random, n, k), n);
      Indices packed_first(k), packed_last(k), ends(k);
      std::iota(packed_first.begin(), packed_first.end(), 0u);
      std::iota(packed_last.begin(), packed_last.end(), static_cast<std::uint32_t>(n - k));
      ends = packed_first;
      if (k > 0) ends.back() = static_cast<std::uint32_t>(n - 1);
      check_rice(packed_first, n);
      check_rice(packed_last, n);
      check_rice(ends, n);
      // All zero bits that a set can have: the bound is reached.
      CHECK_EQUAL(rice(ends, n).size(), rice_max_bytes(n, k));
    }
  }
}

TEST(rice_equals_reference_at_every_density) {
  Random random(2);
  for (const std::uint64_t n : {1009u, 65536u, 100003u}) {
    for (const double density : {1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.38, 0.4, 0.5, 0.9, 0.999}) {
      check_rice(random_set(random, n, density), n);
    }
    for (const std::size_t run : {1u, 2u, 7u, 8u, 9u, 40u, 1500u}) {
      for (const std::uint64_t distance : {3u, 60u, 1000u, 20000u})
        check_rice(clusters(random, n, run, distance), n);
    }
    Indices all(n);
    std::iota(all.begin(), all.end(), 0u);
    check_rice(all, n);
    for (const std::size_t missing : {std::size_t{0}, std::size_t{500}, std::size_t{n - 1}}) {
      Indices but_one = all;
      but_one.erase(but_one.begin() + static_cast<std::ptrdiff_t>(missing));
      check_rice(but_one, n);
    }
  }
}

TEST(rice_reaches_the_end_of_32_bits) {
  Random random(3);
  const std::uint64_t n = kMaxIndexRange;
  const auto last = static_cast<std::uint32_t>(n - 1);
  for (const Indices& indices : {Indices{0}, Indices{last}, Indices{0, last},
                                 Indices{last - 2, last - 1, last}, Indices{1u << 31, last}})
    check_rice(indices, n);
  for (const double density : {1e-8, 1e-7, 1e-6, 1e-5, 1e-4})  // shifts 26 to 12
    check_rice(random_set(random, n, density), n);
}

TEST(rice_shift_is_best) {
  CHECK_EQUAL(rice_shift(0, 0), 0u);
  CHECK_EQUAL(rice_shift(1, 1), 0u);
  CHECK_EQUAL(rice_shift(kMaxIndexRange, 1), 31u);
  CHECK_EQUAL(rice_shift(kMaxIndexRange, kMaxIndexRange), 0u);
  CHECK_EQUAL(rice_shift(1u << 26, 671089), 6u);
  CHECK_EQUAL(rice_shift(1u << 26, 67109), 9u);
  for (const std::uint64_t n : {std::uint64_t{1000003}, std::uint64_t{1} << 26, kMaxIndexRange}) {
    for (std::uint64_t k = 1; k < n; k += 1 + k / 7) {
      const double q = 1 - static_cast<double>(k) / static_cast<double>(n);
      // What the decoder's arithmetic relies on.
      const unsigned shift = rice_shift(n, static_cast<std::size_t>(k));
      CHECK(shift == 0 || static_cast<double>(k << shift) < 0.97 * static_cast<double>(n));
      const auto expected_bits = [&](unsigned l) {
        return l + 1 / (1 - std::pow(q, std::exp2(static_cast<double>(l))));
      };
      for (unsigned other = 0; other < 32; ++other)
        CHECK(expected_bits(shift) <= expected_bits(other) * (1 + 1e-6));
    }
  }
}

TEST(rice_is_within_4_percent_of_entropy) {
  Random random(4);
  for (const std::uint64_t n : {std::uint64_t{1} << 18, std::uint64_t{1} << 22}) {
    for (const double percent : {0.05, 0.1, 0.3, 0.5, 1., 2., 3., 5., 7., 10.}) {
      const Indices indices = random_set(random, n, percent / 100);
      const double p = static_cast<double>(indices.size()) / static_cast<double>(n);
      const double entropy = -p * std::log2(p) - (1 - p) * std::log2(1 - p);
      const double bound = entropy * static_cast<double>(n) / 8;
      CHECK(static_cast<double>(rice(indices, n).size()) < 1.04 * bound + 2);
    }
  }
}

TEST(rice_encoder_refuses_what_is_no_set) {
  on_every_isa([] {
    Bytes out(1 << 16);
    Indices good(3000);
    for (std::uint32_t i = 0; i < 3000; ++i)
      good[i] = 7 * i;
    rice_encode(good, 30000, out);
    for (const std::size_t at : {1u, 2u, 9u, 1023u, 1024u, 1025u, 2047u, 2048u, 2999u}) {
      for (const std::uint32_t wrong : {0u, good[at - 1], 0x80000000u, 0xffffffffu}) {
        Indices bad = good;
        bad[at] = wrong;
        CHECK_THROWS(ErrorKind::invalid_argument, rice_encode(bad, 30000, out));
      }
    }
    CHECK_THROWS(ErrorKind::invalid_argument, rice_encode(good, good.back(), out));
    CHECK_THROWS(ErrorKind::invalid_argument, rice_encode(Indices{1, 2}, 2, out));
    CHECK_THROWS(ErrorKind::invalid_argument, rice_encode(Indices{1, 2, 3}, 2, out));
    CHECK_THROWS(ErrorKind::invalid_argument, rice_max_bytes(kMaxIndexRange + 1, 1));
    Bytes small(rice_max_bytes(30000, 3000) - 1);
    CHECK_THROWS(ErrorKind::invalid_argument, rice_encode(good, 30000, small));
  });
}

// --- packed --------------------------------------------------------------------------------------

TEST(packed_layout_is_fixed) {
  // Width 3: 1, 4 | 0, 3 | 1 (a chunk of one element left is index 0 only).
  const Chunking c{11, 5, 2};
  CHECK_EQUAL(packed_count(c), std::size_t{5});
  const Indices indices = {1, 4, 5, 8, 10};
  on_every_isa([&] {
    Bytes out(packed_bytes(c));
    packed_encode(indices, c, out);
    CHECK_EQUAL(shown(out), "2106");
  });
}

TEST(packed_equals_reference) {
  Random random(5);
  for (const Chunking& c : chunkings()) {
    for (int repeat = 0; repeat < 3; ++repeat)
      check_packed(random_chunked(random, c), c);
  }
  for (std::uint32_t k = 1; k < 40; ++k)
    check_packed(random_chunked(random, {60001, 300, k}), {60001, 300, k});
}

TEST(packed_encoder_refuses_what_is_no_set) {
  Random random(6);
  on_every_isa([&] {
    const Chunking c{70001, 1000, 10};
    const Indices good = random_chunked(random, c);
    Bytes out(packed_bytes(c));
    for (const std::size_t at : {std::size_t{1}, std::size_t{500}, good.size() - 1}) {
      for (const std::uint32_t wrong : {good[at - 1], good[at] + 1000, good[at] - 1000, 70001u}) {
        Indices bad = good;
        bad[at] = wrong;
        CHECK_THROWS(ErrorKind::invalid_argument, packed_encode(bad, c, out));
      }
    }
    CHECK_THROWS(ErrorKind::invalid_argument, packed_encode(Indices{1, 2}, c, out));
    Bytes small(out.size() - 1);
    CHECK_THROWS(ErrorKind::invalid_argument, packed_encode(good, c, small));
  });
  CHECK_THROWS(ErrorKind::invalid_argument, packed_bytes({100, 0, 1}));
  CHECK_THROWS(ErrorKind::invalid_argument, packed_bytes({100, 65537, 1}));
  CHECK_THROWS(ErrorKind::invalid_argument, packed_bytes({kMaxIndexRange + 1, 256, 1}));
}

TEST(packed_reaches_the_end_of_32_bits) {
  Random random(7);
  for (const std::uint32_t chunk : {65536u, 65535u, 40000u}) {
    const Chunking c{kMaxIndexRange, chunk, 1};
    Indices indices;
    for (std::uint64_t begin = 0; begin < c.n; begin += chunk) {
      const std::uint64_t length = std::min<std::uint64_t>(chunk, c.n - begin);
      indices.push_back(static_cast<std::uint32_t>(begin + random() % length));
    }
    indices.back() = 0xffffffffu;
    check_packed(indices, c);
  }
}

// What a workspace on a GPU is sized by.
TEST(rice_quotients_take_at_most_4_bits_an_index) {
  const auto check = [](std::uint64_t n, std::uint64_t k) {
    CHECK(max_unary_bits(n, k, shift_of(n, k)) <= 4 * k);
  };
  for (std::uint64_t n = 1; n < 1500; ++n)
    for (std::uint64_t k = 1; k <= n; ++k)
      check(n, k);
  Random random(8);
  for (int i = 0; i < 200'000; ++i) {
    const std::uint64_t n =
        1 + (kMaxIndexRange - 1) / (1 + random() % 1000) / (1 + random() % 1000);
    check(n, 1 + (random() % n >> random() % 32));
    check(n, 1);
  }
  check(kMaxIndexRange, 1);
  check(3'399'617'430, 1);
}
