#include "collective/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

#include "collective/group.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

// Every direction has this many steps of two operations, done or skipped: operations are numbered,
// and members that are in other pairs must come out at the same number.
constexpr int kSteps = 16;
constexpr int kEmptySteps = 1;
constexpr std::uint64_t kFirstBytes = 32u << 10;
constexpr std::uint64_t kMostBytes = 64u << 20;
constexpr double kLeastGrowth = 2;
constexpr double kMostGrowth = 8;
constexpr std::uint64_t kNoMore = ~std::uint64_t{0};
constexpr double kSecondsADirection = 2;
constexpr double kLongEnough = 0.1;  // seconds
constexpr double kRoundTrips = 8;    // that a probe must outlast
// Probes that are long enough are repeated until the two fastest agree so well: TCP may have just
// overrun a queue, or still be finding the rate.
constexpr double kAgreement = 0.95;
constexpr int kFewestLong = 3;

// Values that a rate of coding is found with: more than the caches of most machines hold, as a
// bucket is.
constexpr std::size_t kCodedElems = 1u << 22;
constexpr int kCodings = 4;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What the source knows so far; decides how many bytes are next.
class Estimate {
 public:
  void add_round_trip(double seconds) { round_trip_ = std::min(round_trip_, seconds); }
  void add(std::uint64_t n_bytes, double seconds) {
    // A probe that took no longer than an empty one says little: not more than twenty times that.
    const double moving = std::max(seconds - round_trip_, seconds / 20);
    const double rate = static_cast<double>(n_bytes) / moving;
    // Much smaller ones were slow, or fast, for other reasons than the link.
    if (n_bytes > largest_ + largest_ / 2) rate_ = second_ = 0;
    second_ = std::max(second_, std::min(rate_, rate));
    rate_ = std::max(rate_, rate);
    largest_ = std::max(largest_, n_bytes);
    n_long_ += moving >= long_enough() || n_bytes == kMostBytes ? 1 : 0;
  }

  std::uint64_t next(double seconds_left) const {
    if (largest_ == 0) return kFirstBytes;
    if (n_long_ >= kFewestLong && second_ >= kAgreement * rate_) return kNoMore;
    const auto last = static_cast<double>(largest_);
    const double wanted = n_long_ > 0 ? last
                                      : std::clamp(1.25 * rate_ * long_enough(),
                                                   kLeastGrowth * last, kMostGrowth * last);
    const double affordable = rate_ * (seconds_left - 2 * round_trip_);
    const double n_bytes = std::min({wanted, affordable, static_cast<double>(kMostBytes)});
    // Much less than before would tell less than before.
    return n_bytes < last / 2 ? kNoMore : static_cast<std::uint64_t>(n_bytes);
  }

  LinkFacts facts() const {
    LinkFacts facts;
    facts.bytes_per_s = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(rate_));
    facts.round_trip_ns = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(1e9 * round_trip_));
    return facts;
  }

 private:
  double long_enough() const { return std::max(kLongEnough, kRoundTrips * round_trip_); }

  double round_trip_ = std::numeric_limits<double>::infinity();
  double rate_ = 0;    // the fastest of the largest probes
  double second_ = 0;  // the next to it
  std::uint64_t largest_ = 0;
  int n_long_ = 0;
};

class Prober {
 public:
  Prober(Group& group, double seconds, double each_s)
      : group_(group), timeout_s_(group.timeout_s() + seconds), each_s_(each_s) {}

  LinkFacts send_to(int member) {
    const auto before = path_facts(member);
    Estimate estimate;
    auto start = Clock::now();
    int step = 0;
    for (; step < kSteps; ++step) {
      const std::uint64_t next =
          step < kEmptySteps ? 0 : estimate.next(each_s_ - seconds_since(start));
      // The receiver is told, and has all it needs by the time its answer is here.
      const double asked = tell(next, member);
      if (step == 0) {
        start = Clock::now();  // the other one may have come late
      } else {
        estimate.add_round_trip(asked);
      }
      if (next == kNoMore) break;
      const double took = probe(next, group_.rank(), member);
      if (next == 0) {
        estimate.add_round_trip(took);
      } else {
        estimate.add(next, took);
      }
    }
    skip_rest(step);
    LinkFacts facts = estimate.facts();
    const auto after = path_facts(member);
    if (before && after) facts.lost_billionths = loss_between(*before, *after);
    return facts;
  }

  void receive_from(int member) {
    int step = 0;
    for (; step < kSteps; ++step) {
      std::uint64_t next = 0;
      group_.probe(view(&next, sizeof next), member, group_.rank(), timeout_s_)->wait();
      if (next == kNoMore) break;
      if (next > kMostBytes) {
        fail(ErrorKind::corrupt_frame,
             group_.about(member) + "announces a probe of " + std::to_string(next) + " bytes");
      }
      probe(next, member, group_.rank());
    }
    skip_rest(step);
  }

