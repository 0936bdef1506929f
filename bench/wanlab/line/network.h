// All links of a laboratory: what happens to a packet between the cloud that sends it and the one
// that gets it. Uplink of the sender, link of the pair, delay, downlink of the receiver:
//
//   cloud a -> [uplink a] -> [rate and queue of a->b] -> loss -> delay -> [downlink b] -> cloud b
//
// It knows packets and times, but neither devices nor clocks: whoever uses it reads and writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <queue>
#include <span>
#include <vector>

#include "link.h"
#include "packet.h"

namespace fedcomm::wanlab {

struct LinkSettings {
  double bits_per_s = 0;  // 0: no limit
  Time queue = 0, delay = 0, jitter = 0;
  double loss = 0;
};

/// Of one direction of a pair, in packets and bytes of the wire.
struct Counters {
  std::uint64_t sent = 0, sent_bytes = 0;
  std::uint64_t delivered = 0, delivered_bytes = 0;
  std::uint64_t dropped = 0;  // by full queues
  std::uint64_t lost = 0;     // at random, or because the link was cut
};

/// What is ready for a cloud.
struct Delivery {
  std::size_t cloud;
  Time due;
  std::vector<std::byte> packet;
};

class Network {
 public:
  Network(std::size_t n_clouds, std::uint64_t seed);

  std::size_t n_clouds() const { return n_clouds_; }
  void set_link(std::size_t from, std::size_t to, const LinkSettings& settings);
  void set_uplink(std::size_t cloud, double bits_per_s, Time queue);
  void set_downlink(std::size_t cloud, double bits_per_s, Time queue);
  /// A cut link loses all that is sent until it is mended; what is in flight still arrives.
  void set_cut(std::size_t from, std::size_t to, bool is_cut);

  /// Takes a packet that `from` sends at `now`; later calls must not have an earlier `now`.
  void send(std::size_t from, Bytes packet, Time now);
  /// The time from which on next() has something to give, or nothing: no packet is on its way.
  std::optional<Time> next_event() const;
  /// The next packet that has arrived by `now`, in order of arrival.
  std::optional<Delivery> next(Time now);

  const Counters& counters(std::size_t from, std::size_t to) const;

 private:
  struct Pair {
    Pair(std::uint64_t loss_seed, std::uint64_t delay_seed) : loss(loss_seed), delay(delay_seed) {}
    Transmitter transmitter;
    Loss loss;
    Delay delay;
    bool is_cut = false;
    Counters counters;
  };
  enum class Stage : std::uint8_t { at_downlink, at_cloud };
  struct Event {
    Time at;
    std::uint64_t order;  // of events at the same time: first come, first served
    Stage stage;
    std::size_t from, to;
    std::vector<std::byte> packet;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.at != b.at ? a.at > b.at : a.order > b.order;
    }
  };

  Pair& pair(std::size_t from, std::size_t to);
  /// For how long the wire may be busy with what is handed on as one packet, in the packet's bytes.
  std::size_t piece_bytes(std::size_t from, std::size_t to);
  void push(Event event);
  Event pop();
  std::optional<Event> through_downlink(Event event);

  std::size_t n_clouds_;
  std::vector<Pair> pairs_;
  std::vector<Transmitter> uplinks_, downlinks_;
  std::priority_queue<Event, std::vector<Event>, Later> events_;
  std::uint64_t n_events_ = 0;
  std::size_t held_bytes_ = 0;
};

}  // namespace fedcomm::wanlab
