#include "transport/tcp_sender.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

constexpr std::size_t kLargestPiece = 128u << 10;
constexpr std::size_t kSmallestPiece = 32u << 10;

}  // namespace

void Sender::queue(OutgoingPtr frame) {
  // Frames of equal tags keep their order: none overtakes another that waits in the other queue.
  const auto has_equal = [&](const std::deque<OutgoingPtr>& queue) {
    return std::any_of(queue.begin(), queue.end(),
                       [&](const OutgoingPtr& other) { return key_of(*other) == key_of(*frame); });
  };
  const bool is_short = frame->n_bytes <= kShortBytes;
  if (is_short ? !has_equal(waiting_) : has_equal(shorts_)) {
    shorts_.push_back(std::move(frame));
  } else {
    waiting_bytes_ += frame->n_bytes;
    waiting_.push_back(std::move(frame));
  }
}

void Sender::notice_taken(std::uint64_t frame) {
  Record record;
  record.kind = RecordKind::taken;
  record.frame = frame;
  due_shorts_.push_back(number(record, nullptr).record.number);
}

void Sender::notice_goodbye() {
  Record record;
  record.kind = RecordKind::goodbye;
  due_shorts_.push_back(number(record, nullptr).record.number);
}

Sender::Piece& Sender::number(Record record, OutgoingPtr frame) {
  record.number = first_ + pieces_.size();
  pieces_.push_back({record, std::move(frame), -1, 0});
  return pieces_.back();
}

const Sender::Piece* Sender::next(int stream, Takes takes, int n_streams) {
  Piece* piece = nullptr;
  if (takes != Takes::data) {
    piece = take(due_shorts_);
    if (piece == nullptr) piece = cut(shorts_, 1);
  }
  if (piece == nullptr && takes != Takes::shorts) {
    piece = take(due_);
    if (piece == nullptr) piece = cut(waiting_, n_streams);
  }
  if (piece != nullptr) piece->stream = stream;
  return piece;
}

Sender::Piece* Sender::take(std::deque<std::uint64_t>& due) {
  while (!due.empty()) {
    const std::uint64_t number = due.front();
    due.pop_front();
    if (number >= first_) return &pieces_[number - first_];  // else it has arrived meanwhile
  }
  return nullptr;
}

/// Takes the next piece off the first frame of a queue. Pieces get smaller towards the end of what
/// waits, so that the streams end together; a lone stream takes frames whole.
Sender::Piece* Sender::cut(std::deque<OutgoingPtr>& queue, int n_streams) {
  if (queue.empty()) return nullptr;
  const OutgoingPtr frame = queue.front();
  const std::size_t left = frame->n_bytes - frame->n_cut;
  std::size_t n_bytes = left;
  if (n_streams > 1) {
    const std::size_t share = waiting_bytes_ / (2 * static_cast<std::size_t>(n_streams));
    n_bytes = std::min(left, std::clamp(share, kSmallestPiece, kLargestPiece));
  }
  if (frame->number == 0) {
    int& others = under_way_[key_of(*frame)];
    frame->ordered = others > 0;
    ++others;
    frame->number = first_ + pieces_.size();
    if (frame->n_bytes > kEagerBytes) untaken_[frame->number] = frame;
  }
  Record record;
  record.kind = RecordKind::piece;
  record.ordered = frame->ordered;
  record.n_bytes = static_cast<std::uint32_t>(n_bytes);
  record.frame = frame->number;
  record.group = frame->channel.group;
  record.epoch = frame->channel.epoch;
  record.tag = frame->tag;
  record.frame_bytes = static_cast<std::uint32_t>(frame->n_bytes);
  record.offset = static_cast<std::uint32_t>(frame->n_cut);
  frame->n_cut += n_bytes;
  ++frame->n_unacked;
  if (&queue == &waiting_) waiting_bytes_ -= n_bytes;
  if (frame->all_cut()) queue.pop_front();
  return &number(record, frame);
}

