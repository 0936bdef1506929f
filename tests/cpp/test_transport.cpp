// What every transport promises, whatever moves the bytes: order, early arrivals, cancelling,
// lengths, groups side by side.
#include <cstring>
#include <map>
#include <thread>

#include "check.h"
#include "fabrics.h"

namespace fedcomm {
namespace {

using testing::fabric_kinds;

BufferPtr filled(std::size_t n_bytes, int seed) {
  auto buffer = std::make_shared<Buffer>(n_bytes);
  for (std::size_t i = 0; i < n_bytes; ++i)
    buffer->data()[i] =
        static_cast<std::byte>(i * 7 + static_cast<std::size_t>(seed) * 31 + i / 251);
  return buffer;
}

bool holds(const Buffer& buffer, std::size_t n_bytes, int seed) {
  return std::memcmp(buffer.data(), filled(n_bytes, seed)->data(), n_bytes) == 0;
}

/// A transport and what it has said so far.
struct End {
  std::unique_ptr<Transport> transport;
  std::map<RequestId, Completion> done;
  End* other = nullptr;  // of the same thread: it gets on only while somebody looks after it

  const Completion& wait_for(RequestId id) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!done.contains(id)) {
      CHECK(std::chrono::steady_clock::now() < deadline);
      look(std::chrono::milliseconds(20));
    }
    return done.at(id);
  }
  void look(std::chrono::milliseconds at_most) {
    transport->wait(at_most);
    take();
    if (other != nullptr) other->take();
  }
  void take() {
    std::vector<Completion> news;
    transport->poll(news);
    for (const Completion& each : news) {
      CHECK(!done.contains(each.id));
      done[each.id] = each;
    }
  }
};

struct Pair {
  testing::Fabrics fabrics;
  End a, b;

  explicit Pair(const testing::FabricKind& kind) : fabrics(kind.make(2)) {
    a.transport = fabrics[0]->open({1, 0}, {0, 1});
    b.transport = fabrics[1]->open({1, 0}, {0, 1});
    a.other = &b;
    b.other = &a;
  }
};

constexpr std::size_t kSizes[] = {0, 1, 96, 65536, 65537, 1048676, 5000001};

}  // namespace

TEST(transport_brings_frames_of_any_size_to_receives_posted_before_and_after) {
  for (const auto& kind : fabric_kinds()) {
    Pair pair(kind);
    for (const bool posted_first : {true, false}) {
      std::uint32_t slot = 0;
      std::vector<RequestId> sends, receives;
      std::vector<BufferPtr> buffers;
      const auto post = [&] {
        for (const std::size_t n_bytes : kSizes) {
          buffers.push_back(std::make_shared<Buffer>(n_bytes + 10));
          receives.push_back(pair.b.transport->receive(
              0, {posted_first ? 1u : 2u, static_cast<std::uint32_t>(receives.size())},
              buffers.back()));
        }
      };
      if (posted_first) post();
      for (const std::size_t n_bytes : kSizes) {
        sends.push_back(pair.a.transport->send(1, {posted_first ? 1u : 2u, slot},
                                               filled(n_bytes, static_cast<int>(slot)), n_bytes));
        ++slot;
      }
      if (!posted_first) {
        for (int look = 0; look < 5; ++look)
          pair.a.look(std::chrono::milliseconds(10));
        post();
      }
      for (std::size_t i = 0; i < std::size(kSizes); ++i) {
        const Completion& received = pair.b.wait_for(receives[i]);
        CHECK(received.error.empty());
        CHECK_EQUAL(received.n_bytes, kSizes[i]);
        CHECK(holds(*buffers[i], kSizes[i], static_cast<int>(i)));
        CHECK(pair.a.wait_for(sends[i]).error.empty());
      }
    }
  }
}

