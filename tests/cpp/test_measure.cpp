// Measuring over every transport inside one process: agreement, failures, and that what follows
// uses what was found. How exact it is shows in bench/wanlab, where links have a rate.
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "check.h"
#include "collective/group.h"
#include "collective/link_meter.h"
#include "collective/measure.h"
#include "fabrics.h"
#include "threads.h"

namespace fedcomm {
namespace {

using testing::run_ranks;

std::vector<std::shared_ptr<Group>> open(const testing::Fabrics& fabrics, double timeout_s = 30) {
  GroupOptions options;
  options.segment_elems = kGrain;
  options.timeout_s = timeout_s;
  return Group::open_all(fabrics, options);
}

TensorView view(std::vector<float>& values) {
  return {values.data(), values.size(), DType::f32};
}

void check_sum(Group& group, std::size_t n, std::optional<Algorithm> algorithm) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i)
    x[i] = static_cast<float>(static_cast<int>(i % 100) * (group.rank() + 1));
  ReduceOptions options;
  options.algorithm = algorithm;
  group.all_reduce(view(x), view(x), options)->wait();
  const int total = group.size() * (group.size() + 1) / 2;
  for (std::size_t i = 0; i < n; ++i)
    CHECK_EQUAL(x[i], static_cast<float>(static_cast<int>(i % 100) * total));
}

}  // namespace

TEST(tournament_lets_every_pair_meet_once) {
  for (int n = 1; n <= 17; ++n) {
    const auto turns = tournament(n);
    CHECK_EQUAL(turns.size(), static_cast<std::size_t>(n == 1 ? 1 : n % 2 == 0 ? n - 1 : n));
    std::set<std::pair<int, int>> met;
    for (const auto& partners : turns) {
      int n_idle = 0;
      for (int member = 0; member < n; ++member) {
        const int partner = partners[static_cast<std::size_t>(member)];
        CHECK_EQUAL(partners[static_cast<std::size_t>(partner)], member);
        if (partner == member) {
          ++n_idle;
        } else {
          CHECK(met.emplace(member, partner).second);
        }
      }
      CHECK_EQUAL(n_idle, n % 2);
    }
    CHECK_EQUAL(met.size(), static_cast<std::size_t>(n * (n - 1)));
  }
}

