// How fast the streams of one link may send together: a limit for the sum of their paces.
//
// Congestion control finds a rate for each stream by itself, and the streams of a link compete with
// each other. Eight BBR streams over 1 Gbit/s with a queue of 25 ms lost 15 % of what they sent,
// and what waits for a repair comes a round trip later. The link as a whole knows better: what all
// of its streams delivered together, while there was always more to send, is what the path carries.
//
// It follows BBR's idea (Cardwell et al., "BBR", ACM Queue 14(5), 2016) for the sum: the largest
// delivery rate of the last spans, a little more than that as the pace, and now and then a try
// whether more is to be had. No limit is set before something was lost: a path that nobody overruns
// needs none.
//
// It opens no socket and reads no clock; the link tells it both.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

namespace fedcomm::tcp {

class Pacer {
 public:
  using Clock = std::chrono::steady_clock;

  /// Sums over all streams, also those that are gone.
  struct Sample {
    Clock::time_point at;
    std::uint64_t delivered_bytes = 0;  // acknowledged, in order or not
    std::uint64_t sent_segments = 0;
    std::uint64_t repeated_segments = 0;  // among them
    double rtt_s = 0;                     // the least there was
  };

  enum class Load : std::uint8_t {
    none,
    in_flight,  // all is with the streams, and has not been acknowledged
    backlog,    // there is more than the streams take
  };
  /// Returns whether `note` should be called now.
  bool watch(Load load, Clock::time_point now);
  /// Returns whether a span has ended with it, and rate and limit may be others.
  bool note(const Sample& sample);
  /// When `watch` wants to be called although nothing happens; max() where nothing is under way.
  Clock::time_point next_deadline() const;
  /// Streams have come or gone: what is being measured means nothing.
  void abandon() { phase_ = Phase::idle; }
  /// A share of the segments that is lost for another reason than the pace; up to twice of it is no
  /// reason to slow down.
  void expect_loss(double share) { expected_loss_ = share; }

  /// For all streams together; 0: none.
  double limit_bytes_per_s() const { return limit_; }
  /// Whether the last spans have shown the limit to be needed.
  bool is_needed() const { return n_clean_ < kSpansBetweenTries; }
  /// The most that the last spans delivered; 0: unknown.
  double rate_bytes_per_s() const { return best(); }
  double rtt_s() const { return rtt_s_; }
  /// Of the last span; nothing before there was one.
  std::optional<double> loss() const { return loss_; }

 private:
  enum class Phase : std::uint8_t {
    idle,
    starting,   // something is sent: the round trip is asked for
    filling,    // for a round trip, until what is acknowledged is what was sent since
    measuring,  // a span
    draining,   // the backlog is gone, but what it sent has yet to be acknowledged
  };
  enum class Mode : std::uint8_t { steady, probing };
  static constexpr int kSpansBetweenTries = 4;

  bool conclude(const Sample& now);
  void adjust(double rate, double length_s);
  void settle();
  bool is_overrun() const { return is_much(*loss_); }
  bool is_much(double loss) const;
  double loss_until(const Sample& now) const;
  void try_more(double limit);
  double best() const;

  Phase phase_ = Phase::idle;
  Load load_ = Load::none;
  Clock::time_point due_{};
  Sample begin_, last_;  // of the span; the last one that brought something
  double rtt_s_ = 0;

  Mode mode_ = Mode::probing;
  std::array<double, 3> rates_{};  // of the last spans, bytes a second
  std::size_t next_rate_ = 0;
  int n_clean_ = 0;                           // spans in a row in which it was not overrun
  int n_met_ = 0;                             // spans in a row that reached the limit
  double tried_s_ = 0;                        // how long the current limit has been tried
  double rate_before_ = 0, loss_before_ = 0;  // it was
  double limit_ = 0;
  double expected_loss_ = 0;
  std::optional<double> loss_;
};

}  // namespace fedcomm::tcp
