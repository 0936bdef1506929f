// A limited transport: frames come no earlier than over a link of that rate, control frames at
// once. What any transport promises is in test_transport.cpp, for this one too.
#include <limits>

#include "check.h"
#include "fabrics.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kBytes = 100'000;
constexpr double kRate = 1e6;  // a frame takes 0.1 s

struct Ends {
  testing::Fabrics fabrics = testing::memory_fabrics(2);
  std::unique_ptr<Transport> sender = limit_rate(fabrics[0]->open({1, 0}, {0, 1}), kRate);
  std::unique_ptr<Transport> receiver = fabrics[1]->open({1, 0}, {0, 1});
  Clock::time_point start = Clock::now();
  std::vector<Completion> sent, received;

  RequestId send(std::uint32_t operation) {
    return sender->send(1, {operation, 0}, std::make_shared<Buffer>(kBytes), kBytes);
  }
  RequestId receive(std::uint32_t operation) {
    return receiver->receive(0, {operation, 0}, std::make_shared<Buffer>(kBytes));
  }
  /// Both ends are looked after until `n` frames have come.
  void until(std::size_t n) {
    while (received.size() < n) {
      CHECK(Clock::now() - start < std::chrono::seconds(20));
      sender->wait(std::chrono::milliseconds(5));
      sender->poll(sent);
      receiver->poll(received);
    }
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start).count(); }
};

}  // namespace

TEST(rate_limit_keeps_frames_for_as_long_as_the_link_would_take) {
  Ends ends;
  for (std::uint32_t operation = 1; operation <= 3; ++operation) {
    ends.send(operation);
    ends.receive(operation);
  }
  for (std::size_t n = 1; n <= 3; ++n) {
    ends.until(n);
    CHECK(ends.seconds() >= 0.1 * static_cast<double>(ends.received.size()));
  }
}

TEST(rate_limit_lets_control_frames_pass) {
  Ends ends;
  ends.send(1);
  ends.receive(1);
  ends.send(0);
  const RequestId control = ends.receive(0);
  ends.until(1);
  CHECK_EQUAL(ends.received.front().id, control);
  ends.until(2);
}

TEST(rate_limit_spends_no_time_on_what_is_cancelled) {
  Ends ends;
  std::vector<RequestId> gone;
  for (std::uint32_t operation = 1; operation <= 300; ++operation)  // half a minute
    gone.push_back(ends.send(operation));
  ends.send(301);
  for (const RequestId id : gone)
    ends.sender->cancel(id);
  ends.send(302);
  ends.receive(301);
  ends.receive(302);
  ends.until(2);
}

TEST(rate_limit_forgets_what_is_cancelled_and_sends_the_rest) {
  Ends ends;
  const RequestId first = ends.send(1), gone = ends.send(2), last = ends.send(3);
  ends.sender->cancel(gone);
  ends.receive(1);
  ends.receive(3);
  ends.receive(2);
  ends.until(2);
  for (int look = 0; look < 20; ++look) {
    ends.sender->wait(std::chrono::milliseconds(10));
    ends.sender->poll(ends.sent);
    ends.receiver->poll(ends.received);
  }
  CHECK_EQUAL(ends.received.size(), std::size_t{2});
  CHECK_EQUAL(ends.sent.size(), std::size_t{2});
  CHECK_EQUAL(ends.sent[0].id, first);
  CHECK_EQUAL(ends.sent[1].id, last);
}

TEST(rate_limit_that_is_no_rate_is_refused) {
  for (const double bad : {0.0, -1.0, std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS(ErrorKind::invalid_argument,
                 limit_rate(testing::memory_fabrics(1)[0]->open({1, 0}, {0}), bad));
  }
}

}  // namespace fedcomm
