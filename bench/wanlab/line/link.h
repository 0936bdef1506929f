// What a link does to a packet, as arithmetic on times: a transmitter with a rate and a drop-tail
// queue, random loss, and a delay that may wander. It opens nothing and reads no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>

namespace fedcomm::wanlab {

using Time = std::int64_t;  // nanoseconds

/// Sends one packet after the other at a rate. Those that would have to wait for longer than the
/// queue are dropped.
class Transmitter {
 public:
  /// bits_per_s: 0 is no limit.
  void set(double bits_per_s, Time queue);
  /// When the last bit of a packet that arrives at `arrival` has left, or nothing: it was dropped.
  std::optional<Time> send(Time arrival, std::size_t n_bytes);
  double bits_per_s() const { return bits_per_s_; }

 private:
  double bits_per_s_ = 0;
  Time queue_ = 0;
  Time free_at_ = 0;
};

/// Loses each packet with the same probability. It draws how many survive until the next loss, so a
/// packet costs a decrement.
class Loss {
 public:
  explicit Loss(std::uint64_t seed) : random_(seed) {}
  void set(double probability);
  bool hits_next();

 private:
  void draw();

  std::mt19937_64 random_;
  double probability_ = 0;
  std::uint64_t survivors_ = 0;
};

/// A delay that wanders within +-jitter: new values are drawn every 10 ms, with straight lines in
/// between. Packets never overtake each other.
class Delay {
 public:
  explicit Delay(std::uint64_t seed) : random_(seed) {}
  void set(Time delay, Time jitter);
  /// When what has left at `departure` arrives. Departures must not go back in time.
  Time arrival(Time departure);

 private:
  double draw();

  std::mt19937_64 random_;
  Time delay_ = 0, jitter_ = 0;
  Time period_begin_ = 0, last_arrival_ = 0;
  double from_ = 0, to_ = 0;  // offsets at the two ends of the period
};

}  // namespace fedcomm::wanlab
