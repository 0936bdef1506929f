#include "link.h"

#include <algorithm>
#include <cmath>

namespace fedcomm::wanlab {
namespace {

constexpr Time kJitterPeriod = 10'000'000;

/// In (0, 1], the same on every platform (std's distributions are not).
double uniform(std::mt19937_64& random) {
  return (static_cast<double>(random() >> 11) + 1) * 0x1p-53;
}

}  // namespace

void Transmitter::set(double bits_per_s, Time queue) {
  bits_per_s_ = bits_per_s;
  queue_ = queue;
}

std::optional<Time> Transmitter::send(Time arrival, std::size_t n_bytes) {
  if (bits_per_s_ == 0) return arrival;
  const Time begin = std::max(arrival, free_at_);
  if (begin - arrival > queue_) return std::nullopt;
  free_at_ = begin + std::llround(static_cast<double>(n_bytes) * 8e9 / bits_per_s_);
  return free_at_;
}

void Loss::set(double probability) {
  probability_ = probability;
  draw();
}

bool Loss::hits_next() {
  if (probability_ == 0) return false;
  if (survivors_ > 0) {
    --survivors_;
    return false;
  }
  draw();
  return true;
}

/// The number of survivors before a loss has a geometric distribution.
void Loss::draw() {
  if (probability_ >= 1) {
    survivors_ = 0;
  } else if (probability_ > 0) {
    const double n = std::floor(std::log(uniform(random_)) / std::log1p(-probability_));
    survivors_ = n < 1e18 ? static_cast<std::uint64_t>(n) : std::uint64_t{1} << 60;
  }
}

void Delay::set(Time delay, Time jitter) {
  delay_ = delay;
  jitter_ = jitter;
}

double Delay::draw() {
  return 2 * uniform(random_) - 1;
}

Time Delay::arrival(Time departure) {
  Time arrival = departure + delay_;
  if (jitter_ != 0) {
    if (departure - period_begin_ >= kJitterPeriod) {
      const bool follows = departure - period_begin_ < 2 * kJitterPeriod;
      from_ = follows ? to_ : draw();
      to_ = draw();
      period_begin_ = departure - departure % kJitterPeriod;
    }
    const double share =
        static_cast<double>(departure - period_begin_) / static_cast<double>(kJitterPeriod);
    arrival += std::llround((from_ + (to_ - from_) * share) * static_cast<double>(jitter_));
  }
  last_arrival_ = std::max({arrival, last_arrival_, departure});
  return last_arrival_;
}

}  // namespace fedcomm::wanlab