void Sender::written(std::uint64_t number, std::size_t n_bytes) {
  if (number < first_) return;
  Piece& piece = pieces_[number - first_];
  // Not what was written before to a stream that is lost: it would be progress without end.
  if (!piece.frame || (n_bytes <= piece.n_written && n_bytes > 0)) return;
  const std::size_t n_new = n_bytes - piece.n_written;
  piece.n_written = n_bytes;
  Outgoing& frame = *piece.frame;
  frame.n_written += n_new;
  n_written_ += n_new;
  frame.inbox->moved(frame.member, n_new);
  if (frame.n_written < frame.n_bytes || !frame.all_cut()) return;
  if (frame.n_bytes > kEagerBytes) {
    if (!untaken_.contains(frame.number) || ahead_bytes_ + frame.n_bytes > kAheadBytes) return;
    frame.ahead = true;
    ahead_bytes_ += frame.n_bytes;
  }
  report(frame, ErrorKind::internal, {});
}

void Sender::acknowledge(std::uint64_t number) {
  if (number > first_ + pieces_.size()) {
    fedcomm::fail(ErrorKind::corrupt_frame, "acknowledged what was never sent");
  }
  for (; first_ < number; ++first_) {
    const OutgoingPtr frame = std::move(pieces_.front().frame);
    pieces_.pop_front();
    if (!frame || --frame->n_unacked > 0 || !frame->all_cut()) continue;
    frame->frame.reset();
    if (frame->n_bytes <= kEagerBytes) report(*frame, ErrorKind::internal, {});
    const auto others = under_way_.find(key_of(*frame));
    if (--others->second == 0) under_way_.erase(others);
  }
}

void Sender::taken(std::uint64_t frame) {
  const auto found = untaken_.find(frame);
  if (found == untaken_.end()) return;
  if (found->second->ahead) ahead_bytes_ -= found->second->n_bytes;
  report(*found->second, ErrorKind::internal, {});
  untaken_.erase(found);
}

std::size_t Sender::lose(int stream) {
  std::size_t n_bytes = 0;
  std::deque<std::uint64_t> again, shorts_again;
  for (Piece& piece : pieces_) {
    if (piece.stream != stream) continue;
    piece.stream = -1;
    n_bytes += piece.record.n_bytes;
    const bool is_short = !piece.frame || piece.frame->n_bytes <= kShortBytes;
    (is_short ? shorts_again : again).push_back(piece.record.number);
  }
  due_.insert(due_.begin(), again.begin(), again.end());
  due_shorts_.insert(due_shorts_.begin(), shorts_again.begin(), shorts_again.end());
  return n_bytes;
}

void Sender::forget(GroupId id) {
  const auto is_forgotten = [id](const OutgoingPtr& frame) {
    return frame->channel == id && frame->number == 0 && frame->tag.operation != 0;
  };
  std::erase_if(shorts_, is_forgotten);
  std::erase_if(waiting_, [&](const OutgoingPtr& frame) {
    if (!is_forgotten(frame)) return false;
    waiting_bytes_ -= frame->n_bytes;
    return true;
  });
}

void Sender::fail(ErrorKind kind, const std::string& why) {
  for (Piece& piece : pieces_) {
    if (piece.frame) report(*piece.frame, kind, why);
  }
  for (const auto* queue : {&shorts_, &waiting_}) {
    for (const OutgoingPtr& frame : *queue)
      report(*frame, kind, why);
  }
  for (const auto& [number, frame] : untaken_)
    report(*frame, kind, why);
  first_ += pieces_.size();
  pieces_.clear();
  shorts_.clear();
  waiting_.clear();
  waiting_bytes_ = 0;
  due_shorts_.clear();
  due_.clear();
  untaken_.clear();
  ahead_bytes_ = 0;
  under_way_.clear();
}

/// Once for each frame; without a reason, it went well.
void Sender::report(Outgoing& frame, ErrorKind kind, const std::string& why) {
  if (frame.reported) return;
  frame.reported = true;
  frame.inbox->complete({frame.id, frame.n_bytes, why, kind});
}

}  // namespace fedcomm::tcp
