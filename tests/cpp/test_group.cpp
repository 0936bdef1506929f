// Groups: results over every transport; faults, the sealing and masking stages, and epochs over the
// memory transport, which can fail on purpose.
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "check.h"
#include "collective/group.h"
#include "fabrics.h"

namespace fedcomm {
namespace {

struct Ranks {
  std::shared_ptr<MemoryHub> hub;  // null over other transports
  std::vector<std::shared_ptr<Group>> groups;

  explicit Ranks(int n, GroupOptions options = {}) : hub(std::make_shared<MemoryHub>(n)) {
    std::vector<std::shared_ptr<Fabric>> fabrics;
    for (int rank = 0; rank < n; ++rank)
      fabrics.push_back(hub->fabric(rank));
    groups = Group::open_all(fabrics, options);
  }
  Ranks(const testing::Fabrics& fabrics, const GroupOptions& options)
      : groups(Group::open_all(fabrics, options)) {}

  /// Runs f(group) in a thread for each rank; returns the errors, none for those that did well.
  std::vector<std::optional<Error>> run(const std::function<void(Group&)>& f) {
    std::vector<std::optional<Error>> errors(groups.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          f(*groups[i]);
        } catch (const Error& error) {
          errors[i] = error;
        }
      });
    }
    for (auto& thread : threads)
      thread.join();
    return errors;
  }
};

/// Small segments, so that even small buckets have many.
GroupOptions small_segments() {
  GroupOptions options;
  options.segment_elems = kGrain;
  return options;
}

/// For tests in which a deadline must pass.
GroupOptions impatient() {
  GroupOptions options = small_segments();
  options.timeout_s = 0.7;
  return options;
}

TensorView view(std::vector<float>& values) {
  return {values.data(), values.size(), DType::f32};
}

/// Integers: every order of summation gives the same bits.
std::vector<float> input(int rank, std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(
        static_cast<int>((i * 31 + static_cast<std::size_t>(rank) * 17) % 201) - 100);
  }
  return values;
}

std::vector<float> expected_sum(int n_ranks, std::size_t n) {
  std::vector<float> sum(n, 0.0f);
  for (int rank = 0; rank < n_ranks; ++rank) {
    const auto part = input(rank, n);
    for (std::size_t i = 0; i < n; ++i)
      sum[i] += part[i];
  }
  return sum;
}

void check_all(const std::vector<std::optional<Error>>& errors, ErrorKind kind) {
  for (const auto& error : errors) {
    CHECK(error.has_value());
    CHECK_EQUAL(static_cast<int>(error->kind()), static_cast<int>(kind));
  }
}

void check_none(const std::vector<std::optional<Error>>& errors) {
  for (const auto& error : errors) {
    if (error) throw testing::Failure(error->what());
  }
}

void all_reduce(Group& group, std::size_t n, Algorithm algorithm = Algorithm::direct) {
  auto x = input(group.rank(), n);
  ReduceOptions options;
  options.algorithm = algorithm;
  group.all_reduce(view(x), view(x), options)->wait();
  CHECK(x == expected_sum(group.size(), n));
}

/// A sealer that changes the payload, as encryption will.
class FlippingSealer final : public FrameSealer {
 public:
  std::uint8_t id() const override { return 200; }
  std::size_t overhead_bytes() const override { return 16; }
  bool changes_payload() const override { return true; }
  void seal(std::span<std::byte> frame) const override {
    for (auto& each : frame.subspan(kHeaderBytes))
      each = ~each;
  }
  void open(std::span<const std::byte> frame, std::span<std::byte> plain) const override {
    for (std::size_t i = 0; i < plain.size(); ++i)
      plain[i] = ~frame[kHeaderBytes + i];
  }
};