TEST(loss_is_counted_between_two_looks) {
  PathFacts before, after;
  before.segments_sent = 100;
  before.segments_retransmitted = 50;
  after = before;
  CHECK(!loss_between(before, after));
  after.segments_sent = 300;
  after.segments_retransmitted = 52;
  CHECK_EQUAL(*loss_between(before, after), 10'000'000u);
  after.segments_retransmitted = 1000;
  CHECK_EQUAL(*loss_between(before, after), 1'000'000'000u);
}

TEST(meters_tell_the_best_rate_of_late) {
  using std::chrono::milliseconds;
  LinkMeter meter;
  auto now = LinkMeter::Clock::now();
  const auto frames = [&](int n, std::size_t n_bytes, milliseconds pause) {
    std::uint64_t rate = 0;
    for (int i = 0; i < n; ++i) {
      now += pause;
      rate = meter.note(n_bytes, now);
    }
    return rate;
  };
  // 40 frames, of which 38 count, in 0.4 s.
  CHECK_EQUAL(meter.note(1'000'000, now), 0u);
  CHECK_EQUAL(frames(40, 9'000'000, milliseconds(10)), 0u);  // may have piled up
  CHECK_EQUAL(frames(39, 1'000'000, milliseconds(10)), 0u);
  CHECK_EQUAL(frames(1, 1'000'000, milliseconds(10)), 95'000'000u);
  CHECK_EQUAL(frames(100, 500'000, milliseconds(10)), 95'000'000u);  // slower since
  CHECK_EQUAL(frames(80, 2'000'000, milliseconds(10)), 190'000'000u);
  now += std::chrono::seconds(10);  // idle time is not slow time
  CHECK_EQUAL(frames(81, 3'000'000, milliseconds(10)), 285'000'000u);
  meter.pause();  // what had piled up does not count
  CHECK_EQUAL(frames(10, 90'000'000, milliseconds(0)), 285'000'000u);
  CHECK_EQUAL(frames(100, 1'000'000, milliseconds(1)), 285'000'000u);
  now += std::chrono::seconds(10);
  CHECK_EQUAL(frames(16 * 40 + 41, 500'000, milliseconds(10)), 47'500'000u);  // long ago: forgotten
  now += std::chrono::seconds(10);
  CHECK_EQUAL(frames(2000, 1'000, milliseconds(10)), 47'500'000u);  // too little to tell
  meter.forget();
  CHECK_EQUAL(frames(41, 1'000'000, milliseconds(10)), 0u);
}

TEST(measuring_ends_with_one_table_for_all) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (int n = 1; n <= 5; ++n) {
      const auto groups = open(kind.make(n));
      testing::check_none(run_ranks(groups, [&](Group& group) {
        CHECK(group.measured() == nullptr);
        const auto found = group.measure(MeasureBy::probes, 0.5);
        CHECK(found->links.is_complete());
        CHECK(group.measured() == found);
        for (const std::size_t size : {0u, 1u, 5000u, 100'000u}) {
          check_sum(group, size, std::nullopt);
          check_sum(group, size, Algorithm::ring);
        }
      }));
      for (const auto& group : groups) {
        CHECK(group->measured()->links == groups[0]->measured()->links);
        CHECK(group->measured()->ring == groups[0]->measured()->ring);
        CHECK_EQUAL(group->choose(1u << 24, "int8").forecasts.size(), n == 1 ? 0u : 3u);
        CHECK(group->choose(1u << 24, "topk(0.01, int8)").forecasts.size() == (n == 1 ? 0u : 2u));
      }
      // Everybody ends at the same number of operations, whichever pairs took how many steps.
      for (const auto& group : groups)
        CHECK_EQUAL(group->counters().operations, groups[0]->counters().operations);
    }
  }
}

TEST(measuring_again_and_by_traffic_works) {
  for (const auto& kind : testing::fabric_kinds()) {
    const auto groups = open(kind.make(3));
    testing::check_none(run_ranks(groups, [&](Group& group) {
      group.measure(MeasureBy::traffic);  // nothing is known: that is what it says
      CHECK(!group.measured()->links.is_complete());
      CHECK(group.choose(1u << 24, "int8").forecasts.empty());
      check_sum(group, 50'000, std::nullopt);
      const auto first = group.measure(MeasureBy::probes, 0.3);
      for (int i = 0; i < 3; ++i)
        check_sum(group, 200'000, Algorithm::direct);
      const auto second = group.measure(MeasureBy::traffic);
      for (int from = 0; from < 3; ++from) {
        for (int to = 0; to < 3; ++to)
          CHECK(second->links.at(from, to).bytes_per_s >= first->links.at(from, to).bytes_per_s);
      }
      group.measure(MeasureBy::probes, 0.3);
    }));
    CHECK(groups[0]->measured()->links == groups[2]->measured()->links);
  }
}

/// Sums of what float32 rounds, by codecs with blocks and without: the same bits before and after.
TEST(measuring_changes_no_sum) {
  for (const std::size_t n : {0u, 1u, 5u, 700'001u}) {
    const auto groups = open(testing::fabric_kinds()[0].make(3));
    testing::check_none(run_ranks(groups, [&](Group& group) {
      std::mt19937 random(static_cast<unsigned>(group.rank()));
      std::normal_distribution<float> normal;
      std::vector<float> x(n);
      for (float& value : x)
        value = normal(random);
      const auto sum = [&](const char* codec, ReduceOp reduce) {
        std::vector<float> result = x;
        ReduceOptions options;
        options.reduce = reduce;
        options.weight = 0.5 + group.rank();
        options.codec = codec;
        options.algorithm = Algorithm::direct;
        group.all_reduce(view(result), view(result), options)->wait();
        return result;
      };
      const std::vector<const char*> codecs = {"fp32", "int8", "int4(stochastic)",
                                               "chunk_topk(1000, 100, int8)"};
      std::vector<std::vector<float>> before;
      for (const char* codec : codecs) {
        before.push_back(sum(codec, ReduceOp::sum));
        before.push_back(sum(codec, ReduceOp::mean));
      }
      group.measure(MeasureBy::probes, 0.3);
      for (std::size_t i = 0; i < codecs.size(); ++i) {
        CHECK(sum(codecs[i], ReduceOp::sum) == before[2 * i]);
        CHECK(sum(codecs[i], ReduceOp::mean) == before[2 * i + 1]);
      }
    }));
  }
}

TEST(a_slow_link_is_found_and_avoided) {
  const auto tcp = testing::tcp_fabrics(4, testing::on_loopback(1));
  const auto groups = open({tcp.begin(), tcp.end()});
  constexpr double kSlow = 2e6;  // bytes a second
  for (const int to : {1, 2}) {  // 0 -> 3 is what is left
    tcp[0]->inject({TcpFault::Kind::slow, to, 0, static_cast<std::size_t>(kSlow / 1000)});
  }
  std::vector<std::vector<float>> results(4);
  testing::check_none(run_ranks(groups, [&](Group& group) {
    const auto found = group.measure(MeasureBy::probes, 6);
    for (int from = 0; from < 4; ++from) {
      for (int to = 0; to < 4; ++to) {
        if (from == to) continue;
        const auto rate = static_cast<double>(found->links.at(from, to).bytes_per_s);
        const bool slow = from == 0 && to != 3;
        CHECK(slow == (rate < 2 * kSlow));  // on a busy machine everything may be slower
        CHECK(rate < 2 * kSlow || rate > 5 * kSlow);
      }
    }
    CHECK_EQUAL(found->ring[1], 3);
    CHECK(group.choose(1u << 22, "fp32").algorithm == Algorithm::ring);
    // Fractions: the bits show the order of the sum, and that it is the same everywhere.
    std::vector<float>& x = results[static_cast<std::size_t>(group.rank())];
    x.resize(200'001);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = 1.0f / static_cast<float>(i + static_cast<std::size_t>(7 * group.rank()) + 1);
    ReduceOptions options;
    options.algorithm = Algorithm::ring;
    group.all_reduce(view(x), view(x), options)->wait();
    check_sum(group, 100'000, Algorithm::ring);
  }));
  for (const auto& result : results)
    CHECK(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
  CHECK(groups[0]->measured()->ring != (RingOrder{0, 1, 2, 3}));
}

TEST(links_count_what_passed) {
  for (const auto& kind : testing::fabric_kinds()) {
    const auto groups = open(kind.make(3));
    testing::check_none(
        run_ranks(groups, [&](Group& group) { check_sum(group, 30'000, Algorithm::direct); }));
    std::uint64_t payload = 0;
    for (int from = 0; from < 3; ++from) {
      for (int to = 0; to < 3; ++to) {
        if (from == to) continue;
        const Counters there = groups[static_cast<std::size_t>(from)]->counters();
        const Counters here = groups[static_cast<std::size_t>(to)]->counters();
        const LinkTraffic& sent = there.links[static_cast<std::size_t>(to)];
        const LinkTraffic& received = here.links[static_cast<std::size_t>(from)];
        CHECK_EQUAL(sent.payload_bytes_sent, received.payload_bytes_received);
        CHECK_EQUAL(sent.frame_bytes_sent, received.frame_bytes_received);
        CHECK_EQUAL(sent.frame_bytes_sent, there.sent_to[static_cast<std::size_t>(to)]);
        payload += sent.payload_bytes_sent;
      }
    }
    // The sum, and the hellos of 32 bytes to each other member.
    CHECK_EQUAL(payload, 2u * 2u * 30'000u * 4u + 6u * 32u);
  }
}

TEST(members_that_want_different_measurements_are_told_so) {
  const auto groups = open(testing::memory_fabrics(3));
  for (const auto& error : run_ranks(groups, [](Group& group) {
         group.measure(MeasureBy::probes, group.rank() == 1 ? 0.2 : 0.3);
       })) {
    CHECK(error && error->kind() == ErrorKind::invalid_argument);
  }
  for (const double seconds : {0.0, -1.0, 4000.0, std::nan("")}) {
    CHECK_THROWS(ErrorKind::invalid_argument, groups[0]->measure(MeasureBy::probes, seconds));
  }
  // Nothing is broken by that.
  testing::check_none(
      run_ranks(groups, [](Group& group) { group.measure(MeasureBy::probes, 0.2); }));
}

TEST(a_member_that_fails_while_measuring_ends_it_for_all) {
  for (const Fault fault : {Fault::drop, Fault::corrupt, Fault::truncate, Fault::silence}) {
    for (const std::size_t after : {0u, 1u, 5u, 12u}) {
      const auto hub = std::make_shared<MemoryHub>(4);
      testing::Fabrics fabrics;
      for (int rank = 0; rank < 4; ++rank)
        fabrics.push_back(hub->fabric(rank));
      const auto groups = open(fabrics, 0.5);
      hub->inject(2, 1, fault, after);
      for (const auto& error : run_ranks(groups, [](Group& group) {
             group.measure(MeasureBy::probes, 0.3);
             check_sum(group, 1000, Algorithm::direct);  // who had all it needed hears of it here
           })) {
        CHECK(error.has_value());
      }
    }
  }
}

TEST(a_member_that_leaves_or_dies_while_measuring_ends_it_for_all) {
  for (const auto& kind : testing::fabric_kinds()) {
    const auto groups = open(kind.make(3), 5);
    const auto errors = run_ranks(groups, [](Group& group) {
      if (group.rank() == 1) {
        group.abort("out of disk");
        return;
      }
      group.measure(MeasureBy::probes, 0.3);
    });
    CHECK(errors[0] && errors[0]->kind() == ErrorKind::peer_lost);
    CHECK(errors[2] && errors[2]->kind() == ErrorKind::peer_lost);
    CHECK(groups[0]->measured() == nullptr);
  }
}

TEST(a_rebuilt_group_knows_nothing_of_its_links) {
  const auto groups = open(testing::memory_fabrics(3));
  testing::check_none(run_ranks(groups, [](Group& group) {
    group.measure(MeasureBy::probes, 0.2);
    const auto again = group.rebuild({0, 1, 2});
    CHECK(again->measured() == nullptr);
    check_sum(*again, 5000, std::nullopt);
    again->measure(MeasureBy::probes, 0.2);
    again->close();
  }));
}

TEST(probes_are_checked) {
  const auto groups = open(testing::memory_fabrics(2));
  const TensorView none{nullptr, 0, DType::u8};
  CHECK_THROWS(ErrorKind::invalid_argument, groups[0]->probe(none, 0, 0, 1));
  CHECK_THROWS(ErrorKind::invalid_argument, groups[0]->probe(none, 0, 2, 1));
  CHECK_THROWS(ErrorKind::invalid_argument, groups[0]->probe(none, -1, 0, 1));
  // An announcement of more bytes than anybody would send is not believed.
  const auto errors = run_ranks(groups, [](Group& group) {
    if (group.rank() == 1) {
      probe_links(group, 0.2);
      return;
    }
    std::uint64_t huge = std::uint64_t{1} << 60;
    group.probe({&huge, sizeof huge, DType::u8}, 0, 1, 5)->wait();
  });
  CHECK(!errors[0]);
  CHECK(errors[1] && errors[1]->kind() == ErrorKind::corrupt_frame);
}

}  // namespace fedcomm
