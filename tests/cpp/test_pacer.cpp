// The pace of a link on a path that is a few lines of arithmetic: what is sent above its rate is
// lost and sent again. How it fares on links with a queue and 8 BBR streams shows in bench/wanlab.
#include <algorithm>
#include <deque>

#include "check.h"
#include "transport/tcp_pacer.h"

namespace fedcomm {
namespace {

using tcp::Pacer;
using Load = Pacer::Load;

constexpr double kTickS = 1e-3, kRttS = 0.05, kSegment = 1448;

class Path {
 public:
  explicit Path(double rate) : rate_(rate) {}
  void set_rate(double rate) { rate_ = rate; }
  void set_random_loss(double share) { random_loss_ = share; }

  /// Sends so many bytes, as fast as the pacer lets it, or at `unpaced` times the path's rate, and
  /// waits until all has been acknowledged.
  void burst(Pacer& pacer, double n_bytes, double unpaced = 1.5) {
    double left = n_bytes, in_flight = 0;
    while (left > 0 || in_flight > 0) {
      now_ +=
          std::chrono::duration_cast<Pacer::Clock::duration>(std::chrono::duration<double>(kTickS));
      const double pace = pacer.limit_bytes_per_s() > 0
                              ? std::min(pacer.limit_bytes_per_s(), unpaced * rate_)
                              : unpaced * rate_;
      const double sent = std::min(left, pace * kTickS);
      const double arrived = std::min(sent, rate_ * kTickS) * (1 - random_loss_);
      left -= arrived;
      if (left < 1) left = 0;
      sent_ += sent;
      repeated_ += sent - arrived;
      in_flight += arrived;
      pipe_.push_back(arrived);
      if (static_cast<double>(pipe_.size()) > kRttS / kTickS) {
        delivered_ += pipe_.front();
        in_flight -= pipe_.front();
        pipe_.pop_front();
      }
      if (in_flight < 1) in_flight = 0;
      look(pacer, left > 0 ? Load::backlog : in_flight > 0 ? Load::in_flight : Load::none);
    }
    pipe_.clear();
  }

  double longest_wait_s() const { return longest_wait_s_; }

 private:
  void look(Pacer& pacer, Load load) {
    if (pacer.watch(load, now_)) {
      pacer.note({.at = now_,
                  .delivered_bytes = static_cast<std::uint64_t>(delivered_),
                  .sent_segments = static_cast<std::uint64_t>(sent_ / kSegment),
                  .repeated_segments = static_cast<std::uint64_t>(repeated_ / kSegment),
                  .rtt_s = kRttS});
    }
    if (load == Load::none) return;
    const double wait = std::chrono::duration<double>(pacer.next_deadline() - now_).count();
    longest_wait_s_ = std::max(longest_wait_s_, wait);
  }

