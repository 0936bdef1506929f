#include "transport/tcp_pacer.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

constexpr double kMuchLoss = 0.02;  // of the segments: more than a line loses by itself
constexpr double kMargin = 1.03;    // above what was delivered, so that the path is always full
constexpr double kFirstStep = 1.125, kStep = 1.25;  // when trying for more
constexpr double kFaster = 1.05;                    // a try has shown more than noise does
constexpr double kMet = 0.9;     // of the limit: it was the limit that held the streams back
constexpr double kTryRtts = 16;  // BBR looks for more in one of 8 round trips
// Acknowledgements wait in queues as well, so short spans say little.
constexpr double kShortestSpanS = 0.02, kLongestSpanS = 1;
constexpr double kShortestSpanRtts = 1, kLongestSpanRtts = 10;
constexpr double kLooksPerRtt = 8, kShortestPauseS = 2e-3;
constexpr double kQuietRtts = 4;  // without news: it has stopped, or is as good as lost
constexpr std::uint64_t kFewestSegments = 200;

Pacer::Clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<Pacer::Clock::duration>(std::chrono::duration<double>(seconds));
}

double seconds(Pacer::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

bool Pacer::watch(Load load, Clock::time_point now) {
  load_ = load;
  switch (phase_) {
    case Phase::idle:
      if (load == Load::none) return false;
      phase_ = Phase::starting;
      return true;
    case Phase::starting: return true;
    case Phase::filling: return now >= due_;
    case Phase::measuring:
      if (load != Load::backlog) phase_ = Phase::draining;
      return load == Load::none || now >= due_;
    case Phase::draining: return load != Load::in_flight || now >= due_;
  }
  return false;
}

bool Pacer::note(const Sample& sample) {
  rtt_s_ = sample.rtt_s;
  const auto fill = [&] {
    phase_ = Phase::filling;
    due_ = sample.at + duration_of(rtt_s_);
  };
  const auto measure = [&] {
    phase_ = Phase::measuring;
    begin_ = last_ = sample;
  };
  const auto seconds_since = [&](const Sample& before) { return seconds(sample.at - before.at); };
  bool has_ended = false;
  switch (phase_) {
    case Phase::idle: return false;
    case Phase::starting: fill(); return false;
    case Phase::filling: measure(); break;
    case Phase::measuring:
      if (sample.delivered_bytes > last_.delivered_bytes) last_ = sample;
      // A try that has failed need not go on; its rate says little by then.
      if (limit_ > 0 && mode_ == Mode::probing && is_much(loss_until(sample) - loss_before_)) {
        settle();
        measure();
        has_ended = true;
        break;
      }
      if (seconds_since(begin_) < std::max(kLongestSpanS, kLongestSpanRtts * rtt_s_)) break;
      has_ended = conclude(sample);
      measure();
      break;
    case Phase::draining:
      if (sample.delivered_bytes > last_.delivered_bytes) last_ = sample;
      if (load_ == Load::in_flight && seconds_since(last_) < kQuietRtts * rtt_s_) break;
      has_ended = conclude(sample);
      phase_ = Phase::idle;
      if (load_ == Load::backlog) fill();
      return has_ended;
  }
  due_ = sample.at + duration_of(std::max(kShortestPauseS, rtt_s_ / kLooksPerRtt));
  return has_ended;
}

Pacer::Clock::time_point Pacer::next_deadline() const {
  return phase_ == Phase::idle || phase_ == Phase::starting ? Clock::time_point::max() : due_;
}

/// A span ends with the last bytes that were acknowledged in it, not when that was noticed.
bool Pacer::conclude(const Sample& now) {
  const double length_s = seconds(last_.at - begin_.at);
  if (length_s < std::max(kShortestSpanS, kShortestSpanRtts * rtt_s_) ||
      now.sent_segments - begin_.sent_segments < kFewestSegments) {
    return false;
  }
  loss_ = loss_until(now);
  adjust(static_cast<double>(last_.delivered_bytes - begin_.delivered_bytes) / length_s, length_s);
  return true;
}

bool Pacer::is_much(double loss) const {
  return loss > std::max(kMuchLoss, 2 * expected_loss_);
}

double Pacer::loss_until(const Sample& now) const {
  const std::uint64_t n_sent = now.sent_segments - begin_.sent_segments;
  const std::uint64_t n_repeated = now.repeated_segments - begin_.repeated_segments;
  return n_sent < kFewestSegments ? 0
                                  : static_cast<double>(n_repeated) / static_cast<double>(n_sent);
}

void Pacer::adjust(double rate, double length_s) {
  n_clean_ = is_overrun() ? 0 : n_clean_ + 1;
  rates_[next_rate_] = rate;
  next_rate_ = (next_rate_ + 1) % rates_.size();
  if (limit_ == 0) {
    if (is_overrun()) try_more(kStep * best());
    return;
  }
  switch (mode_) {
    case Mode::probing:
      tried_s_ += length_s;
      if (rate > kFaster * rate_before_) return try_more(kStep * rate);
      if (tried_s_ < kTryRtts * rtt_s_ && !is_overrun()) return;
      return settle();
    case Mode::steady:
      if (is_overrun()) limit_ = kMargin * best();
      n_met_ = rate > kMet * limit_ ? n_met_ + 1 : 0;
      if (n_met_ >= kSpansBetweenTries) try_more(kFirstStep * best());
      return;
  }
}

void Pacer::settle() {
  mode_ = Mode::steady;
  n_met_ = 0;
  limit_ = kMargin * best();
}

void Pacer::try_more(double limit) {
  mode_ = Mode::probing;
  limit_ = limit;
  tried_s_ = 0;
  rate_before_ = best();
  loss_before_ = loss_.value_or(0);
}

double Pacer::best() const {
  return *std::max_element(rates_.begin(), rates_.end());
}

}  // namespace fedcomm::tcp
