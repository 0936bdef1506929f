#include "transport/tcp_pacer.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

constexpr double kMuchLoss = 0.02;  // of the segments: more than a line loses by itself
constexpr double kMargin = 1.03;    // above what was delivered, so that the path is always full
constexpr double kFirstStep = 1.125, kStep = 1.25;  // when trying for more
constexpr double kFaster = 1.05;                    // a try has shown more than noise does
constexpr double kMet = 0.9;  // of the limit: it was the limit that held the streams back
constexpr int kSpansBetweenTries = 4;
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
      return now >= due_;
    case Phase::draining: return load != Load::in_flight || now >= due_;
  }
  return false;
}

void Pacer::note(const Sample& sample) {
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
  switch (phase_) {
    case Phase::idle: return;
    case Phase::starting: return fill();
    case Phase::filling: measure(); break;
    case Phase::measuring:
      if (sample.delivered_bytes > last_.delivered_bytes) last_ = sample;
      if (seconds_since(begin_) < std::max(kLongestSpanS, kLongestSpanRtts * rtt_s_)) break;
      conclude(sample);
      measure();
      break;
    case Phase::draining:
      if (sample.delivered_bytes > last_.delivered_bytes) last_ = sample;
      if (load_ == Load::in_flight && seconds_since(last_) < kQuietRtts * rtt_s_) break;
      conclude(sample);
      if (load_ == Load::backlog) return fill();
      phase_ = Phase::idle;
      return;
  }
  due_ = sample.at + duration_of(std::max(kShortestPauseS, rtt_s_ / kLooksPerRtt));
}

Pacer::Clock::time_point Pacer::next_deadline() const {
  return phase_ == Phase::idle || phase_ == Phase::starting ? Clock::time_point::max() : due_;
}

/// A span ends with the last bytes that were acknowledged in it, not when that was noticed.
void Pacer::conclude(const Sample& now) {
  const double length_s = seconds(last_.at - begin_.at);
  const std::uint64_t n_sent = now.sent_segments - begin_.sent_segments;
  if (length_s < std::max(kShortestSpanS, kShortestSpanRtts * rtt_s_) || n_sent < kFewestSegments) {
    return;
  }
  const std::uint64_t n_repeated = now.repeated_segments - begin_.repeated_segments;
  adjust(static_cast<double>(last_.delivered_bytes - begin_.delivered_bytes) / length_s,
         static_cast<double>(n_repeated) / static_cast<double>(n_sent));
}

void Pacer::adjust(double rate, double loss) {
  const double before = best();
  rates_[next_rate_] = rate;
  next_rate_ = (next_rate_ + 1) % rates_.size();
  if (limit_ == 0) {
    if (loss > kMuchLoss) limit_ = kStep * best();
    return;
  }
  switch (mode_) {
    case Mode::probing:
      if (rate > kFaster * before) {
        limit_ = kStep * rate;
        return;
      }
      mode_ = Mode::steady;
      n_met_ = 0;
      limit_ = kMargin * best();
      return;
    case Mode::steady:
      if (loss > kMuchLoss) limit_ = kMargin * best();
      n_met_ = rate > kMet * limit_ ? n_met_ + 1 : 0;
      if (n_met_ < kSpansBetweenTries) return;
      mode_ = Mode::probing;
      limit_ = kFirstStep * best();
      return;
  }
}

double Pacer::best() const {
  return *std::max_element(rates_.begin(), rates_.end());
}

}  // namespace fedcomm::tcp
