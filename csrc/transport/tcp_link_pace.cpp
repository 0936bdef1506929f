// Link, the part that decides how fast, and over how many of its streams, it sends.
#include <algorithm>
#include <cmath>
#include <limits>

#include "transport/tcp_link.h"

namespace fedcomm::tcp {
namespace {

// What one stream holds unacknowledged without becoming the limit: half of the send buffer that
// Linux grows by itself (net.ipv4.tcp_wmem), as the other half is the kernel's own bookkeeping.
constexpr double kStreamBytes = 1u << 20;
// BBR rests every 10 s to find the round trip: not the whole link at once.
constexpr int kFewestStreams = 2;
constexpr int kSpansThatAgree = 4, kMuchFewer = 4;
constexpr double kNoticeable = 0.03;  // a change of the share that is worth system calls

}  // namespace

void Link::count(Pacer::Sample& sums, const Stream& stream) {
  const SocketFacts facts = facts_of(stream.fd());
  sums.delivered_bytes += facts.delivered_bytes;
  sums.sent_segments += facts.sent_segments;
  sums.repeated_segments += facts.retransmitted_segments;
}

Pacer::Sample Link::carried(Clock::time_point now) const {
  Pacer::Sample sums = gone_;
  sums.at = now;
  for (const Slot& slot : slots_) {
    if (!slot.stream) continue;
    count(sums, *slot.stream);
    const double rtt_s = facts_of(slot.stream->fd()).least_rtt_s;
    if (sums.rtt_s == 0 || rtt_s < sums.rtt_s) sums.rtt_s = rtt_s;
  }
  return sums;
}

Pacer::Load Link::load() const {
  if (sender_.drained() || n_connected_ == 0) return Pacer::Load::none;
  if (sender_.has_work(Takes::data)) return Pacer::Load::backlog;
  const bool all_busy = std::all_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return !slot.stream || !is_active(*slot.stream) || slot.stream->is_sending();
  });
  return all_busy ? Pacer::Load::backlog : Pacer::Load::in_flight;
}

/// The first stream is for what is short, where there are more.
Takes Link::takes_of(const Stream& stream) const {
  if (n_connected_ == 1) return Takes::all;
  return place_of(stream) == 0 ? Takes::shorts : Takes::data;
}

/// Streams that new data goes to. A slow path is filled by few, and many would send it their
/// packets one by one; where nobody knows the path yet, or somebody has said how many, it is all.
/// It shrinks only after several spans that agree: a stream that rested has old news of its path.
int Link::n_active() const {
  return std::max(1, std::min(n_enough_, n_connected_ - 1));
}

/// Whether new data goes to this stream.
bool Link::is_active(const Stream& stream) const {
  const int first = n_connected_ > 1 ? 1 : 0;
  const int place = place_of(stream);
  return place >= first && place < first + n_active();
}

/// Whether data should rather go to another stream: this one rests, and not all do.
bool Link::spares(Stream& stream) {
  const auto now = Clock::now();
  if (!is_paced_ || !stream.is_resting(now)) return false;
  return std::any_of(slots_.begin(), slots_.end(), [&](Slot& slot) {
    return slot.stream && is_active(*slot.stream) && !slot.stream->is_resting(now);
  });
}

void Link::count_enough() {
  const double bytes = pacer_.rate_bytes_per_s() * pacer_.rtt_s();
  if (options_.streams > 0 || bytes == 0) return;
  int n = kFewestStreams;
  while (n < kMaxStreams && n * kStreamBytes < bytes)
    n *= 2;
  // Not for a few: a path with losses has slow spans as well.
  n_spans_fewer_ = kMuchFewer * n <= n_active() ? n_spans_fewer_ + 1 : 0;
  if (n > n_enough_ || n_spans_fewer_ >= kSpansThatAgree) n_enough_ = n;
}

/// How many streams are connected before this one.
int Link::place_of(const Stream& stream) const {
  return static_cast<int>(std::count_if(slots_.begin(), slots_.begin() + stream.index(),
                                        [](const Slot& slot) { return slot.stream != nullptr; }));
}

/// Watches what all streams carry together, and holds them back to it.
void Link::pace(Clock::time_point now) {
  if (!is_paced_ || !pacer_.watch(load(), now)) return;
  if (!pacer_.note(carried(now))) return;
  count_enough();
  limit_paces();
}

void Link::share(double bytes_per_s, double common_loss) {
  pacer_.expect_loss(common_loss);
  if (std::abs(bytes_per_s - share_) <= kNoticeable * share_) return;
  share_ = bytes_per_s;
  limit_paces();
}

/// Of a shared uplink a link has its share, unless it has shown that it carries less.
double Link::pace_limit() const {
  const double own = pacer_.limit_bytes_per_s();
  if (own == 0 || (share_ > 0 && !pacer_.is_needed())) return share_;
  return share_ > 0 ? std::min(own, share_) : own;
}

/// Each stream may send its part; where one is lost, the others that one's.
void Link::limit_paces() {
  const double limit = pace_limit();
  if ((limit == 0 && !is_limited_) || n_connected_ == 0) return;
  is_limited_ = limit > 0;
  const auto each = is_limited_ ? static_cast<std::uint64_t>(limit / n_active())
                                : std::numeric_limits<std::uint64_t>::max();
  for (const Slot& slot : slots_) {
    if (slot.stream && takes_of(*slot.stream) != Takes::shorts) {
      limit_pace(slot.stream->fd(), each);
    }
  }
}

LinkStats Link::stats() const {
  LinkStats stats = stats_;
  stats.address = address_text_;
  stats.streams = n_connected_;
  stats.frame_bytes_sent = sender_.n_written();
  stats.frame_bytes_received = receiver_.n_received();
  const Pacer::Sample sums = carried(Clock::now());
  stats.sent_segments = sums.sent_segments;
  stats.retransmitted_segments = sums.repeated_segments;
  stats.pace_bytes_per_s = pace_limit();
  for (const Slot& slot : slots_) {
    if (!slot.stream) continue;
    stats.wire_bytes_sent += slot.stream->n_sent();
    stats.congestion = congestion_of(slot.stream->fd());
    const double rtt_s = facts_of(slot.stream->fd()).rtt_s;
    if (stats.rtt_s == 0 || rtt_s < stats.rtt_s) stats.rtt_s = rtt_s;
  }
  return stats;
}

}  // namespace fedcomm::tcp
