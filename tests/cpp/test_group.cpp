// Groups: results over every transport, and the sealing and masking stages.
#include <cstring>
#include <string_view>
#include <thread>
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

TEST(group_with_a_gpu_has_longer_segments_and_the_same_sums) {
  // Here all members compute on the CPU: which of them has a GPU only decides how long they are.
  const auto run = [](bool last_on_gpu, const char* codec, Algorithm algorithm) {
    const auto hub = std::make_shared<MemoryHub>(3);
    std::vector<std::shared_ptr<Group>> groups(3);
    std::vector<std::thread> opening;
    for (int rank = 0; rank < 3; ++rank) {
      opening.emplace_back([&, rank] {
        GroupOptions options = small_segments();
        options.on_gpu = last_on_gpu && rank == 2;
        groups[static_cast<std::size_t>(rank)] = Group::open(hub->fabric(rank), options);
      });
    }
    for (auto& thread : opening)
      thread.join();
    std::vector<std::vector<float>> sums(3);
    std::vector<std::uint64_t> frames(3);
    check_none(testing::run_ranks(groups, [&](Group& group) {
      const auto rank = static_cast<std::size_t>(group.rank());
      sums[rank] = input(group.rank(), 40 * kGrain + 7);
      ReduceOptions options;
      options.algorithm = algorithm;
      options.codec = codec;
      const auto before = group.counters().frames;
      group.all_reduce(view(sums[rank]), view(sums[rank]), options)->wait();
      frames[rank] = group.counters().frames - before;
    }));
    CHECK(sums[0] == sums[1] && sums[0] == sums[2]);
    return std::pair(sums[0], frames[0]);
  };
  for (const Algorithm algorithm :
       {Algorithm::direct, Algorithm::ring, Algorithm::all_gather, Algorithm::sparse}) {
    for (const char* codec : {"fp32", "int4", "chunk_topk(4096, 64, int2)", "topk(0.01)"}) {
      const bool whole = std::string_view(codec).starts_with("topk");
      const bool keeps_parts = algorithm == Algorithm::direct || algorithm == Algorithm::ring;
      if (whole ? keeps_parts : algorithm == Algorithm::sparse) continue;
      const auto [small, many] = run(false, codec, algorithm);
      const auto [large, few] = run(true, codec, algorithm);
      CHECK(large == small);
      CHECK(std::string_view(codec) == "fp32" ? few == many : 3 * few <= many);
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
