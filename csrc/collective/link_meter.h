// LinkMeter: the rate at which frames of one member come in, from traffic that flows anyhow. It
// sees what the link did, which may be less than it could do: of several spans of time the best.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace fedcomm {

/// What passed between this member and another one in this group.
struct LinkTraffic {
  std::uint64_t payload_bytes_sent = 0;
  std::uint64_t payload_bytes_received = 0;
  std::uint64_t frame_bytes_sent = 0;
  std::uint64_t frame_bytes_received = 0;
  std::uint64_t received_rate = 0;  // bytes a second, the best of late; 0: too little came
};

class LinkMeter {
 public:
  using Clock = std::chrono::steady_clock;

  /// A frame has arrived. Returns the rate so far.
  std::uint64_t note(std::size_t n_bytes, Clock::time_point now) {
    const bool idle = now - last_ > kLongestGap;
    last_ = now;
    if (idle) {  // what comes at once may have piled up: when it was sent nobody knows
      begin_ = now + kSpan;
      counting_ = false;
    }
    if (!counting_) {
      if (now < begin_) return best();
      counting_ = true;  // from this frame on, without it
      begin_ = now;
      n_bytes_ = largest_ = 0;
      return best();
    }
    n_bytes_ += n_bytes;
    largest_ = std::max(largest_, n_bytes);
    const std::chrono::duration<double> span = now - begin_;
    const bool enough = n_bytes_ >= std::max(kFewestBytes, 8 * largest_);
    if (span < kSpan || (!enough && span < kLongestSpan)) return best();
    if (enough) {
      // Of frames that ended in the span, some bytes came before it: two frames' worth, say.
      rates_[next_++ % rates_.size()] =
          static_cast<std::uint64_t>(static_cast<double>(n_bytes_ - 2 * largest_) / span.count());
    }
    begin_ = now;
    n_bytes_ = largest_ = 0;
    return best();
  }
  /// What lies in buffers when nobody looked would seem to come all at once.
  void pause() { last_ = {}; }
  void forget() { *this = {}; }

 private:
  static constexpr auto kSpan = std::chrono::milliseconds(400);
  static constexpr auto kLongestSpan = std::chrono::seconds(10);
  static constexpr auto kLongestGap = std::chrono::seconds(2);
  static constexpr std::size_t kFewestBytes = 16u << 20;

  std::uint64_t best() const { return *std::max_element(rates_.begin(), rates_.end()); }

  Clock::time_point begin_{};
  Clock::time_point last_{};
  bool counting_ = false;
  std::size_t n_bytes_ = 0;
  std::size_t largest_ = 0;
  std::array<std::uint64_t, 16> rates_{};
  std::size_t next_ = 0;
};

}  // namespace fedcomm