TEST(transport_keeps_the_order_of_frames_with_equal_tags) {
  for (const auto& kind : fabric_kinds()) {
    Pair pair(kind);
    // Large ones take longer than the small ones after them, and go by other streams.
    std::vector<BufferPtr> buffers;
    std::vector<RequestId> receives;
    const auto length = [](int i) {
      return i % 3 == 0 ? std::size_t{900'000} : std::size_t{100} + static_cast<std::size_t>(i);
    };
    for (int i = 0; i < 60; ++i) {
      pair.a.transport->send(1, {3, 5}, filled(length(i), i), length(i));
      if (i < 20) {
        buffers.push_back(std::make_shared<Buffer>(std::size_t{900'000}));
        receives.push_back(pair.b.transport->receive(0, {3, 5}, buffers.back()));
      }
    }
    for (int i = 20; i < 60; ++i) {
      buffers.push_back(std::make_shared<Buffer>(std::size_t{900'000}));
      receives.push_back(pair.b.transport->receive(0, {3, 5}, buffers.back()));
    }
    for (int i = 0; i < 60; ++i) {
      const auto k = static_cast<std::size_t>(i);
      CHECK_EQUAL(pair.b.wait_for(receives[k]).n_bytes, length(i));
      CHECK(holds(*buffers[k], length(i), i));
    }
  }
}

TEST(transport_says_so_where_a_frame_is_longer_than_its_buffer) {
  for (const auto& kind : fabric_kinds()) {
    Pair pair(kind);
    for (const std::size_t n_bytes : {std::size_t{1000}, std::size_t{3'000'000}}) {
      const auto operation = static_cast<std::uint32_t>(n_bytes);
      auto small = std::make_shared<Buffer>(n_bytes - 1);
      const RequestId id = pair.b.transport->receive(0, {operation, 0}, small);
      pair.a.transport->send(1, {operation, 0}, filled(n_bytes, 1), n_bytes);
      CHECK(pair.b.wait_for(id).error.find("room for") != std::string::npos);
      auto next = std::make_shared<Buffer>(n_bytes);
      const RequestId good = pair.b.transport->receive(0, {operation, 1}, next);
      pair.a.transport->send(1, {operation, 1}, filled(n_bytes, 2), n_bytes);
      CHECK(pair.b.wait_for(good).error.empty());
      CHECK(holds(*next, n_bytes, 2));
    }
  }
}

TEST(transport_does_not_report_what_was_cancelled) {
  for (const auto& kind : fabric_kinds()) {
    Pair pair(kind);
    auto first = std::make_shared<Buffer>(std::size_t{500}),
         second = std::make_shared<Buffer>(std::size_t{500});
    const RequestId gone = pair.b.transport->receive(0, {1, 1}, first);
    pair.b.transport->cancel(gone);
    const RequestId stays = pair.b.transport->receive(0, {1, 1}, second);
    pair.a.transport->send(1, {1, 1}, filled(500, 3), 500);
    CHECK(pair.b.wait_for(stays).error.empty());
    CHECK(holds(*second, 500, 3));
    CHECK(!pair.b.done.contains(gone));
  }
}

TEST(transport_keeps_groups_and_directions_apart) {
  for (const auto& kind : fabric_kinds()) {
    const auto fabrics = kind.make(3);
    std::vector<End> ends(6);  // groups 7 and 8 of each rank
    for (std::size_t rank = 0; rank < 3; ++rank) {
      ends[2 * rank].transport = fabrics[rank]->open({7, 0}, {0, 1, 2});
      ends[2 * rank + 1].transport = fabrics[rank]->open({8, 0}, {2, 0, 1});
    }
    // Everyone to everyone, in both groups, with the same tag.
    std::vector<std::thread> threads;
    for (std::size_t each = 0; each < ends.size(); ++each) {
      threads.emplace_back([&, each] {
        End& end = ends[each];
        const int rank = static_cast<int>(each / 2), group = static_cast<int>(each % 2);
        const auto member_of = [&](int r) { return group == 0 ? r : (r + 1) % 3; };
        std::map<int, std::pair<RequestId, BufferPtr>> receives;
        std::vector<RequestId> sends;
        for (int other = 0; other < 3; ++other) {
          if (other == rank) continue;
          const auto n_bytes = static_cast<std::size_t>(300'000 + 1000 * rank + 10 * other + group);
          sends.push_back(end.transport->send(member_of(other), {1, 1},
                                              filled(n_bytes, 10 * rank + group), n_bytes));
          auto buffer = std::make_shared<Buffer>(std::size_t{400'000});
          receives[other] = {end.transport->receive(member_of(other), {1, 1}, buffer), buffer};
        }
        for (const auto& [other, receive] : receives) {
          const auto n_bytes = static_cast<std::size_t>(300'000 + 1000 * other + 10 * rank + group);
          CHECK_EQUAL(end.wait_for(receive.first).n_bytes, n_bytes);
          CHECK(holds(*receive.second, n_bytes, 10 * other + group));
        }
        for (const RequestId id : sends)
          CHECK(end.wait_for(id).error.empty());
      });
    }
    for (auto& thread : threads)
      thread.join();
  }
}

TEST(transport_wakes_who_waits) {
  for (const auto& kind : fabric_kinds()) {
    Pair pair(kind);
    std::thread waker([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      pair.a.transport->wake();
    });
    const auto start = std::chrono::steady_clock::now();
    pair.a.transport->wait(std::chrono::seconds(10));
    waker.join();
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  }
}

}  // namespace fedcomm
