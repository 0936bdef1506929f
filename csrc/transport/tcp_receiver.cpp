#include "transport/tcp_receiver.h"

#include <algorithm>

#include "transport/tcp_sender.h"

namespace fedcomm::tcp {
namespace {

constexpr std::uint64_t kFurthestAhead = 1u << 20;
constexpr std::size_t kFrameCost = 256;  // of bookkeeping, so that empty frames are bounded as well
constexpr std::size_t kIdleBytes = 64u << 20;

}  // namespace

Receiver::Receiver(int rank, std::size_t early_bytes, Matcher& matcher,
                   std::function<void(std::uint64_t)> taken)
    : rank_(rank),
      early_limit_(early_bytes),
      matcher_(matcher),
      taken_(std::move(taken)),
      pool_(std::make_shared<BufferPool>(kIdleBytes)) {}

Receiver::Target Receiver::begin(const Record& record) {
  if (record.number >= next_ + kFurthestAhead) {
    fail(ErrorKind::corrupt_frame, "is too far ahead");
  }
  if (!is_new(record.number)) return {};
  const IncomingPtr frame = frame_of(record);
  // A frame longer than its buffer, or one of a closed group, is read and forgotten.
  std::byte* data = frame->buffer && frame->buffer->size() >= frame->n_bytes
                        ? frame->buffer->data() + record.offset
                        : nullptr;
  return {frame, data};
}

IncomingPtr Receiver::frame_of(const Record& record) {
  const GroupId channel{record.group, record.epoch};
  const MatchKey key{rank_, record.tag.operation, record.tag.slot};
  IncomingPtr& frame = frames_[record.frame];
  if (frame) {
    if (frame->channel != channel || frame->key != key || frame->n_bytes != record.frame_bytes) {
      fail(ErrorKind::corrupt_frame, "sent pieces of a frame that contradict each other");
    }
    return frame;
  }
  frame = std::make_shared<Incoming>();
  frame->channel = channel;
  frame->key = key;
  frame->number = record.frame;
  frame->n_bytes = record.frame_bytes;
  frame->ordered = record.ordered;
  const bool all_before = next_ >= frame->number;
  matcher_.arrive(frame, all_before);
  if (frame->matched) {
    frame->buffer = frame->receive.buffer;
    return frame;
  }
  if (frame->ordered && !all_before) deferred_.push_back(frame);
  frame->early = true;
  early_bytes_ += frame->n_bytes + kFrameCost;
  if (early_bytes_ > early_limit_) {
    fail(ErrorKind::peer_lost, "sent more than " + std::to_string(early_limit_) +
                                   " bytes that nobody here has asked for");
  }
  frame->buffer = pool_->take(frame->n_bytes);
  return frame;
}

void Receiver::progress(const Record& record, const Target& target, std::size_t n_bytes) {
  if (!target.frame) return;
  // Not what a lost stream had brought already: it would be progress without end.
  std::size_t& known = n_partial_[record.number];
  if (n_bytes <= known) return;
  matcher_.moved(target.frame->channel, rank_, n_bytes - known);
  n_received_ += n_bytes - known;
  known = n_bytes;
}

void Receiver::finish(const Record& record, const Target& target) {
  if (!target.frame || !is_new(record.number)) return;
  const IncomingPtr frame = target.frame;
  n_partial_.erase(record.number);
  mark(record.number);
  frame->n_received += record.n_bytes;
  if (frame->n_received < frame->n_bytes) return;
  frame->complete = true;
  frames_.erase(frame->number);
  if (frame->matched) conclude(*frame);
}

bool Receiver::accept(const Record& record) {
  if (record.number >= next_ + kFurthestAhead) {
    fail(ErrorKind::corrupt_frame, "is too far ahead");
  }
  if (!is_new(record.number)) return false;
  mark(record.number);
  return true;
}

void Receiver::mark(std::uint64_t number) {
  if (number != next_) {
    ahead_.insert(number);
    return;
  }
  ++next_;
  while (!ahead_.empty() && *ahead_.begin() == next_) {
    ahead_.erase(ahead_.begin());
    ++next_;
  }
  if (deferred_.empty()) return;
  std::sort(deferred_.begin(), deferred_.end(),
            [](const IncomingPtr& a, const IncomingPtr& b) { return a->number < b->number; });
  while (!deferred_.empty() && deferred_.front()->number <= next_) {
    const IncomingPtr frame = deferred_.front();
    deferred_.erase(deferred_.begin());
    if (!frame->matched && matcher_.retry(frame) && frame->complete) conclude(*frame);
  }
}

void Receiver::post(GroupId id, Tag tag, PostedReceive receive) {
  const IncomingPtr frame =
      matcher_.post(id, {rank_, tag.operation, tag.slot}, std::move(receive), next_);
  if (frame && frame->complete) conclude(*frame);
}

void Receiver::drop(const IncomingPtr& frame) {
  if (frame->complete) conclude(*frame);
}

/// A frame that is complete and has an owner, or none for ever.
void Receiver::conclude(Incoming& frame) {
  matcher_.deliver(frame);
  if (frame.early) early_bytes_ -= frame.n_bytes + kFrameCost;
  frame.buffer.reset();
  frame.receive.buffer.reset();
  if (frame.n_bytes > kEagerBytes) taken_(frame.number);
}

}  // namespace fedcomm::tcp
