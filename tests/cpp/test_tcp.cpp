// The TCP transport where the network does not behave: streams that are cut, slow or frozen, and
// what is left of each. Peers that do not behave are in test_tcp_hostile.cpp.
#include <random>
#include <thread>

#include "tcp_ranks.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;
using Ranks = testing::TcpRanks;
using std::chrono::milliseconds;

constexpr std::size_t kMebi = 1u << 20;

}  // namespace

TEST(tcp_a_cut_stream_is_made_again_and_nobody_notices) {
  for (const int streams : {1, 4}) {
    Ranks ranks(3, streams);
    ranks.all_reduce_exactly(kMebi);
    // In the middle of a frame, of a header, and at once; by who dials and by who accepts.
    std::uint64_t n_cuts = 0;
    for (const std::size_t after : {std::size_t{1'500'000}, std::size_t{30}, std::size_t{1}}) {
      for (const auto& [from, to] : {std::pair{0, 1}, std::pair{2, 0}, std::pair{1, 2}}) {
        ranks.fabrics[static_cast<std::size_t>(from)]->inject(
            {TcpFault::Kind::cut, to, static_cast<int>(n_cuts) % streams, after});
        ++n_cuts;
      }
      ranks.all_reduce_exactly(4 * kMebi);
      ranks.all_reduce_exactly(1000);
    }
    std::uint64_t n_reconnects = 0, n_resent = 0;
    for (const auto& [here, there] : {std::pair{0, 1}, std::pair{0, 2}, std::pair{1, 2}}) {
      const auto a = ranks.fabrics[static_cast<std::size_t>(here)]->link_stats(there);
      const auto b = ranks.fabrics[static_cast<std::size_t>(there)]->link_stats(here);
      n_reconnects += a.reconnects;
      n_resent += a.resent_bytes + b.resent_bytes;
      CHECK_EQUAL(a.frame_bytes_sent, b.frame_bytes_received);
    }
    CHECK(n_reconnects >= n_cuts - 2);  // a cut may still wait for bytes to send
    CHECK(n_resent > 0);
  }
}

TEST(tcp_survives_cuts_everywhere_again_and_again) {
  Ranks ranks(2, 3);
  std::mt19937 generator(11);
  for (int repeat = 0; repeat < 40; ++repeat) {
    for (std::size_t rank = 0; rank < 2; ++rank) {
      const int stream = static_cast<int>(generator() % 3);
      ranks.fabrics[rank]->inject(
          {TcpFault::Kind::cut, static_cast<int>(1 - rank), stream, 1 + generator() % 400'000});
    }
    ranks.all_reduce_exactly(300'000);
  }
  CHECK(ranks.fabrics[0]->link_stats(1).reconnects > 20);
}

TEST(tcp_a_slow_stream_does_not_hold_the_others) {
  Ranks ranks(2, 4);
  for (std::size_t rank = 0; rank < 2; ++rank)
    ranks.fabrics[rank]->inject({TcpFault::Kind::slow, static_cast<int>(1 - rank), 2, 100});
  const auto start = Clock::now();
  ranks.all_reduce_exactly(8 * kMebi);
  // An even share of it, 4 MiB in each of two steps, would take more than a minute.
  CHECK(Clock::now() - start < std::chrono::seconds(20));
}

TEST(tcp_slow_but_moving_is_not_dead) {
  Ranks ranks(2, 1, 0.6);
  ranks.fabrics[0]->inject({TcpFault::Kind::slow, 1, 0, 300});
  const auto start = Clock::now();
  ranks.all_reduce_exactly(200'000);  // 400 KB of one frame at 300 KB/s
  CHECK(Clock::now() - start > std::chrono::duration<double>(0.8));
}

TEST(tcp_half_a_frame_and_then_nothing_ends_at_the_deadline) {
  Ranks ranks(2, 1, 0.7);
  ranks.fabrics[0]->inject({TcpFault::Kind::freeze, 1, 0, 100'000});
  const auto start = Clock::now();
  const auto errors = ranks.all_reduce(200'000);
  CHECK(errors[1].has_value());
  CHECK_EQUAL(static_cast<int>(errors[1]->kind()), static_cast<int>(ErrorKind::timeout));
  CHECK(std::string(errors[1]->what()).find("[tcp] rank 0: no progress for 0.7 s") == 0);
  CHECK(Clock::now() - start < std::chrono::seconds(10));
}

TEST(tcp_a_member_without_any_stream_counts_as_lost_at_the_deadline) {
  const auto fabrics = testing::tcp_fabrics(2, testing::on_loopback(1));
  fabrics[1]->close();  // its listener is gone; it had never been connected
  GroupOptions options;
  options.timeout_s = 0.5;
  try {
    Group::open(fabrics[0], options);
    CHECK(false);
  } catch (const Error& error) {
    // Gone in order, or not to be reached: both name the peer and its address.
    CHECK_EQUAL(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::peer_lost));
    CHECK_EQUAL(error.detail(), 1);
    CHECK(std::string(error.what()).find("[tcp] rank 1: (127.0.0.1:") == 0);
  }
}

TEST(tcp_what_was_sent_before_leaving_arrives) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    const auto fabrics = testing::tcp_fabrics(2, testing::on_loopback(3));
    auto from = fabrics[0]->open({1, 0}, {0, 1});
    auto to = fabrics[1]->open({1, 0}, {0, 1});
    std::vector<BufferPtr> buffers;
    for (std::uint32_t slot = 0; slot < 10; ++slot) {
      from->send(1, {1, slot}, std::make_shared<Buffer>(std::size_t{5000}), 5000);
      buffers.push_back(std::make_shared<Buffer>(std::size_t{5000}));
    }
    std::vector<Completion> done;
    for (int look = 0; look < 500 && done.size() < 10; ++look) {
      from->wait(milliseconds(10));
      from->poll(done);
    }
    CHECK_EQUAL(done.size(), 10u);  // on their way, and nobody has asked for them
    from.reset();
    fabrics[0]->close();
    done.clear();
    for (std::uint32_t slot = 0; slot < 10; ++slot)
      to->receive(0, {1, slot}, buffers[slot]);
    to->receive(0, {2, 0}, buffers[0]);
    for (int look = 0; look < 500 && done.size() < 11; ++look) {
      to->wait(milliseconds(10));
      to->poll(done);
    }
    CHECK_EQUAL(done.size(), 11u);
    std::size_t n_lost = 0;
    for (const Completion& each : done) {
      if (each.error.empty()) continue;
      CHECK_EQUAL(static_cast<int>(each.kind), static_cast<int>(ErrorKind::peer_lost));
      CHECK(each.error.find("has left") != std::string::npos);
      ++n_lost;
    }
    CHECK_EQUAL(n_lost, 1u);
  }
}

}  // namespace fedcomm
