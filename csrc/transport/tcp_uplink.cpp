#include "transport/tcp_uplink.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

constexpr std::chrono::milliseconds kDivideEvery{20};
constexpr double kLeastPart = 0.25;

}  // namespace

std::vector<double> parts_of(double limit, std::span<const std::size_t> backlogs) {
  double n_bytes = 0;
  for (const std::size_t each : backlogs)
    n_bytes += static_cast<double>(each);
  const double equal = limit / static_cast<double>(backlogs.size());
  std::vector<double> parts;
  for (const std::size_t each : backlogs) {
    const double part = n_bytes > 0 ? limit * static_cast<double>(each) / n_bytes : equal;
    parts.push_back(std::max(part, kLeastPart * equal));
  }
  return parts;
}

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
  std::vector<std::size_t> backlogs;
  for (const Link* link : loaded)
    backlogs.push_back(link->backlog_bytes());
  const std::vector<double> parts = parts_of(total_.limit_bytes_per_s(), backlogs);
  for (std::size_t i = 0; i < loaded.size(); ++i)
    loaded[i]->share(parts[i], total_.loss().value_or(1));
}

}  // namespace fedcomm::tcp
