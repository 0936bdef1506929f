// What a link hands to its streams, and how links share an uplink; without a socket.
#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "transport/tcp_sender.h"
#include "transport/tcp_uplink.h"

namespace fedcomm {
namespace {

using tcp::kShortBytes;
using tcp::RecordKind;
using tcp::Sender;
using tcp::Takes;

constexpr std::size_t kLong = 1u << 20;

/// A sender, and what it has told of its frames.
struct Sending {
  Sender sender;
  std::shared_ptr<tcp::Inbox> inbox = std::make_shared<tcp::Inbox>(1);
  RequestId next_id = 1;

  RequestId queue(std::size_t n_bytes, Tag tag) {
    auto frame = std::make_shared<tcp::Outgoing>();
    frame->channel = {1, 0};
    frame->tag = tag;
    frame->frame = std::make_shared<Buffer>(n_bytes);
    frame->n_bytes = n_bytes;
    frame->id = next_id;
    frame->inbox = inbox;
    sender.queue(std::move(frame));
    return next_id++;
  }
  /// Pieces that a stream of this kind gets until there are no more.
  std::vector<tcp::Record> drain(int stream, Takes takes, int n_streams = 1) {
    std::vector<tcp::Record> records;
    while (const Sender::Piece* piece = sender.next(stream, takes, n_streams))
      records.push_back(piece->record);
    return records;
  }
  std::vector<Completion> done() {
    std::vector<Completion> all;
    inbox->take(all);
    return all;
  }
};

std::vector<std::size_t> sizes_of(const std::vector<tcp::Record>& records) {
  std::vector<std::size_t> sizes;
  for (const auto& each : records)
    sizes.push_back(each.frame_bytes);
  return sizes;
}

using Sizes = std::vector<std::size_t>;

}  // namespace

TEST(tcp_what_is_short_goes_its_own_way) {
  Sending s;
  s.queue(kLong, {1, 0});
  s.queue(kShortBytes, {1, 1});
  s.queue(kShortBytes + 1, {1, 2});
  s.queue(0, {1, 3});
  CHECK(s.sender.has_work(Takes::shorts) && s.sender.has_work(Takes::data));
  CHECK(sizes_of(s.drain(0, Takes::shorts)) == (Sizes{kShortBytes, 0}));
  CHECK(!s.sender.has_work(Takes::shorts) && s.sender.has_work(Takes::data));
  CHECK(sizes_of(s.drain(1, Takes::data)) == (Sizes{kLong, kShortBytes + 1}));
  CHECK(!s.sender.has_work(Takes::all));
}

TEST(tcp_an_only_stream_takes_all_and_what_is_short_first) {
  Sending s;
  s.queue(kLong, {1, 0});
  s.queue(10, {1, 1});
  CHECK(sizes_of(s.drain(0, Takes::all)) == (Sizes{10, kLong}));
}

TEST(tcp_frames_of_equal_tags_keep_their_order) {
  Sending s;
  s.queue(kLong, {1, 0});
  s.queue(10, {1, 0});  // would overtake, did it go by the other stream
  s.queue(20, {1, 1});
  CHECK(sizes_of(s.drain(0, Takes::shorts)) == (Sizes{20}));
  const auto data = s.drain(1, Takes::data);
  CHECK(sizes_of(data) == (Sizes{kLong, 10}));
  CHECK(!data[0].ordered && data[1].ordered);
  // And a long one stays behind a short one that has not gone yet.
  s.queue(30, {2, 0});
  s.queue(kLong, {2, 0});
  CHECK(!s.sender.has_work(Takes::data));
  CHECK(sizes_of(s.drain(0, Takes::shorts)) == (Sizes{30, kLong}));
}

TEST(tcp_records_without_bytes_are_short) {
  Sending s;
  s.sender.notice_taken(7);
  s.sender.notice_goodbye();
  CHECK(!s.sender.has_work(Takes::data));
  CHECK(s.sender.next(1, Takes::data, 1) == nullptr);
  const auto records = s.drain(0, Takes::shorts);
  CHECK_EQUAL(records.size(), 2u);
  CHECK(records[0].kind == RecordKind::taken && records[1].kind == RecordKind::goodbye);
  CHECK_EQUAL(records[1].number, records[0].number + 1);
}

TEST(tcp_what_a_lost_stream_had_is_due_again_on_its_own_way) {
  Sending s;
  s.queue(kLong, {1, 0});
  s.queue(10, {1, 1});
  s.sender.notice_taken(7);
  const auto shorts = s.drain(0, Takes::shorts);
  const auto data = s.drain(1, Takes::data, 4);
  CHECK(data.size() > 4);
  s.queue(11, {1, 2});
  CHECK_EQUAL(s.sender.lose(1), kLong);
  CHECK_EQUAL(s.sender.lose(0), 10u);
  CHECK_EQUAL(s.sender.lose(2), 0u);
  // Before anything new, and under the numbers that they had.
  const auto again = s.drain(0, Takes::shorts);
  CHECK_EQUAL(again.size(), 3u);
  CHECK_EQUAL(again[0].number, shorts[0].number);
  CHECK_EQUAL(again[1].number, shorts[1].number);
  CHECK_EQUAL(again[2].frame_bytes, 11u);
  const auto data_again = s.drain(2, Takes::data, 4);
  CHECK_EQUAL(data_again.size(), data.size());
  for (std::size_t i = 0; i < data.size(); ++i)
    CHECK_EQUAL(data_again[i].number, data[i].number);
}

TEST(tcp_pieces_cover_a_frame_and_get_smaller_towards_the_end) {
  Sending s;
  s.queue(kLong, {1, 0});
  std::size_t at = 0, before = kLong;
  for (const auto& piece : s.drain(1, Takes::data, 8)) {
    CHECK_EQUAL(piece.offset, at);
    CHECK(piece.n_bytes <= before);
    at += piece.n_bytes;
    before = piece.n_bytes;
  }
  CHECK_EQUAL(at, kLong);
}

TEST(tcp_a_short_frame_is_done_when_the_kernel_has_it_and_once) {
  Sending s;
  const RequestId id = s.queue(10, {1, 0});
  const auto records = s.drain(0, Takes::shorts);
  s.sender.written(records[0].number, 9);
  CHECK(s.done().empty());
  s.sender.written(records[0].number, 10);
  s.sender.acknowledge(records[0].number + 1);
  const auto done = s.done();
  CHECK_EQUAL(done.size(), 1u);
  CHECK_EQUAL(done[0].id, id);
  CHECK(done[0].error.empty());
  CHECK(s.sender.drained());
  CHECK_THROWS(ErrorKind::corrupt_frame, s.sender.acknowledge(records[0].number + 2));
}

TEST(tcp_an_uplink_is_divided_by_what_is_left) {
  const std::vector<std::size_t> backlogs = {3000, 1000, 2000};
  const auto parts = tcp::parts_of(600, backlogs);
  CHECK(parts == (std::vector<double>{300, 100, 200}));
}

TEST(tcp_nobody_is_left_without_a_part_of_the_uplink) {
  const std::vector<std::size_t> backlogs = {1'000'000, 0, 1};
  const auto parts = tcp::parts_of(1200, backlogs);
  CHECK_EQUAL(parts[1], 100.0);  // a quarter of an equal part, 400
  CHECK_EQUAL(parts[2], 100.0);
  CHECK(parts[0] > 1199 && parts[0] <= 1200);
  const std::vector<std::size_t> nothing = {0, 0};
  CHECK(tcp::parts_of(1000, nothing) == (std::vector<double>{500, 500}));
  CHECK(tcp::parts_of(0, backlogs) == (std::vector<double>{0, 0, 0}));  // no limit is known
}

}  // namespace fedcomm
