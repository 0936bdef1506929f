#include "network.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace fedcomm::wanlab {
namespace {

// A packet that stands for many segments is handed on in pieces of this many seconds of the wire,
// as a network card with interrupt coalescing would: time stays true to a fraction of a
// millisecond, and a fast link does not cost a system call for each 1500 bytes.
constexpr double kPieceSeconds = 500e-6;
// Delay times rate is what a laboratory keeps in memory; a flood on a link without a rate must not.
constexpr std::size_t kMaxHeldBytes = std::size_t{1} << 30;

}  // namespace

Network::Network(std::size_t n_clouds, std::uint64_t seed)
    : n_clouds_(n_clouds), uplinks_(n_clouds), downlinks_(n_clouds) {
  std::mt19937_64 seeds(seed);
  pairs_.reserve(n_clouds * n_clouds);
  for (std::size_t i = 0; i < n_clouds * n_clouds; ++i) {
    const std::uint64_t loss_seed = seeds();
    pairs_.emplace_back(loss_seed, seeds());
  }
}

Network::Pair& Network::pair(std::size_t from, std::size_t to) {
  return pairs_[from * n_clouds_ + to];
}

const Counters& Network::counters(std::size_t from, std::size_t to) const {
  return pairs_[from * n_clouds_ + to].counters;
}

void Network::set_link(std::size_t from, std::size_t to, const LinkSettings& settings) {
  Pair& link = pair(from, to);
  link.transmitter.set(settings.bits_per_s, settings.queue);
  link.delay.set(settings.delay, settings.jitter);
  link.loss.set(settings.loss);
}

void Network::set_uplink(std::size_t cloud, double bits_per_s, Time queue) {
  uplinks_[cloud].set(bits_per_s, queue);
}

void Network::set_downlink(std::size_t cloud, double bits_per_s, Time queue) {
  downlinks_[cloud].set(bits_per_s, queue);
}

void Network::set_cut(std::size_t from, std::size_t to, bool is_cut) {
  pair(from, to).is_cut = is_cut;
}

std::size_t Network::piece_bytes(std::size_t from, std::size_t to) {
  std::size_t least = std::numeric_limits<std::size_t>::max();
  for (const Transmitter* stage : {&uplinks_[from], &pair(from, to).transmitter, &downlinks_[to]}) {
    if (stage->bits_per_s() == 0) continue;
    least = std::min(least, static_cast<std::size_t>(stage->bits_per_s() / 8 * kPieceSeconds));
  }
  return least;
}

void Network::send(std::size_t from, Bytes packet, Time now) {
  const std::optional<Layout> layout = parse(packet);
  if (!layout) return;
  const std::size_t to = layout->destination - std::size_t{1};  // clouds are numbered from 1
  if (layout->destination == 0 || to >= n_clouds_ || to == from) return;
  Pair& link = pair(from, to);
  const std::size_t enough = piece_bytes(from, to);

  std::size_t first = 0, n = 0, n_bytes = 0;  // the piece that is being collected
  Time departure = 0;
  const auto hand_on = [&](std::size_t next_first) {
    if (n > 0) {
      push({link.delay.arrival(departure), 0, Stage::at_downlink, from, to,
            cut(packet, *layout, first, n)});
    }
    first = next_first;
    n = n_bytes = 0;
  };
  for (std::size_t i = 0; i < layout->n_segments; ++i) {
    const std::size_t wire_bytes = layout->wire_bytes(i);
    ++link.counters.sent;
    link.counters.sent_bytes += wire_bytes;
    std::optional<Time> sent;
    if (held_bytes_ < kMaxHeldBytes) sent = uplinks_[from].send(now, wire_bytes);
    if (sent) sent = link.transmitter.send(*sent, wire_bytes);
    if (!sent) {
      ++link.counters.dropped;
      hand_on(i + 1);
      continue;
    }
    if (link.loss.hits_next() || link.is_cut) {  // the wire was busy with it all the same
      ++link.counters.lost;
      hand_on(i + 1);
      continue;
    }
    departure = *sent;
    ++n;
    n_bytes += wire_bytes;
    if (n_bytes >= enough) hand_on(i + 1);
  }
  hand_on(layout->n_segments);
}

void Network::push(Event event) {
  event.order = n_events_++;
  held_bytes_ += event.packet.size();
  events_.push(std::move(event));
}

Network::Event Network::pop() {
  // top() is const because a change might break the order of the queue; it is removed at once.
  Event event = std::move(const_cast<Event&>(events_.top()));
  events_.pop();
  held_bytes_ -= event.packet.size();
  return event;
}

std::optional<Time> Network::next_event() const {
  if (events_.empty()) return std::nullopt;
  return events_.top().at;
}

std::optional<Delivery> Network::next(Time now) {
  while (!events_.empty() && events_.top().at <= now) {
    Event event = pop();
    if (event.stage == Stage::at_downlink && downlinks_[event.to].bits_per_s() != 0) {
      if (std::optional<Event> delayed = through_downlink(std::move(event)))
        push(std::move(*delayed));
      continue;
    }
    const Layout layout = *parse(event.packet);  // it was valid when it was sent
    Counters& counters = pair(event.from, event.to).counters;
    counters.delivered += layout.n_segments;
    for (std::size_t i = 0; i < layout.n_segments; ++i)
      counters.delivered_bytes += layout.wire_bytes(i);
    return Delivery{event.to, event.at, std::move(event.packet)};
  }
  return std::nullopt;
}

/// The segments for which the queue of the downlink has room, if any, with the time of the last.
std::optional<Network::Event> Network::through_downlink(Event event) {
  const Layout layout = *parse(event.packet);
  const Time arrival = event.at;
  std::size_t n = 0;
  for (; n < layout.n_segments; ++n) {
    const std::optional<Time> sent = downlinks_[event.to].send(arrival, layout.wire_bytes(n));
    if (!sent) break;
    event.at = *sent;
  }
  pair(event.from, event.to).counters.dropped += layout.n_segments - n;
  if (n == 0) return std::nullopt;
  if (n < layout.n_segments) event.packet = cut(event.packet, layout, 0, n);
  event.stage = Stage::at_cloud;
  return event;
}

}  // namespace fedcomm::wanlab
