// Groups in which one operation fails while another, begun before it, is still under way: that one
// ends well wherever all that it needs still comes, and what failed is named everywhere.
#include <chrono>
#include <cmath>
#include <thread>

#include "group_ranks.h"

namespace fedcomm {
namespace {

using testing::expected_sum;
using testing::input;
using testing::Ranks;
using testing::small_segments;
using testing::view;

constexpr std::size_t kElems = 3 * kGrain;  // of three members each owns a segment
constexpr std::uint32_t kEarlier = 2;       // after the handshake
constexpr std::uint32_t kFailed = 3;
constexpr int kFailing = 1;

/// One member's two operations; the tensors outlive them.
struct Pair {
  std::vector<float> earlier, failed;
  std::shared_ptr<Work> first, second;

  void begin_earlier(Group& group) {
    earlier = input(group.rank(), kElems);
    first = group.all_reduce(view(earlier), view(earlier), {});
  }
  /// With a NaN in the contribution of the member that fails.
  void begin_failed(Group& group) {
    failed = input(group.rank(), kElems);
    if (group.rank() == kFailing) failed[7] = std::nanf("");
    second = group.all_reduce(view(failed), view(failed), {});
  }
};

/// Three members, whose operations are begun in the order that a test wants.
struct Members {
  std::vector<Pair> pairs = std::vector<Pair>(3);  // the groups end first
  Ranks ranks{3, small_segments()};

  Group& operator[](int member) { return *ranks.groups[static_cast<std::size_t>(member)]; }
  Pair& pair(int member) { return pairs[static_cast<std::size_t>(member)]; }
  void begin_both(int member) {
    pair(member).begin_earlier((*this)[member]);
    pair(member).begin_failed((*this)[member]);
  }
  void await_broken() {
    for (const auto& group : ranks.groups) {
      while (!group->broken())
        std::this_thread::yield();
    }
  }
  /// Lets what is held arrive, and what is held only now, by a thread that was slow to send it.
  void release_until_ended() {
    for (const Pair& each : pairs) {
      while (!each.first->wait_for(std::chrono::milliseconds(1)))
        ranks.hub->release();
    }
  }
};

Error error_of(const Work& work) {
  try {
    work.wait();
  } catch (const Error& error) {
    return error;
  }
  throw testing::Failure("an operation ended well that had to fail");
}

/// A NaN or infinity of `sequence`; its place is known in that operation only.
void check_non_finite(const Error& error, std::uint32_t sequence, std::int64_t index) {
  CHECK_EQUAL(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::non_finite));
  const std::string where = "all_reduce " + std::to_string(sequence) + ",";
  CHECK(std::string(error.what()).find(where) != std::string::npos);
  CHECK_EQUAL(error.detail(), index);
}

void check_only_the_later_failed(Pair& pair) {
  pair.first->wait();
  CHECK(pair.earlier == expected_sum(3, kElems));
  check_non_finite(error_of(*pair.second), kFailed, 7);
}

}  // namespace

TEST(an_operation_before_the_failed_one_ends_well) {
  // What is still on its way when all have heard: to the failing member, which then must go on
  // though its own operation has failed; from it; and between two others.
  constexpr int kHeld[][2] = {{0, kFailing}, {kFailing, 0}, {0, 2}};
  for (const auto& [source, destination] : kHeld) {
    Members members;
    members.ranks.hub->inject(source, destination, Fault::hold, 0);
    for (const int member : {0, 2, kFailing})
      members.begin_both(member);
    members.await_broken();
    CHECK(!members.pair(destination).first->done());
    members.release_until_ended();
    for (Pair& pair : members.pairs)
      check_only_the_later_failed(pair);
  }
}

TEST(a_failed_member_that_leaves_at_once_still_serves_what_came_before) {
  Members members;
  members.ranks.hub->inject(0, kFailing, Fault::hold, 0);
  for (const int member : {0, 2, kFailing})
    members.begin_both(member);
  members.await_broken();
  std::thread leaving([&] { members[kFailing].close(); });
  members.release_until_ended();
  leaving.join();
  for (Pair& pair : members.pairs)
    check_only_the_later_failed(pair);
}

TEST(an_operation_that_begins_after_a_later_one_was_heard_to_fail_ends_well) {
  Members members;
  for (const int member : {0, kFailing})
    members.begin_both(member);
  members.await_broken();
  members.pair(2).begin_earlier(members[2]);
  try {
    members.pair(2).begin_failed(members[2]);
    CHECK(false);
  } catch (const Error& error) {
    check_non_finite(error, kFailed, 7);
  }
  members.pair(2).first->wait();
  CHECK(members.pair(2).earlier == expected_sum(3, kElems));
  for (const int member : {0, kFailing})
    check_only_the_later_failed(members.pair(member));
  std::vector<float> x(8);
  CHECK_THROWS(ErrorKind::group_broken, members[2].all_reduce(view(x), view(x), {}));
}