  double rate_, random_loss_ = 0;
  double sent_ = 0, repeated_ = 0, delivered_ = 0;
  std::deque<double> pipe_;
  Pacer::Clock::time_point now_{std::chrono::hours(1)};
  double longest_wait_s_ = 0;
};

/// How many of so many bursts were held to within a few percent of the rate.
int n_close(Pacer& pacer, Path& path, double rate, double n_bytes, int n_bursts) {
  int n = 0;
  for (int i = 0; i < n_bursts; ++i) {
    path.burst(pacer, n_bytes);
    const double share = pacer.limit_bytes_per_s() / rate;
    n += share > 0.97 && share < 1.06;
  }
  return n;
}

}  // namespace

TEST(pacer_leaves_a_path_alone_that_nobody_overruns) {
  Pacer pacer;
  Path path(120e6);
  for (int i = 0; i < 10; ++i)
    path.burst(pacer, 64e6, 0.9);
  CHECK_EQUAL(pacer.limit_bytes_per_s(), 0.0);
}

TEST(pacer_finds_the_rate_of_a_path_that_is_overrun) {
  for (const double rate : {5e6, 120e6, 1200e6}) {
    Pacer pacer;
    Path path(rate);
    for (int i = 0; i < 6; ++i)
      path.burst(pacer, rate / 2);
    // One burst of five tries for more, and what it has learnt is undone by the next.
    CHECK(n_close(pacer, path, rate, rate / 2, 20) >= 15);
    CHECK(pacer.limit_bytes_per_s() < 1.3 * rate);
  }
}

TEST(pacer_learns_from_bursts_of_a_few_round_trips) {
  Pacer pacer;
  Path path(120e6);
  for (int i = 0; i < 8; ++i)
    path.burst(pacer, 17e6);
  CHECK(n_close(pacer, path, 120e6, 17e6, 20) >= 15);
}

TEST(pacer_finds_out_that_a_path_got_faster) {
  Pacer pacer;
  Path path(30e6);
  for (int i = 0; i < 10; ++i)
    path.burst(pacer, 15e6);
  path.set_rate(120e6);
  for (int i = 0; i < 16; ++i)
    path.burst(pacer, 60e6, 3);
  CHECK(pacer.limit_bytes_per_s() > 0.97 * 120e6);
}

TEST(pacer_finds_out_that_a_path_got_slower) {
  Pacer pacer;
  Path path(120e6);
  for (int i = 0; i < 10; ++i)
    path.burst(pacer, 60e6);
  path.set_rate(30e6);
  for (int i = 0; i < 6; ++i)
    path.burst(pacer, 15e6, 6);
  CHECK(pacer.limit_bytes_per_s() < 1.3 * 30e6);
  CHECK(pacer.limit_bytes_per_s() > 0.97 * 30e6);
}

TEST(pacer_is_not_held_down_by_losses_that_no_pace_avoids) {
  Pacer pacer;
  Path path(30e6);
  path.set_random_loss(0.04);
  for (int i = 0; i < 10; ++i)
    path.burst(pacer, 15e6);
  path.set_rate(120e6);
  for (int i = 0; i < 24; ++i)
    path.burst(pacer, 60e6, 3);
  CHECK(pacer.limit_bytes_per_s() > 0.9 * 120e6);
}

TEST(pacer_learns_nothing_from_what_fits_into_a_round_trip) {
  Pacer pacer;
  Path path(120e6);
  for (int i = 0; i < 10; ++i)
    path.burst(pacer, 60e6);
  const double limit = pacer.limit_bytes_per_s();
  path.set_random_loss(0.5);
  for (int i = 0; i < 50; ++i)
    path.burst(pacer, 100e3);
  CHECK_EQUAL(pacer.limit_bytes_per_s(), limit);
}

TEST(pacer_wants_to_be_asked_again_while_anything_is_under_way) {
  Pacer pacer;
  Path path(120e6);
  for (int i = 0; i < 5; ++i)
    path.burst(pacer, 60e6);
  CHECK(path.longest_wait_s() <= kRttS);
  CHECK(pacer.next_deadline() == Pacer::Clock::time_point::max());
}

TEST(pacer_forgets_a_span_in_which_a_stream_was_lost) {
  Pacer pacer;
  const Pacer::Clock::time_point start{std::chrono::hours(1)};
  const auto at = [&](int ms) { return start + std::chrono::milliseconds(ms); };
  CHECK(pacer.watch(Load::backlog, at(0)));
  pacer.note({.at = at(0), .rtt_s = kRttS});
  CHECK(!pacer.watch(Load::backlog, at(49)));
  CHECK(pacer.watch(Load::backlog, at(50)));
  pacer.note({.at = at(50), .rtt_s = kRttS});
  pacer.abandon();
  CHECK(pacer.watch(Load::backlog, at(400)));  // begins anew
  pacer.note({.at = at(400),
              .delivered_bytes = 1000000,
              .sent_segments = 2000,
              .repeated_segments = 1000,
              .rtt_s = kRttS});
  CHECK_EQUAL(pacer.limit_bytes_per_s(), 0.0);
  CHECK(pacer.next_deadline() == at(450));
}

}  // namespace fedcomm
