// Tests of the delay line's arithmetic, part of fedcomm-tests: packets are cut as a network card
// would, and come when and as often as asked. That kernels accept them is tested by
// tests/test_wanlab.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "check.h"
#include "control.h"
#include "network.h"

namespace {

using namespace fedcomm::wanlab;

constexpr Time kMs = 1'000'000;

struct Made {
  bool ipv6 = false;
  std::size_t payload = 100, segment = 0;  // segment 0: one packet, no offload
  std::uint16_t to = 2;
  bool udp = false;
};

/// As the kernel would hand it over; payload bytes count up from 0.
std::vector<std::byte> packet_of(const Made& made) {
  const std::size_t ip = made.ipv6 ? 40 : 20, transport = made.udp ? 8 : 20;
  std::vector<std::byte> packet(10 + ip + transport + made.payload);
  const auto set = [&](std::size_t at, std::size_t value) {
    packet[10 + at] = static_cast<std::byte>(value);
  };
  VirtioHeader virtio;
  virtio.flags = 1;
  virtio.checksum_begin = static_cast<std::uint16_t>(ip);
  virtio.checksum_offset = made.udp ? 6 : 16;
  if (made.segment > 0) {
    virtio.gso_type = made.udp    ? VirtioHeader::kUdp
                      : made.ipv6 ? VirtioHeader::kTcp6
                                  : VirtioHeader::kTcp4;
    virtio.segment_bytes = static_cast<std::uint16_t>(made.segment);
  }
  std::memcpy(packet.data(), &virtio, sizeof virtio);
  if (made.ipv6) {
    set(0, 0x60);
    set(24, 0xfd);
    set(39, made.to);
  } else {
    set(0, 0x45);
    set(4, 0xff);  // identification 0xfffe: it wraps
    set(5, 0xfe);
    set(9, made.udp ? 17 : 6);
    set(16, 10);
    set(18, made.to >> 8);
    set(19, made.to & 0xff);
  }
  if (!made.udp) {
    for (std::size_t i = 4; i < 8; ++i)
      set(ip + i, 0xff);        // sequence number 2^32 - 1: it wraps
    set(ip + 12, 5 << 4);       // header of 20 bytes
    set(ip + 13, 0x80 | 0x19);  // CWR, ACK, PSH, FIN
  }
  for (std::size_t i = 0; i < made.payload; ++i)
    set(ip + transport + i, i % 251);
  return packet;
}

std::uint32_t big(Bytes bytes, std::size_t at, std::size_t n) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < n; ++i)
    value = value << 8 | std::to_integer<std::uint32_t>(bytes[at + i]);
  return value;
}

/// 0xffff where a checksum fits.
std::uint32_t sum(Bytes bytes) {
  std::uint32_t total = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2)
    total += big(bytes, i, 2);
  while (total >> 16)
    total = (total & 0xffff) + (total >> 16);
  return total;
}

TEST(line_cuts_between_segments) {
  for (const bool ipv6 : {false, true}) {
    for (const bool udp : {false, true}) {
      const Made made{.ipv6 = ipv6, .payload = 1050, .segment = 100, .udp = udp};
      const std::vector<std::byte> whole = packet_of(made);
      const Layout layout = *parse(whole);
      CHECK(layout.n_segments == 11 && layout.destination == 2);
      const std::size_t ip = ipv6 ? 40 : 20, headers = ip + (udp ? 8 : 20);
      CHECK(layout.wire_bytes(0) == headers + 100 && layout.wire_bytes(10) == headers + 50);
      std::vector<std::byte> joined;
      std::size_t first = 0;
      for (const std::size_t n : {std::size_t{3}, std::size_t{1}, std::size_t{7}}) {
        const std::vector<std::byte> piece = cut(whole, layout, first, n);
        CHECK(parse(piece)->n_segments == n);
        CHECK(piece.size() == 10 + headers + (n == 7 ? 650 : n * 100));
        const Bytes bytes = Bytes(piece).subspan(10);
        joined.insert(joined.end(), bytes.begin() + static_cast<std::ptrdiff_t>(headers),
                      bytes.end());
        VirtioHeader virtio;
        std::memcpy(&virtio, piece.data(), sizeof virtio);
        CHECK((virtio.gso_type == VirtioHeader::kSingle) == (n == 1) && virtio.flags == 1);
        const auto length = static_cast<std::uint32_t>(bytes.size() - ip);
        std::uint32_t pseudo = length + (udp ? 17 : 6);
        if (ipv6) {
          CHECK(big(bytes, 4, 2) == length);
          pseudo += sum(bytes.subspan(8, 32));
        } else {
          CHECK(big(bytes, 2, 2) == bytes.size() && sum(bytes.first(20)) == 0xffff);
          CHECK(big(bytes, 4, 2) == ((0xfffe + first) & 0xffff));
          pseudo += sum(bytes.subspan(12, 8));
        }
        while (pseudo >> 16)
          pseudo = (pseudo & 0xffff) + (pseudo >> 16);
        CHECK(big(bytes, ip + (udp ? 6 : 16), 2) == pseudo);
        if (udp) {
          CHECK(big(bytes, ip + 4, 2) == length);
        } else {
          CHECK(big(bytes, ip + 4, 4) == static_cast<std::uint32_t>(first * 100 - 1));
          const std::uint32_t flags = big(bytes, ip + 13, 1);
          CHECK(((flags & 0x80) != 0) == (first == 0));  // CWR: the first only
          CHECK(((flags & 0x09) != 0) == (first == 4));  // FIN, PSH: the last only
          CHECK((flags & 0x10) != 0);
        }
        first += n;
      }
      CHECK(std::ranges::equal(joined, Bytes(whole).subspan(10 + headers)));
    }
  }
}

