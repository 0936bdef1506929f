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
  break_group(Error(kind, context_.at(member) + "failed: " + notice.message,
                    kind == ErrorKind::peer_lost && !names_another ? member : notice.detail),
              false);
}

/// Tells one peer; one that cannot be reached must not keep the others from being told.
void Engine::send_control(FrameKind kind, int member, std::span<const std::byte> payload) {
  FrameHeader header;
  header.kind = kind;
  header.sealer = context_.sealer->id();
  header.session = context_.session;
  header.epoch = context_.epoch;
  header.source = static_cast<std::uint16_t>(context_.member);
  header.destination = static_cast<std::uint16_t>(member);
  header.sequence = n_finished_;
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
        if (!departed_[static_cast<std::size_t>(peer)]) send_control(FrameKind::goodbye, peer, {});
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
  if (loss_) return;  // which ends in kReasonGrace
  for (const Active& active : active_) {
    // Operations share the links: what moves one shows that the others are only waiting their turn.
    const auto since = std::max(active.started, last_data_);
    const double waited = std::chrono::duration<double>(Clock::now() - since).count();
    if (waited < active.execution->spec().timeout_s) continue;
    const int member = active.execution->waiting_for(last_heard_);
    const std::string who = member >= 0 ? context_.at(member) : context_.at(context_.member);
    const std::string why = member >= 0 ? transport_->unreachable(member) : std::string();
    if (!why.empty()) {
      throw Error(ErrorKind::peer_lost,
                  who + why + ", for " + seconds_text(active.execution->spec().timeout_s) + " " +
                      active.execution->where(),
                  member);
    }
    const char* of =
        active.execution->computes() ? "no progress of the GPU for " : "no progress for ";
    throw Error(ErrorKind::timeout, who + of + seconds_text(active.execution->spec().timeout_s) +
                                        " " + active.execution->where());
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
    throw Error(loss_->error);
  }
}

void Engine::break_group(const Error& error, bool tell_peers) {
  {
    const std::lock_guard lock(mutex_);
    if (broken_) return;
    broken_ = error;
    while (!inbox_.empty()) {
      active_.push_back({std::move(inbox_.front()), Clock::now()});
      inbox_.pop_front();
    }
    published_ = counters_;
    failure_told_ = tell_peers || !active_.empty();
  }
  // Nobody may write to the caller's tensors once the work has failed.
  for (const auto& [id, target] : requests_) {
    if (target.execution != nullptr) transport_->cancel(id);
  }
  std::erase_if(requests_, [](const auto& entry) { return entry.second.execution != nullptr; });
  std::list<Active> failed;
  failed.swap(active_);
  for (Active& active : failed) {
    try {
      active.execution->stop();
    } catch (const Error&) {
      // The GPU has failed, and will not write either.
    }
    active.execution->work().fail(error);
  }
  if (!tell_peers) return;
  std::byte payload[kControlFrameBytes / 2];
  const std::size_t n_bytes =
      write_abort({static_cast<std::uint8_t>(error.kind()), error.detail(), error.what()}, payload);
  for (const int peer : peers()) {
    send_control(FrameKind::abort, peer, std::span<const std::byte>(payload).first(n_bytes));
  }
}

}  // namespace fedcomm