TEST(an_operation_that_cannot_end_any_more_names_the_one_that_failed) {
  Members members;
  members.ranks.hub->inject(kFailing, 0, Fault::drop, 0);
  const auto start = std::chrono::steady_clock::now();
  for (const int member : {0, 2, kFailing})
    members.begin_both(member);
  check_non_finite(error_of(*members.pair(0).first), kFailed, -1);
  CHECK(std::chrono::steady_clock::now() - start >= kFinishGrace);
  check_non_finite(error_of(*members.pair(0).second), kFailed, 7);
  for (Pair& pair : members.pairs)
    check_non_finite(error_of(*pair.second), kFailed, 7);
}

TEST(of_two_operations_that_failed_the_earlier_is_named_everywhere) {
  Members members;
  for (const int member : {0, kFailing})
    members.begin_both(member);
  members.await_broken();
  Pair& other = members.pair(2);
  other.earlier = std::vector<float>(kElems, 1.0f);
  other.earlier[5] = INFINITY;
  other.first = members[2].all_reduce(view(other.earlier), view(other.earlier), {});
  for (Pair& pair : members.pairs)
    check_non_finite(error_of(*pair.first), kEarlier, 5);
  for (const int member : {0, kFailing})
    check_non_finite(error_of(*members.pair(member).second), kEarlier, -1);
  for (const auto& group : members.ranks.groups)
    CHECK(std::string(group->broken()->what()).find("all_reduce 2,") != std::string::npos);
}

TEST(an_operation_on_a_slow_link_may_take_longer_than_the_grace) {
  // A frame takes 0.4 s and each member sends four; those of the failed operation take no time.
  const auto fabrics = testing::limited(testing::memory_fabrics(3), 40'000);
  std::vector<Pair> pairs(3);
  Ranks ranks(fabrics, small_segments());
  for (const std::size_t member : {0u, 2u, 1u}) {
    pairs[member].begin_earlier(*ranks.groups[member]);
    pairs[member].begin_failed(*ranks.groups[member]);
  }
  for (Pair& pair : pairs)
    check_only_the_later_failed(pair);
}

TEST(an_abort_spares_no_operation) {
  Members members;
  members.ranks.hub->inject(kFailing, 0, Fault::hold, 0);
  for (int member = 0; member < 3; ++member)
    members.pair(member).begin_earlier(members[member]);
  members[2].abort("out of disk");
  members.await_broken();
  members.release_until_ended();
  const Error error = error_of(*members.pair(0).first);
  CHECK(std::string(error.what()).find("out of disk") != std::string::npos);
}

TEST(a_notice_of_an_operation_yet_to_come_ends_the_group_all_the_same) {
  Members members;
  members.pair(0).begin_earlier(members[0]);
  const CrcSealer sealer;
  std::vector<std::byte> payload(200);
  const std::size_t n = write_abort({6, 1, "on purpose"}, payload);
  FrameHeader header;
  header.kind = FrameKind::abort;
  header.sealer = sealer.id();
  header.source = kFailing;
  header.sequence = 0xffffffffu;
  header.payload_bytes = n;
  const auto frame = std::make_shared<Buffer>(kHeaderBytes + n + sealer.overhead_bytes());
  write_header(header, frame->bytes());
  std::copy_n(payload.begin(), n, frame->data() + kHeaderBytes);
  sealer.seal(frame->bytes());
  const auto hostile = members.ranks.hub->fabric(kFailing)->open({0, 0}, {0, 1, 2});
  hostile->send(0, {0, 0}, frame, frame->size());
  const Error error = error_of(*members.pair(0).first);
  CHECK(std::string(error.what()).find("on purpose") != std::string::npos);
  CHECK_EQUAL(error.detail(), -1);
  std::vector<float> x(8);
  CHECK_THROWS(ErrorKind::group_broken, members[0].all_reduce(view(x), view(x), {}));
}

TEST(what_came_before_a_failure_ends_well_over_every_transport) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      Ranks ranks(kind.make(3), small_segments());
      testing::check_none(ranks.run([](Group& group) {
        Pair pair;
        pair.begin_earlier(group);
        try {
          pair.begin_failed(group);
        } catch (const Error& error) {  // heard before its own call
          check_non_finite(error, kFailed, 7);
          pair.first->wait();
          CHECK(pair.earlier == expected_sum(3, kElems));
          return;
        }
        check_only_the_later_failed(pair);
      }));
    }
  }
}

}  // namespace fedcomm