TEST(line_takes_no_broken_packets) {
  for (const bool ipv6 : {false, true}) {
    const std::vector<std::byte> good = packet_of({.ipv6 = ipv6, .payload = 400, .segment = 100});
    for (std::size_t n = 0; n < 10 + (ipv6 ? 60u : 40u); ++n)
      CHECK(!parse(Bytes(good).first(n)));
    for (std::size_t at = 0; at < 70; ++at) {
      for (int value = 0; value < 256; ++value) {  // whatever is accepted can be cut
        std::vector<std::byte> bad = good;
        bad[at] = static_cast<std::byte>(value);
        const std::optional<Layout> layout = parse(bad);
        if (!layout) continue;
        std::size_t total = 0;
        for (std::size_t i = 0; i < layout->n_segments; ++i)
          total += cut(bad, *layout, i, 1).size();
        CHECK(total >= layout->payload_bytes);
      }
    }
  }
  std::vector<std::byte> multicast = packet_of({.ipv6 = true});
  multicast[10 + 24] = std::byte{0xff};
  CHECK(!parse(multicast));
}

TEST(line_transmitter_has_a_rate_and_a_queue) {
  Transmitter transmitter;
  CHECK(transmitter.send(5, 1500) == 5);  // no limit
  transmitter.set(1e9, kMs);
  Time last = 0;
  int n = 0;
  for (; const std::optional<Time> sent = transmitter.send(0, 1500); ++n)
    last = *sent;
  CHECK(n == 84 && last == 84 * 12'000);  // 12 us each: those up to 1 ms, and one more
  CHECK(!transmitter.send(7'999, 1500));
  CHECK(transmitter.send(8'000, 1500) == last + 12'000);
  CHECK(transmitter.send(kMs * 50, 125) == kMs * 50 + 1'000);  // idle: no rate is saved up
}

TEST(line_loses_as_often_as_asked) {
  for (const double p : {1e-3, 0.02, 0.5}) {
    Loss loss(7), again(7), other(8);
    for (Loss* each : {&loss, &again, &other})
      each->set(p);
    const int n = 1'000'000;
    int n_lost = 0, n_pairs = 0;
    bool before = false, same = true, differs = false;
    for (int i = 0; i < n; ++i) {
      const bool lost = loss.hits_next();
      same = same && again.hits_next() == lost;
      differs = other.hits_next() != lost || differs;
      n_lost += lost;
      n_pairs += lost && before;
      before = lost;
    }
    CHECK(same && differs);
    CHECK(std::abs(n_lost - n * p) < 4 * std::sqrt(n * p));
    CHECK(std::abs(n_pairs - n * p * p) < 4 * std::sqrt(n * p * p) + 1);  // each by itself
  }
  Loss never(1), always(1);
  always.set(1);
  for (int i = 0; i < 100; ++i)
    CHECK(!never.hits_next() && always.hits_next());
}

TEST(line_delay_wanders_and_keeps_order) {
  Delay delay(3);
  delay.set(25 * kMs, 2 * kMs);
  double total = 0, least = 1e18, most = 0;
  Time before = 0;
  const int n = 200'000;
  for (int i = 0; i < n; ++i) {
    const Time departure = i * Time{100'000}, arrival = delay.arrival(departure);
    CHECK(arrival >= before);
    before = arrival;
    const auto took = static_cast<double>(arrival - departure);
    total += took;
    least = std::min(least, took);
    most = std::max(most, took);
  }
  CHECK(least >= 23e6 && least < 23.3e6 && most <= 27e6 && most > 26.7e6);
  CHECK(std::abs(total / n - 25e6) < 0.15e6);
  delay.set(5 * kMs, 0);  // a shorter delay lets nobody overtake
  CHECK(delay.arrival(n * Time{100'000}) >= before);
}

/// All that arrives, in order, as pairs of time and wire bytes.
std::vector<std::pair<Time, std::size_t>> drain(Network& network) {
  std::vector<std::pair<Time, std::size_t>> arrived;
  while (const std::optional<Time> next = network.next_event()) {
    CHECK(!network.next(*next - 1));
    while (const std::optional<Delivery> delivery = network.next(*next))
      arrived.emplace_back(delivery->due, delivery->packet.size() - 10);
  }
  return arrived;
}

TEST(line_network_adds_up_its_stages) {
  Network network(3, 1);
  network.set_uplink(0, 1e8, 100 * kMs);
  network.set_link(0, 1, {.bits_per_s = 5e7, .queue = 100 * kMs, .delay = 10 * kMs});
  network.set_downlink(1, 1e7, 100 * kMs);
  network.send(0, packet_of({.payload = 960}), 0);  // 1000 bytes: 80, 160 and 800 us
  const auto arrived = drain(network);
  CHECK(arrived.size() == 1 && arrived[0].first == 80'000 + 160'000 + 10 * kMs + 800'000);
  // Nothing for a cloud that there is not, for oneself, or without a cloud's number.
  for (const std::uint16_t to : std::initializer_list<std::uint16_t>{0, 1, 4, 999})
    network.send(0, packet_of({.to = to}), kMs);
  CHECK(!network.next_event());
  CHECK(network.counters(0, 1).sent == 1 && network.counters(0, 1).delivered == 1);
}

TEST(line_network_counts_wire_packets) {
  Network network(2, 1);
  network.set_link(0, 1, {.bits_per_s = 1e9, .queue = 2 * kMs, .delay = kMs, .loss = 0.1});
  const std::vector<std::byte> packet = packet_of({.payload = 60'000, .segment = 1448});
  const std::size_t n = parse(packet)->n_segments, n_packets = 200;
  for (std::size_t i = 0; i < n_packets; ++i) {
    const Time now = static_cast<Time>(i) * kMs / 3;  // 1.5 times as much as the link carries
    network.send(0, packet, now);
    while (const std::optional<Delivery> delivery = network.next(now))
      CHECK(delivery->packet.size() < 66'000);
  }
  drain(network);
  const Counters& c = network.counters(0, 1);
  CHECK(c.sent == n * n_packets && c.sent == c.delivered + c.dropped + c.lost && c.dropped > 0);
  const auto carried = static_cast<double>(c.delivered + c.lost);
  CHECK(std::abs(static_cast<double>(c.lost) / carried - 0.1) < 4 * std::sqrt(0.09 / carried));
  // The link was busy from the first packet until its queue was empty.
  const double seconds = n_packets / 3e3 + 2e-3;
  CHECK(std::abs(carried * 1500 * 8 / 1e9 - seconds) < 0.02 * seconds);
  network.set_cut(0, 1, true);
  network.send(0, packet, 100 * kMs);
  CHECK(!network.next_event() && network.counters(1, 0).sent == 0);
}

TEST(line_answers_commands) {
  Network network(2, 1);
  const auto say = [&](const char* command) { return answer(command, network, {}); };
  CHECK(say("link 0 1 1e9 25000000 50000000 0 1e-3") == "ok");
  CHECK(say("uplink 1 2e8 25000000") == "ok" && say("downlink 0 0 0") == "ok");
  CHECK(say("cut 0 1 1") == "ok");
  CHECK(say("counters").find(R"("from": 1, "to": 0, "sent": 0)") != std::string::npos);
  for (const char* bad :
       {"", "fly", "link 0 2 1 1 1 1 0", "link 0 1 1 1 1 1 1.5", "cut 0 1", "cut 0 1 1 1",
        "uplink 0 nan 1", "uplink 0 -1 1", "uplink 0 1x 1", "link 0 1 1 1e99 1 1 0"})
    CHECK(say(bad).starts_with("error: "));
}

}  // namespace
