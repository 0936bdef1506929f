// Engine, the part that ends things: what members tell each other about themselves (control
// frames), deadlines, members that are gone, and a group that breaks.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <utility>

#include "collective/engine.h"

namespace fedcomm {
namespace {

constexpr Tag kControlTag{0, 0};
constexpr auto kGoodbyeTime = std::chrono::seconds(2);
constexpr auto kGoodbyePoll = std::chrono::microseconds(500);

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

}  // namespace

// --- control frames ------------------------------------------------------------------------------

void Engine::post_control_receives() {
  for (const int peer : peers()) {
    auto& buffer = control_buffers_[static_cast<std::size_t>(peer)];
    buffer = std::make_shared<Buffer>(kControlFrameBytes);
    requests_[transport_->receive(peer, kControlTag, buffer)] = {nullptr, 0, false, peer};
  }
}

void Engine::complete_control(int member, const Completion& completion) {
  if (member < 0) {
    --n_control_sends_;
    return;
  }
  auto& departed = departed_[static_cast<std::size_t>(member)];
  if (!completion.error.empty()) {
    if (!departed) departed = 0;  // it spoke, but made no sense, or never will: count it as gone
    lost_[static_cast<std::size_t>(member)] = completion.error;
    return;
  }
  const BufferPtr& buffer = control_buffers_[static_cast<std::size_t>(member)];
  const std::span<std::byte> frame = buffer->bytes().first(completion.n_bytes);
  const FrameHeader header = parse_header(frame);
  if (header.session != 0 && context_.session == 0) {
    // The peer has ended the handshake and then failed or left. This member must end its handshake
    // too, for which everything is on its way, and hear of it then.
    early_.emplace_back(member, completion);
    return;
  }
  const bool other_session = header.session != 0 && header.session != context_.session;
  if (header.epoch < context_.epoch || other_session) {  // left over from an earlier group
    requests_[transport_->receive(member, kControlTag, buffer)] = {nullptr, 0, false, member};
    return;
  }
  const std::size_t around = kHeaderBytes + context_.sealer->overhead_bytes();
  if (frame.size() < around || header.payload_bytes != frame.size() - around) {
    fail(ErrorKind::corrupt_frame, context_.at(member) + "control frame of a wrong length");
  }
  const std::span<std::byte> payload = frame.subspan(kHeaderBytes, header.payload_bytes);
  context_.sealer->open(frame, payload);
  if (header.kind == FrameKind::data) {
    fail(ErrorKind::corrupt_frame, context_.at(member) + "sent data as a control frame");
  }
  if (header.kind == FrameKind::goodbye) {
    departed = header.sequence;
    return;
  }
  const AbortNotice notice = parse_abort(payload);
  const bool known = notice.error_kind >= static_cast<std::uint8_t>(ErrorKind::invalid_argument) &&
                     notice.error_kind <= static_cast<std::uint8_t>(ErrorKind::internal);
  const auto kind = known ? static_cast<ErrorKind>(notice.error_kind) : ErrorKind::internal;
  // The one that the peer has lost; a peer that names this member has lost sight of it.
  const bool names_another = notice.detail >= 0 && notice.detail < context_.n_members() &&
                             notice.detail != context_.member;
  const Error error(kind, context_.at(member) + "failed: " + notice.message,
                    kind == ErrorKind::peer_lost && !names_another ? member : notice.detail);
  break_group({error, header.sequence}, false);
  if (ending_) {  // an operation before that one may fail as well
    requests_[transport_->receive(member, kControlTag, buffer)] = {nullptr, 0, false, member};
  }
}

/// Tells one peer; one that cannot be reached must not keep the others from being told.
void Engine::send_control(FrameKind kind, std::uint32_t sequence, int member,
                          std::span<const std::byte> payload) {
  FrameHeader header;
  header.kind = kind;
  header.sealer = context_.sealer->id();
  header.session = context_.session;
  header.epoch = context_.epoch;
  header.source = static_cast<std::uint16_t>(context_.member);
  header.destination = static_cast<std::uint16_t>(member);
  header.sequence = sequence;
  header.payload_bytes = payload.size();
  const std::size_t n_bytes = kHeaderBytes + payload.size() + context_.sealer->overhead_bytes();
  auto frame = std::make_shared<Buffer>(n_bytes);
  write_header(header, frame->bytes());
  std::copy(payload.begin(), payload.end(), frame->data() + kHeaderBytes);
  context_.sealer->seal(frame->bytes());
  try {
    requests_[transport_->send(member, kControlTag, frame, n_bytes)] = {nullptr, 0, true, -1};
    ++n_control_sends_;
  } catch (const Error&) {
    departed_[static_cast<std::size_t>(member)] = n_finished_;
  }
}

void Engine::say_goodbye() {
  try {
    if (!broken()) {
      for (const int peer : peers()) {
        if (departed_[static_cast<std::size_t>(peer)]) continue;
        send_control(FrameKind::goodbye, n_finished_, peer, {});
      }
    }
    const auto deadline = Clock::now() + kGoodbyeTime;
    while (n_control_sends_ > 0 && Clock::now() < deadline) {
      if (!take_completions()) transport_->wait(kGoodbyePoll);
    }
  } catch (const std::exception&) {
    // Leaving anyway.
  }
  for (const auto& [id, target] : requests_)
    transport_->cancel(id);
  requests_.clear();
}

// --- what ends an operation, and the group -------------------------------------------------------

/// Slow is not dead: bytes of frames that are not complete are progress as well.
void Engine::note_moved_bytes() {
  for (const int peer : peers()) {
    auto& known = moved_bytes_[static_cast<std::size_t>(peer)];
    const std::uint64_t now = transport_->moved_bytes(peer);
    if (now == known) continue;
    known = now;
    last_data_ = Clock::now();
    last_heard_[static_cast<std::size_t>(peer)] = last_data_;
  }
}

void Engine::check_deadlines() {
  note_moved_bytes();
  if (loss_ || ending_) return;  // which have deadlines of their own
  for (const Active& active : active_) {
    // Operations share the links: what moves one shows that the others are only waiting their turn.
    const auto since = std::max(active.started, last_data_);
    const double waited = std::chrono::duration<double>(Clock::now() - since).count();
    if (waited < active.execution->spec().timeout_s) continue;
    const int member = active.execution->waiting_for(last_heard_);
    const std::string who = member >= 0 ? context_.at(member) : context_.at(context_.member);
    const std::string why = member >= 0 ? transport_->unreachable(member) : std::string();
    if (!why.empty()) {
      const Error lost(ErrorKind::peer_lost,
                       who + why + ", for " + seconds_text(active.execution->spec().timeout_s) +
                           " " + active.execution->where(),
                       member);
      throw Failure(lost, active.execution->sequence());
    }
    const char* of =
        active.execution->computes() ? "no progress of the GPU for " : "no progress for ";
    const Error late(ErrorKind::timeout, who + of +
                                             seconds_text(active.execution->spec().timeout_s) +
                                             " " + active.execution->where());
    throw Failure(late, active.execution->sequence());
  }
}

void Engine::note_departed() {
  for (const int peer : peers()) {
    const auto& last = departed_[static_cast<std::size_t>(peer)];
    if (!last) continue;
    for (const Active& active : active_) {
      if (active.execution->sequence() <= *last) continue;
      const std::string& why = lost_[static_cast<std::size_t>(peer)];
      note_loss(Error(ErrorKind::peer_lost,
                      context_.at(peer) + (why.empty() ? "left the group" : why) + " before " +
                          active.execution->where().substr(3),
                      peer),
                *active.execution);
    }
  }
}

void Engine::note_loss(const Error& error, const Execution& execution) {
  if (ending_) return;  // the reason is known
  if (!loss_) loss_ = {error, execution.sequence(), Clock::now()};
}

void Engine::check_loss() {
  if (!loss_) return;
  const bool is_missed = std::any_of(active_.begin(), active_.end(), [this](const Active& active) {
    return active.execution->sequence() == loss_->sequence;
  });
  if (!is_missed) {
    loss_.reset();  // all that the operation needed had come before
  } else if (Clock::now() - loss_->noticed >= kReasonGrace) {
    throw Failure(loss_->error, loss_->sequence);
  }
}

/// An element's index means nothing in another operation than the one that has the element.
Error Engine::Failure::as_error_of(std::uint32_t operation) const {
  const bool is_elsewhere = kind() == ErrorKind::non_finite && operation != sequence;
  return Error(kind(), what(), is_elsewhere ? -1 : detail());
}

/// The group takes no more operations, and those from the failed one on are given up. Those before
/// it go on, here as at every other member that has heard of it, until check_ending() ends them.
void Engine::break_group(const Failure& failure, bool tell_peers) {
  if (ending_ && failure.sequence == 0) return end_all();  // for the reason that was known first
  if (ending_ ? failure.sequence >= ending_->sequence : broken().has_value()) return;
  loss_.reset();  // this is its reason
  {
    const std::lock_guard lock(mutex_);
    take_inbox();
    broken_.emplace(failure);
    open_before_ = failure.sequence;
    const bool is_heard_here = std::any_of(
        active_.begin(), active_.end(),
        [&](const Active& active) { return active.execution->sequence() >= failure.sequence; });
    failure_told_ = failure_told_ || tell_peers || is_heard_here;
    published_ = counters_;
  }
  give_up_from(failure.sequence);
  auto longest = std::chrono::duration<double>(kFinishGrace);
  for (const Active& active : active_) {
    longest = std::max(longest, std::chrono::duration<double>(active.execution->spec().timeout_s));
  }
  const auto now = Clock::now();
  const auto latest = now + std::chrono::ceil<Clock::duration>(longest);
  ending_ = {failure.sequence, now, ending_ ? std::min(latest, ending_->latest) : latest};
  if (tell_peers) {
    std::byte payload[kControlFrameBytes / 2];
    const std::size_t n_bytes = write_abort(
        {static_cast<std::uint8_t>(failure.kind()), failure.detail(), failure.what()}, payload);
    for (const int peer : peers()) {
      send_control(FrameKind::abort, failure.sequence, peer,
                   std::span<const std::byte>(payload).first(n_bytes));
    }
  }
  check_ending();
}

/// Nobody may read or write the caller's tensors from here on: the work is about to fail.
void Engine::give_up_from(std::uint32_t sequence) {
  std::erase_if(requests_, [&](const auto& request) {
    const auto& [id, target] = request;
    if (target.execution == nullptr || target.execution->sequence() < sequence) return false;
    transport_->cancel(id);
    return true;
  });
  for (auto it = active_.begin(); it != active_.end();) {
    const auto each = it++;
    if (each->execution->sequence() < sequence) continue;
    try {
      each->execution->stop();
    } catch (const Error&) {
      // The GPU has failed, and will not write either.
    }
    given_up_.splice(given_up_.end(), active_, each);
  }
}

/// Operations before the one that failed go on while they move, those that this member has not
/// begun yet as well, for as long as the slowest of them could stand still at the most.
void Engine::check_ending() {
  if (!ending_) return;
  note_moved_bytes();
  bool may_begin = n_taken_ + 1 < ending_->sequence;
  {
    const std::lock_guard lock(mutex_);
    may_begin = may_begin && !closing_;
  }
  const auto now = Clock::now();
  const bool ended = active_.empty() && !may_begin;
  const bool stuck = now - std::max(ending_->begun, last_data_) >= kFinishGrace;
  if (ended || stuck || now >= ending_->latest) end_all();
}

void Engine::end_all() {
  std::optional<Failure> failure;
  {
    const std::lock_guard lock(mutex_);
    take_inbox();
    failure = broken_;
    open_before_ = 0;
    failure_told_ = failure_told_ || !active_.empty();
    published_ = counters_;
  }
  give_up_from(0);
  ending_.reset();
  for (const Active& active : std::exchange(given_up_, {})) {
    active.execution->work().fail(failure->as_error_of(active.execution->sequence()));
  }
}

}  // namespace fedcomm