/// A mask keyed by what identifies the payload.
class KeyedMask final : public PayloadMask {
 public:
  void outgoing(const FrameHeader& header, std::span<std::byte> payload) const override {
    const auto key = static_cast<std::byte>(header.segment * 7 + header.source + 1);
    for (auto& each : payload)
      each ^= key;
  }
  void incoming(const FrameHeader& header, std::span<std::byte> payload) const override {
    outgoing(header, payload);
  }
};

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
          if (sealed) options.sealer = std::make_shared<FlippingSealer>();
          if (masked) options.mask = std::make_shared<KeyedMask>();
          Ranks ranks(kind.make(3), options);
          check_none(ranks.run([&](Group& group) { all_reduce(group, 50000, algorithm); }));
        }
      }
    }
  }
}

TEST(lost_frame_times_out_and_breaks_the_group_everywhere) {
  for (const Fault fault : {Fault::drop, Fault::silence}) {
    Ranks ranks(3, impatient());
    ranks.hub->inject(1, 2, fault, 0);  // a contribution: without it nobody gets that segment
    check_all(ranks.run([](Group& group) { all_reduce(group, 50000); }), ErrorKind::timeout);
    check_all(ranks.run([](Group& group) { all_reduce(group, 10); }), ErrorKind::group_broken);
    for (const auto& group : ranks.groups)
      CHECK(group->broken().has_value());
  }
}

TEST(damaged_frames_are_recognised) {
  for (const Fault fault : {Fault::corrupt, Fault::truncate}) {
    for (const Algorithm algorithm : kAlgorithms) {
      Ranks ranks(3, small_segments());
      ranks.hub->inject(0, 1, fault, 2);
      const auto errors = ranks.run([&](Group& group) { all_reduce(group, 50000, algorithm); });
      // The others may have had all that they need; they hear of it in the next operation.
      CHECK(errors[1].has_value() && errors[1]->kind() == ErrorKind::corrupt_frame);
      for (const auto& error : ranks.run([](Group& group) { all_reduce(group, 10); })) {
        CHECK(error.has_value());
      }
    }
  }
}

TEST(members_that_disagree_are_told_so) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    const auto errors =
        ranks.run([](Group& group) { all_reduce(group, group.rank() == 1 ? 5001 : 5000); });
    check_all(errors, ErrorKind::invalid_argument);
  }
}

TEST(weights_that_add_up_to_nothing_are_refused_everywhere) {
  for (const Algorithm algorithm : kAlgorithms) {
    Ranks ranks(3, small_segments());
    check_all(ranks.run([&](Group& group) {
      auto x = input(group.rank(), 9000);
      ReduceOptions options;
      options.algorithm = algorithm;
      options.reduce = ReduceOp::mean;
      options.weight = 0.0;
      group.all_reduce(view(x), view(x), options)->wait();
    }),
              ErrorKind::invalid_argument);
  }
}

TEST(a_member_that_leaves_is_missed) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    const auto errors = ranks.run([](Group& group) {
      all_reduce(group, 5000);
      if (group.rank() == 1) {
        group.close();
      } else {
        all_reduce(group, 5000);
      }
    });
    CHECK(!errors[1].has_value());
    CHECK(errors[0].has_value() && errors[0]->kind() == ErrorKind::peer_lost);
    CHECK(errors[2].has_value() && errors[2]->kind() == ErrorKind::peer_lost);
  }
}

TEST(leaving_after_the_last_operation_harms_nobody) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      Ranks ranks(kind.make(4), small_segments());
      check_none(ranks.run([](Group& group) {
        all_reduce(group, 20000, Algorithm::ring);
        group.close();
      }));
    }
  }
}

TEST(abort_reaches_everyone) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    const auto errors = ranks.run([](Group& group) {
      if (group.rank() == 2) {
        group.abort("out of disk");
        while (!group.broken())
          std::this_thread::yield();
      }
      all_reduce(group, 5000);
    });
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(errors[i].has_value() && errors[i]->kind() == ErrorKind::peer_lost);
      CHECK(std::string(errors[i]->what()).find("out of disk") != std::string::npos);
    }
    CHECK(errors[2].has_value() && errors[2]->kind() == ErrorKind::group_broken);
  }
}

