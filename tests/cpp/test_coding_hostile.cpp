// Index decoders on hostile bytes: the same verdict as the reference, on every instruction set of
// this machine. Run it under the sanitizers: buffers are of exact size.
#include "coding_reference.h"

using namespace fedcomm;
using namespace fedcomm::testing;

TEST(rice_rejects_what_the_reference_rejects) {
  Random random(8);
  on_every_isa([&] {
    for (const std::size_t k : {0u, 1u, 2u, 3u, 7u, 8u, 9u, 17u, 33u, 65u, 130u}) {
      for (const std::uint64_t n :
           {std::uint64_t{k}, std::uint64_t{k + 1}, std::uint64_t{2 * k + 1},
            std::uint64_t{5 * k + 3}, std::uint64_t{200 * k + 11}}) {
        const Bytes bytes = rice(random_set_of(random, n, k), n);
        check_mutations(random, bytes, [&](const Bytes& hostile) {
          CHECK(rice_back(hostile, n, k) == reference_rice_decode(hostile, n, k));
        });
        // A set has one code only.
        std::size_t n_accepted = 0;
        check_mutations(random, bytes, [&](const Bytes& hostile) {
          const std::optional<Indices> indices = rice_back(hostile, n, k);
          if (!indices) return;
          ++n_accepted;
          CHECK(rice(*indices, n) == hostile);
        });
        CHECK(n_accepted > 0 || k < 2 || k + 1 >= n || n > 150 * k);
      }
    }
  });
}

TEST(rice_rejects_sums_that_wrap) {
  Random random(9);
  on_every_isa([&] {
    for (const std::uint64_t n : {kMaxIndexRange, kMaxIndexRange - 1, kMaxIndexRange / 2 + 1}) {
      for (const std::size_t k : {1u, 2u, 3u, 5u, 16u, 100u}) {
        Indices indices(k);
        std::iota(indices.begin(), indices.end(), 0u);
        indices.back() = static_cast<std::uint32_t>(n - 1);  // the most zero bits
        const Bytes bytes = rice(indices, n);
        check_mutations(random, bytes, [&](const Bytes& hostile) {
          CHECK(rice_back(hostile, n, k) == reference_rice_decode(hostile, n, k));
        });
        // Low bits all ones: each sum is as large as it gets.
        const std::size_t n_low = k * rice_shift(n, k);
        Bytes large = bytes;
        for (std::size_t bit = 0; bit < n_low; ++bit)
          large[bit / 8] |= std::byte{1} << (bit % 8);
        CHECK(rice_back(large, n, k) == reference_rice_decode(large, n, k));
      }
    }
  });
}

TEST(rice_rejects_damage_in_many_blocks) {
  Random random(10);
  on_every_isa([&] {
    for (const double density : {0.002, 0.1, 0.6}) {
      const std::uint64_t n = 20000;
      const Indices indices = random_set(random, n, density);
      const Bytes bytes = rice(indices, n);
      for (int repeat = 0; repeat < 200; ++repeat) {
        Bytes hostile = bytes;
        const std::size_t bit = random() % (8 * bytes.size());
        hostile[bit / 8] ^= std::byte{1} << (bit % 8);
        const std::size_t other = random() % (8 * bytes.size());
        if (repeat % 2 == 0) hostile[other / 8] ^= std::byte{1} << (other % 8);
        CHECK(rice_back(hostile, n, indices.size()) ==
              reference_rice_decode(hostile, n, indices.size()));
      }
    }
  });
}

TEST(rice_errors_say_what_was_wrong) {
  const auto message = [](const Bytes& bytes, std::uint64_t n, std::size_t k) -> std::string {
    Indices indices(k);
    try {
      rice_decode(bytes, n, indices);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Bytes good = rice({5, 50, 99}, 100);  // c5 00 89
  CHECK_EQUAL(message(good, 100, 3), "");
  const auto bytes = [](std::initializer_list<int> values) {
    Bytes out;
    for (const int value : values)
      out.push_back(static_cast<std::byte>(value));
    return out;
  };
  CHECK_EQUAL(message(bytes({0xc5, 0x00}), 100, 3),
              "[rice] 3 indices of 100: the bytes end inside the low bits");
  CHECK_EQUAL(message(bytes({0xc5, 0x10, 0x89}), 100, 3),
              "[rice] 3 indices of 100: padding behind the low bits is not zero");
  CHECK_EQUAL(message(bytes({0xc5, 0x00, 0x09, 0x00}), 100, 3),
              "[rice] 3 indices of 100: zero bytes behind the last quotient");
  CHECK_EQUAL(message(bytes({0xc5, 0x00, 0x09}), 100, 3),
              "[rice] 3 indices of 100: there are fewer quotients");
  CHECK_EQUAL(message(bytes({0xc5, 0x00, 0x8b}), 100, 3),
              "[rice] 3 indices of 100: there are more quotients");
  CHECK_EQUAL(message(bytes({0xc5, 0x01, 0x89}), 100, 3),
              "[rice] 3 indices of 100: the last index is 100");
  CHECK_EQUAL(message(bytes({0, 0, 0, 0, 0x89}), 100, 3),
              "[rice] 3 indices of 100: more bytes than any code takes");
}

TEST(packed_rejects_what_the_reference_rejects) {
  Random random(11);
  on_every_isa([&] {
    for (const Chunking& c : chunkings()) {
      if (packed_count(c) > 300) continue;
      const Indices indices = random_chunked(random, c);
      Bytes bytes(packed_bytes(c));
      packed_encode(indices, c, bytes);
      check_mutations(random, bytes, [&](const Bytes& hostile) {
        CHECK(packed_back(hostile, c) == reference_packed_decode(hostile, c));
      });
    }
    for (const Chunking& c : {Chunking{70001, 1000, 100}, Chunking{kMaxIndexRange, 65535, 1}}) {
      const std::size_t k = packed_count(c);
      Indices indices(k);
      for (std::size_t i = 0; i < k; ++i)
        indices[i] = static_cast<std::uint32_t>(i / c.k_per_chunk * c.chunk + i % c.k_per_chunk);
      Bytes bytes(packed_bytes(c));
      packed_encode(indices, c, bytes);
      for (int repeat = 0; repeat < 50; ++repeat) {
        Bytes hostile = bytes;
        const std::size_t bit = repeat < 20
                                    ? 8 * bytes.size() - 1 - static_cast<std::size_t>(repeat)
                                    : random() % (8 * bytes.size());
        hostile[bit / 8] ^= std::byte{1} << (bit % 8);
        CHECK(packed_back(hostile, c) == reference_packed_decode(hostile, c));
      }
    }
  });
}
