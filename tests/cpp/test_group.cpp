// Groups: results over every transport, and the sealing and masking stages.
#include <cstring>
#include <vector>

#include "group_ranks.h"
#include "stages.h"

namespace fedcomm {
namespace {

using testing::all_reduce;
using testing::check_none;
using testing::expected_sum;
using testing::input;
using testing::Ranks;
using testing::small_segments;
using testing::view;

constexpr Algorithm kAlgorithms[] = {Algorithm::direct, Algorithm::ring, Algorithm::all_gather};

}  // namespace

TEST(group_reduces_exactly_with_every_algorithm) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (const int n : {1, 2, 3, 5}) {
      for (const Algorithm algorithm : kAlgorithms) {
        Ranks ranks(kind.make(n), small_segments());
        for (const std::size_t size : {0u, 1u, 4095u, 4097u, 50000u}) {
          check_none(ranks.run([&](Group& group) { all_reduce(group, size, algorithm); }));
        }
      }
    }
  }
}

TEST(group_keeps_the_order_of_many_operations_in_flight) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    check_none(ranks.run([](Group& group) {
      std::vector<std::vector<float>> buckets;
      std::vector<std::shared_ptr<Work>> works;
      for (std::uint32_t b = 0; b < 20; ++b)
        buckets.push_back(input(group.rank(), 1000 * (b % 7)));
      for (std::uint32_t b = 0; b < 20; ++b) {
        ReduceOptions options;
        options.bucket = b;
        works.push_back(group.all_reduce(view(buckets[b]), view(buckets[b]), options));
      }
      for (std::size_t b = 20; b-- > 0;)
        works[b]->wait();
      for (const auto& bucket : buckets)
        CHECK(bucket == expected_sum(3, bucket.size()));
    }));
  }
}

TEST(sealing_and_masking_stages_are_transparent) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (const Algorithm algorithm : kAlgorithms) {
      for (const bool sealed : {false, true}) {
        for (const bool masked : {false, true}) {
          GroupOptions options = small_segments();
          if (sealed) options.sealer = std::make_shared<testing::FlippingSealer>();
          if (masked) options.mask = std::make_shared<testing::KeyedMask>();
          Ranks ranks(kind.make(3), options);
          check_none(ranks.run([&](Group& group) { all_reduce(group, 50000, algorithm); }));
        }
      }
    }
  }
}

TEST(split_groups_work_side_by_side_and_again) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(4), small_segments());
    check_none(ranks.run([](Group& group) {
      const auto rows = group.split({{0, 1}, {2, 3}}, small_segments());
      const auto columns = group.split({{0, 2}, {1, 3}}, small_segments());
      for (int repeat = 0; repeat < 3; ++repeat) {
        all_reduce(*rows, 9000);
        all_reduce(*columns, 7000);
        all_reduce(group, 8000, Algorithm::ring);
      }
      const auto some = group.split({{3, 1}}, small_segments());
      CHECK_EQUAL(some == nullptr, group.rank() % 2 == 0);
      if (some) {
        CHECK_EQUAL(some->rank(), group.rank() == 3 ? 0 : 1);
        all_reduce(*some, 5000);
      }
    }));
  }
}

TEST(half_and_bf16_tensors_reduce_in_float32) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (const DType dtype : {DType::f16, DType::bf16}) {
      Ranks ranks(kind.make(3), small_segments());
      check_none(ranks.run([&](Group& group) {
        const std::size_t n = 9001;
        std::vector<std::uint16_t> x(n), out(n);
        const TensorView in{x.data(), n, dtype}, to{out.data(), n, dtype};
        const auto values = input(group.rank(), n);
        store_floats(values, in, 0);
        group.all_reduce(in, to, {})->wait();
        std::vector<float> sum(n);
        load_floats(to, 0, sum);
        std::vector<std::uint16_t> rounded(n);
        store_floats(expected_sum(3, n), {rounded.data(), n, dtype}, 0);
        CHECK(out == rounded);
      }));
    }
  }
}

}  // namespace fedcomm