TEST(a_broken_group_is_rebuilt_as_a_new_epoch_without_a_member) {
  Ranks ranks(4, impatient());
  ranks.hub->inject(1, 2, Fault::drop, 0);
  check_all(ranks.run([](Group& group) { all_reduce(group, 50000); }), ErrorKind::timeout);
  // Frames of the old epoch still lie in the boxes of the survivors.
  check_none(ranks.run([](Group& group) {
    if (group.rank() == 1) return;
    const auto rebuilt = group.rebuild({0, 2, 3});
    CHECK_EQUAL(rebuilt->epoch(), 1u);
    CHECK_EQUAL(rebuilt->size(), 3);
    for (int repeat = 0; repeat < 5; ++repeat)
      all_reduce(*rebuilt, 30000);
    rebuilt->close();
  }));
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

TEST(splits_that_disagree_are_refused) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(2), small_segments());
    check_all(ranks.run([](Group& group) {
      group.split({group.rank() == 0 ? std::vector<int>{0, 1} : std::vector<int>{1, 0}},
                  small_segments());
    }),
              ErrorKind::invalid_argument);
  }
}

TEST(missing_members_end_the_handshake) {
  for (const auto& kind : testing::fabric_kinds()) {
    const auto fabrics = kind.make(2);
    CHECK_THROWS(ErrorKind::timeout, Group::open(fabrics[0], impatient()));
  }
}

TEST(a_failure_told_before_the_handshake_has_ended_is_heard_after_it) {
  const auto hub = std::make_shared<MemoryHub>(3);
  hub->inject(1, 2, Fault::hold, 0);  // member 2 lacks this hello; 0 and 1 have all of theirs
  std::vector<std::shared_ptr<Group>> groups(3);
  std::vector<std::string> heard(3);
  const auto open_and_reduce = [&](std::size_t rank) {
    try {
      groups[rank] = Group::open(hub->fabric(static_cast<int>(rank)), {});
      if (rank == 0) groups[0]->abort("on purpose");
      std::vector<float> x(8);
      groups[rank]->all_reduce(view(x), view(x), {})->wait();
    } catch (const Error& error) {
      heard[rank] = error.what();
    }
  };
  std::thread first(open_and_reduce, 0), second(open_and_reduce, 1), third(open_and_reduce, 2);
  first.join();
  second.join();
  hub->release();
  third.join();
  for (std::size_t rank = 0; rank < 3; ++rank) {
    CHECK(groups[rank] != nullptr);
    CHECK(heard[rank].find("on purpose") != std::string::npos);
  }
}

TEST(a_group_goes_on_in_a_new_epoch_over_every_transport) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    check_all(ranks.run([](Group& group) {
      std::vector<float> x(70000, group.rank() == 1 ? std::nanf("") : 1.0f);
      group.all_reduce(view(x), view(x), {})->wait();
    }),
              ErrorKind::non_finite);
    check_none(ranks.run([](Group& group) {
      const auto again = group.rebuild({0, 1, 2});
      for (int repeat = 0; repeat < 5; ++repeat)
        all_reduce(*again, 70000);
      again->close();
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

TEST(arguments_are_checked_before_anything_is_sent) {
  Ranks ranks(2, small_segments());
  Group& group = *ranks.groups[0];
  auto x = input(0, 10), longer = input(0, 11);
  ReduceOptions bad_codec;
  bad_codec.codec = "zip";
  ReduceOptions bad_weight;
  bad_weight.reduce = ReduceOp::mean;
  bad_weight.weight = -1;
  CHECK_THROWS(ErrorKind::invalid_argument, group.all_reduce(view(x), view(longer), {}));
  CHECK_THROWS(ErrorKind::invalid_argument, group.all_reduce(view(x), view(x), bad_codec));
  CHECK_THROWS(ErrorKind::invalid_argument, group.all_reduce(view(x), view(x), bad_weight));
  CHECK_THROWS(ErrorKind::invalid_argument, group.broadcast(view(x), 2));
  CHECK_THROWS(ErrorKind::invalid_argument, algorithm_named("tree"));
  CHECK(!group.broken());
  check_none(ranks.run([](Group& each) { all_reduce(each, 100); }));
}

}  // namespace fedcomm