  void rest() { skip(2 * kSteps); }

 private:
  static TensorView view(void* data, std::size_t n_bytes) { return {data, n_bytes, DType::u8}; }

  double tell(std::uint64_t word, int member) {
    const auto start = Clock::now();
    group_.probe(view(&word, sizeof word), group_.rank(), member, timeout_s_)->wait();
    return seconds_since(start);
  }
  double probe(std::uint64_t n_bytes, int source, int destination) {
    fill(n_bytes);
    const auto start = Clock::now();
    group_.probe(view(bytes_.data(), n_bytes), source, destination, timeout_s_)->wait();
    return seconds_since(start);
  }
  /// Something that nobody on the way can compress.
  void fill(std::uint64_t n_bytes) {
    std::uint64_t x = 0x9e3779b97f4a7c15u;
    if (bytes_.size() * sizeof x >= n_bytes) return;
    bytes_.resize((n_bytes + sizeof x - 1) / sizeof x);
    for (std::uint64_t& each : bytes_) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      each = x;
    }
  }
  /// After a last step of one operation; none if all steps were done.
  void skip_rest(int last_step) {
    if (last_step < kSteps) skip(2 * (kSteps - last_step) - 1);
  }
  void skip(int n_operations) {
    for (int i = 0; i < n_operations; ++i)
      group_.skip()->wait();
  }

  std::optional<PathFacts> path_facts(int member) const {
    return group_.fabric()->path_facts(group_.ranks()[static_cast<std::size_t>(member)]);
  }
  Group& group_;
  double timeout_s_;
  double each_s_;  // for one direction
  std::vector<std::uint64_t> bytes_;
};

/// Of float32, in bytes of values a second; formats of fewer bits take as long, or less. The best
/// of a few times.
std::uint64_t rate_of_coding() {
  const auto codec = make_codec("fp32");
  const std::vector<float> x(kCodedElems, 1.0f);
  std::vector<float> sum(kCodedElems);
  std::vector<std::byte> payload(codec->wire_bytes(kCodedElems));
  double best_s = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kCodings; ++i) {
    const auto start = Clock::now();
    codec->encode(x, {}, payload);
    codec->decode_add(payload, 1.0f, sum);
    best_s = std::min(best_s, seconds_since(start));
  }
  return static_cast<std::uint64_t>(2.0 * sizeof(float) * kCodedElems / std::max(best_s, 1e-6));
}

}  // namespace

std::optional<std::uint32_t> loss_between(const PathFacts& before, const PathFacts& after) {
  if (after.segments_sent <= before.segments_sent) return std::nullopt;
  const auto sent = static_cast<double>(after.segments_sent - before.segments_sent);
  const auto again =
      static_cast<double>(after.segments_retransmitted - before.segments_retransmitted);
  return static_cast<std::uint32_t>(1e9 * std::min(1.0, again / sent));
}

std::vector<std::vector<int>> tournament(int n_members) {
  // The circle method: one place stands, the others move round; an odd number has an empty place.
  const int n_places = n_members + n_members % 2;
  std::vector<std::vector<int>> turns;
  for (int turn = 0; turn + 1 < n_places; ++turn) {
    const auto at = [&](int place) {
      return place == 0 ? 0 : 1 + (place - 1 + turn) % (n_places - 1);
    };
    std::vector<int> partner(static_cast<std::size_t>(n_members));
    for (int place = 0; place < n_places; ++place) {
      const int member = at(place), other = at(n_places - 1 - place);
      if (member >= n_members) continue;
      partner[static_cast<std::size_t>(member)] = other < n_members ? other : member;
    }
    turns.push_back(std::move(partner));
  }
  return turns;
}

double time_to_measure(int n_members) {
  return kSecondsADirection *
         static_cast<double>(2 * std::max<std::size_t>(1, tournament(n_members).size()));
}

LinkReport probe_links(Group& group, double seconds) {
  const auto n = static_cast<std::size_t>(group.size());
  LinkReport report{std::vector<LinkFacts>(n), std::vector<std::uint64_t>(n), rate_of_coding()};
  const auto turns = tournament(group.size());
  const double n_directions = 2 * std::max(1.0, static_cast<double>(turns.size()));
  Prober prober(group, seconds, seconds / n_directions);
  for (const auto& partners : turns) {
    const int partner = partners[static_cast<std::size_t>(group.rank())];
    for (const bool lower_sends : {true, false}) {
      if (partner == group.rank()) {
        prober.rest();
      } else if (lower_sends == (group.rank() < partner)) {
        report.to[static_cast<std::size_t>(partner)] = prober.send_to(partner);
      } else {
        prober.receive_from(partner);
      }
    }
  }
  return report;
}

}  // namespace fedcomm
