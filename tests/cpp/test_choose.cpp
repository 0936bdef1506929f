// The choice of an algorithm and of a ring, by tables of links: figures worked out by hand, and
// every ring of small groups tried one by one.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "check.h"
#include "collective/choose.h"
#include "collective/ring_order.h"
#include "link_tables.h"

namespace fedcomm {
namespace {

using testing::kMillisecond;
using testing::links_of;

RingOrder member_order(int n) {
  RingOrder ring(static_cast<std::size_t>(n));
  std::iota(ring.begin(), ring.end(), std::uint16_t{0});
  return ring;
}

LinkTable equal_links(int n, std::uint64_t rate, std::uint64_t round_trip_ns) {
  return links_of(n, round_trip_ns, [rate](int, int) { return rate; });
}

void check_close(double a, double b) {
  if (std::abs(a - b) > 1e-12 * std::abs(b)) CHECK_EQUAL(a, b);
}

void check_forecast(Algorithm algorithm, const LinkTable& links, double latency, double moving) {
  const Forecast result = forecast(algorithm, {12e6, 12e6}, links, member_order(links.n_members()));
  check_close(result.latency_s, latency);
  check_close(result.moving_s, moving);
}

LinkTable random_links(int n, std::mt19937& random) {
  return links_of(n, kMillisecond, [&](int, int) { return 1 + random() % 1000; });
}

/// All rings, best first; by another way of going through them than best_ring's.
RingRates best_rates_by_trying(const LinkTable& links, RingOrder& prefix, std::uint32_t used) {
  if (prefix.size() == static_cast<std::size_t>(links.n_members())) return rates_of(links, prefix);
  RingRates best;
  for (std::uint16_t next = 1; next < links.n_members(); ++next) {
    if (used >> next & 1u) continue;
    prefix.push_back(next);
    best = std::max(best, best_rates_by_trying(links, prefix, used | 1u << next));
    prefix.pop_back();
  }
  return best;
}

}  // namespace

TEST(segments_are_short_where_computing_takes_longer) {
  // 12 MB of two members: 7.5 times that is computed with, one time it moves each way.
  LinkTable links = equal_links(2, 1'000'000'000, kMillisecond);
  const auto segment = [&](std::size_t most) {
    return choose_segment(forecast(Algorithm::direct, {12e6, 12e6}, links, member_order(2)), most);
  };
  links.coding_rate = 7'000'000'000;
  CHECK_EQUAL(segment(1u << 18), kCachedSegmentElems);
  CHECK_EQUAL(segment(kGrain), kGrain);  // never longer than asked for
  links.coding_rate = 8'000'000'000;
  CHECK_EQUAL(segment(1u << 18), 1u << 18);
  links.coding_rate = 0;  // unknown
  CHECK_EQUAL(segment(1u << 18), 1u << 18);
}

TEST(segments_are_long_where_a_gpu_leaves_little) {
  const auto segment = [](const char* codec, std::size_t n_elems) {
    return choose_segment_on_gpu(*make_codec(codec), n_elems, 1u << 18);
  };
  constexpr std::size_t kMany = 1u << 28;
  CHECK_EQUAL(segment("fp32", kMany), 1u << 18);
  CHECK_EQUAL(segment("bf16", kMany), 1u << 18);
  CHECK_EQUAL(segment("int8", kMany), 1u << 19);
  CHECK_EQUAL(segment("sign", kMany), 1u << 22);
  CHECK_EQUAL(segment("topk(0.01, int8)", kMany), kMostSegmentElemsOnGpu);
  CHECK_EQUAL(segment("chunk_topk(4096, 64, int2)", kMany), kMostSegmentElemsOnGpu);
  CHECK_EQUAL(segment("topk(0.01, int8)", 1u << 24), 1u << 24);  // one
  CHECK_EQUAL(segment("topk(0.01, int8)", (1u << 24) + 1), 1u << 25);
  CHECK_EQUAL(segment("topk(0.3, int8)", kMany), 1u << 20);
  CHECK_EQUAL(segment("int8", 1u << 20), 1u << 19);  // two
  CHECK_EQUAL(segment("topk(0.01, int8)", 0), 1u << 18);
  CHECK_EQUAL(choose_segment_on_gpu(*make_codec("sign"), kMany, kGrain), 16 * kGrain);
}

TEST(forecasts_are_as_by_hand) {
  // 12 MB, 4 members, 10 MB/s, 40 ms: a way is 20 ms.
  const LinkTable four = equal_links(4, 10'000'000, 40 * kMillisecond);
  check_forecast(Algorithm::direct, four, 0.040, 3 * 6e6 / 10e6);  // 2 x 3 MB to each of three
  check_forecast(Algorithm::ring, four, 6 * 0.020, 18e6 / 10e6);
  check_forecast(Algorithm::all_gather, four, 0.020, 36e6 / 10e6);
  const LinkTable two = equal_links(2, 10'000'000, 40 * kMillisecond);
  check_forecast(Algorithm::direct, two, 0.040, 1.2);
  check_forecast(Algorithm::all_gather, two, 0.020, 1.2);
  check_forecast(Algorithm::ring, two, 0.040, 1.2);
}

TEST(the_slowest_link_counts_and_is_named) {
  LinkTable links = equal_links(4, 10'000'000, 40 * kMillisecond);
  links.at(2, 0) = {1'000'000, 200 * kMillisecond, std::nullopt};
  const Forecast direct = forecast(Algorithm::direct, {12e6, 12e6}, links, member_order(4));
  check_close(direct.latency_s, 2 * 0.100);
  check_close(direct.moving_s, 6e6 / 1e6);
  CHECK(direct.bottleneck == Bottleneck::link);
  CHECK_EQUAL(direct.from, 2);
  CHECK_EQUAL(direct.to, 0);
  // The ring in member order never uses 2 -> 0.
  const Forecast ring = forecast(Algorithm::ring, {12e6, 12e6}, links, member_order(4));
  check_close(ring.moving_s, 18e6 / 10e6);
  check_close(ring.latency_s, 6 * 0.020);
}

TEST(the_latency_of_a_ring_is_that_of_its_longest_chain) {
  LinkTable links = equal_links(3, 10'000'000, 10 * kMillisecond);
  links.at(0, 1).round_trip_ns = 100 * kMillisecond;
  // Four hops begin at 0: 0-1, 1-2, 2-0, 0-1.
  check_close(forecast(Algorithm::ring, {12e6, 12e6}, links, member_order(3)).latency_s,
              0.050 + 0.005 + 0.005 + 0.050);
}

TEST(choices_follow_size_and_links) {
  const auto chosen = [](double n_bytes, const LinkTable& links) {
    return choose_measured({n_bytes, n_bytes}, links, best_ring(links), Choosing::from_parts)
        .algorithm;
  };
  const LinkTable wan = equal_links(4, 10'000'000, 40 * kMillisecond);
  CHECK(chosen(0, wan) == Algorithm::all_gather);
  CHECK(chosen(1e3, wan) == Algorithm::all_gather);
  CHECK(chosen(100e6, wan) == Algorithm::direct);
  // One step more costs 20 ms; all_gather moves 1.5 P more at 10 MB/s: the border is at 133 kB.
  CHECK(chosen(132e3, wan) == Algorithm::all_gather);
  CHECK(chosen(135e3, wan) == Algorithm::direct);
  // Of two members all_gather never moves more.
  CHECK(chosen(1e9, equal_links(2, 10'000'000, 40 * kMillisecond)) == Algorithm::all_gather);
  // A slow pair that the ring goes round.
  const LinkTable gap = links_of(4, 40 * kMillisecond, [](int from, int to) -> std::uint64_t {
    return from % 2 == 0 && to % 2 == 0 ? 1'000'000 : 10'000'000;
  });
  CHECK(chosen(100e6, gap) == Algorithm::ring);
  CHECK(chosen(1e3, gap) == Algorithm::all_gather);
  // Hardly slower: not worth N codings. Direct needs 1.5 P / 10 MB/s, as the ring does.
  const LinkTable dent = links_of(4, 0, [](int from, int to) -> std::uint64_t {
    return from == 0 && to == 2 ? 3'200'000 : 10'000'000;
  });
  CHECK(chosen(100e6, dent) == Algorithm::direct);
}

TEST(computing_is_as_by_hand_and_counts_where_nobody_waits_for_links) {
  // 4 members, 12 MB as 3 MB of payload, 1 GB/s. Frames pass twice, out and in.
  const Amount amount{.payload_bytes = 3e6, .value_bytes = 12e6};
  LinkTable four = equal_links(4, 10'000'000, 40 * kMillisecond);
  four.coding_rate = 1'000'000'000;
  const auto computing = [&](Algorithm algorithm) {
    return forecast(algorithm, amount, four, member_order(4)).computing_s;
  };
  check_close(computing(Algorithm::direct), (3.25 * 12e6 + 4 * 4.5e6) / 1e9);
  check_close(computing(Algorithm::ring), (4.5 * 12e6 + 4 * 4.5e6) / 1e9);
  check_close(computing(Algorithm::sparse), (3 * 12e6 + 4 * 4.5e6) / 1e9);
  check_close(computing(Algorithm::all_gather), (8 * 12e6 + 4 * 9e6) / 1e9);
  const Forecast slow = forecast(Algorithm::direct, amount, four, member_order(4));
  check_close(slow.total_s(), slow.latency_s + slow.moving_s + slow.computing_s / 16);
  // Two members: over a slow link the step less decides, inside a host the passes less.
  const auto chosen = [&](std::uint64_t rate, std::uint64_t round_trip, std::uint64_t coding) {
    LinkTable two = equal_links(2, rate, round_trip);
    two.coding_rate = coding;
    return choose_measured({64e6, 64e6}, two, member_order(2), Choosing::from_parts).algorithm;
  };
  CHECK(chosen(125'000'000, 50 * kMillisecond, 10'000'000'000) == Algorithm::all_gather);
  CHECK(chosen(5'000'000'000, kMillisecond / 50, 10'000'000'000) == Algorithm::direct);
  CHECK(chosen(5'000'000'000, kMillisecond / 50, 0) == Algorithm::all_gather);  // not known
  // 2.5 x 64 MB less to pass in 16 ms: worth a way of 10 ms, and not one of 20.
  CHECK(chosen(5'000'000'000, 20 * kMillisecond, 10'000'000'000) == Algorithm::direct);
  CHECK(chosen(5'000'000'000, 40 * kMillisecond, 10'000'000'000) == Algorithm::all_gather);
}

TEST(the_best_ring_is_the_best_of_all) {
  std::mt19937 random(7);
  for (int n = 1; n <= 8; ++n) {
    for (int repeat = 0; repeat < (n < 8 ? 10 : 2); ++repeat) {
      const LinkTable links = random_links(n, random);
      const RingOrder ring = best_ring(links);
      RingOrder sorted = ring;
      std::sort(sorted.begin(), sorted.end());
      CHECK(sorted == member_order(n));
      CHECK_EQUAL(ring[0], 0);
      if (n < 3) continue;
      RingOrder prefix = {0};
      CHECK(rates_of(links, ring) == best_rates_by_trying(links, prefix, 1));
    }
  }
}

TEST(large_rings_avoid_links_that_can_be_avoided) {
  std::mt19937 random(11);
  for (const int n : {9, 16, 40}) {
    // A hidden ring of fast links; everything else is slow.
    RingOrder hidden = member_order(n);
    std::shuffle(hidden.begin() + 1, hidden.end(), random);
    std::vector<std::uint16_t> after(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < hidden.size(); ++i)
      after[hidden[i]] = hidden[(i + 1) % hidden.size()];
    const LinkTable links = links_of(n, kMillisecond, [&](int from, int to) -> std::uint64_t {
      return after[static_cast<std::size_t>(from)] == to ? 1000 : 10;
    });
    CHECK(best_ring(links) == hidden);
    // And one that greed alone walks into.
    const LinkTable rough = random_links(n, random);
    const RingOrder ring = best_ring(rough);
    RingOrder sorted = ring;
    std::sort(sorted.begin(), sorted.end());
    CHECK(sorted == member_order(n));
    CHECK(rates_of(rough, ring) > rates_of(rough, member_order(n)));
  }
}

TEST(rings_change_only_where_it_pays) {
  std::mt19937 random(3);
  const LinkTable alike =
      links_of(5, kMillisecond, [&](int, int) { return 1000 + random() % 100; });
  CHECK(best_ring(alike) != member_order(5));
  CHECK(ring_worth_taking(alike) == member_order(5));
  LinkTable slow = alike;
  slow.at(2, 3).bytes_per_s = 10;
  const RingOrder ring = ring_worth_taking(slow);
  CHECK(rates_of(slow, ring).slowest >= 1000);
}

TEST(reports_travel_and_bad_ones_are_refused) {
  LinkReport report;
  report.to = {{}, {123'456'789, 50 * kMillisecond, 1000u}, {1, 1, std::nullopt}};
  report.received_rate = {0, 7, 200'000'000'000u};
  report.coding_rate = 12'345'678'901;
  const auto bytes = write_report(report);
  CHECK_EQUAL(bytes.size(), link_report_bytes(3));
  const LinkReport read = read_report(bytes, 3);
  CHECK(read.to == report.to);
  CHECK(read.received_rate == report.received_rate);
  CHECK_EQUAL(read.coding_rate, report.coding_rate);
  for (const std::size_t at :
       {std::size_t{35}, std::size_t{43}, std::size_t{55}, std::size_t{91}}) {
    auto wrong = bytes;  // the highest byte of a rate, a round trip, rates of receiving and coding
    wrong[at] = std::byte{0xff};
    CHECK_THROWS(ErrorKind::corrupt_frame, read_report(wrong, 3));
  }
  auto lost = bytes;
  lost[28 + 19] = std::byte{0xfe};
  CHECK_THROWS(ErrorKind::corrupt_frame, read_report(lost, 3));
  CHECK_THROWS(ErrorKind::corrupt_frame, read_report(std::span(bytes).first(91), 3));
}

TEST(what_a_receiver_saw_raises_a_rate_and_never_lowers_it) {
  const auto report = [](std::uint64_t to_other, std::uint64_t from_other, int me) {
    LinkReport result{std::vector<LinkFacts>(2), std::vector<std::uint64_t>(2), me == 0 ? 9u : 8u};
    result.to[static_cast<std::size_t>(1 - me)] = {to_other, 1, std::nullopt};
    result.received_rate[static_cast<std::size_t>(1 - me)] = from_other;
    return result;
  };
  const LinkTable links = merge_reports(std::vector{report(100, 50, 0), report(40, 300, 1)});
  CHECK_EQUAL(links.at(0, 1).bytes_per_s, 300u);
  CHECK_EQUAL(links.at(1, 0).bytes_per_s, 50u);
  CHECK(links.is_complete());
  CHECK_EQUAL(links.coding_rate, 8u);  // the slowest member's, of those that tell
  CHECK_EQUAL(
      merge_reports(std::vector{LinkReport{report(1, 1, 0)}, {{{}, {}}, {0, 0}, 0}}).coding_rate,
      9u);
  LinkTable unknown = links;
  unknown.at(1, 0).bytes_per_s = 0;
  CHECK(!unknown.is_complete());
}

}  // namespace fedcomm
