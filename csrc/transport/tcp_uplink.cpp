#include "transport/tcp_uplink.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

constexpr std::chrono::milliseconds kDivideEvery{20};
// Of an equal part: less would not be noticed in time when a link gets more to send.
constexpr double kLeastPart = 0.25;

}  // namespace

void Uplink::pace(std::span<Link* const> links, Clock::time_point now) {
  std::vector<Link*> loaded;
  for (Link* link : links) {
    if (link->is_paced() && link->load() == Pacer::Load::backlog) loaded.push_back(link);
  }
  const bool was_shared = std::exchange(is_shared_, loaded.size() > 1);
  if (!is_shared_ && !was_shared) return;
  if (total_.watch(is_shared_ ? Pacer::Load::backlog : Pacer::Load::none, now)) {
    Pacer::Sample sums;
    sums.at = now;
    for (const Link* link : links) {
      const Pacer::Sample each = link->carried(now);
      sums.delivered_bytes += each.delivered_bytes;
      sums.sent_segments += each.sent_segments;
      sums.repeated_segments += each.repeated_segments;
      sums.rtt_s = std::max(sums.rtt_s, each.rtt_s);
    }
    total_.note(sums);
  }
  if (!is_shared_) {
    total_.abandon();
    next_ = Clock::time_point::max();
    for (Link* link : links)
      link->share(0, 0);
  } else if (!was_shared || now >= next_) {
    divide(loaded);
    next_ = now + kDivideEvery;
  }
}

void Uplink::divide(std::span<Link* const> loaded) {
  double n_bytes = 0;
  for (const Link* link : loaded)
    n_bytes += static_cast<double>(link->backlog_bytes());
  const double equal = total_.limit_bytes_per_s() / static_cast<double>(loaded.size());
  for (Link* link : loaded) {
    const double part = n_bytes > 0 ? total_.limit_bytes_per_s() *
                                          static_cast<double>(link->backlog_bytes()) / n_bytes
                                    : equal;
    link->share(std::max(part, kLeastPart * equal), total_.loss().value_or(1));
  }
}

}  // namespace fedcomm::tcp
