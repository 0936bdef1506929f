#include "collective/engine.h"

#include <sys/prctl.h>

#include <algorithm>
#include <cfenv>
#include <exception>
#include <utility>

namespace fedcomm {
namespace {

// While no operation is in flight, MPI still wants to be polled: a small message that was "sent"
// may lie in a queue of its own, and peers may have news.
constexpr auto kIdlePoll = std::chrono::milliseconds(20);
// Poll without pause for the latency of a fast network, then ever more rarely.
constexpr auto kSpin = std::chrono::microseconds(50);
// Where tensors are on a GPU the thread has a core for itself, and an operation waits for a dozen
// things, one after the other, each of which takes less than this.
constexpr auto kDeviceSpin = std::chrono::microseconds(500);
// A GPU tells of the end of a step only when it is asked.
constexpr auto kDevicePoll = std::chrono::microseconds(20);
constexpr auto kLongestSleep = std::chrono::microseconds(500);
// After this long without a look, what has arrived is no measure of when it did.
constexpr auto kLongestLookAway = std::chrono::milliseconds(50);

}  // namespace

Engine::Engine(GroupContext context, std::unique_ptr<Transport> transport)
    : context_(std::move(context)), transport_(std::move(transport)) {
  const auto n = static_cast<std::size_t>(context_.n_members());
  control_buffers_.resize(n);
  departed_.resize(n);
  lost_.resize(n);
  moved_bytes_.resize(n);
  counters_.sent_to.assign(n, 0);
  counters_.links.resize(n);
  meters_.resize(n);
  last_heard_.assign(n, Clock::now());
  published_ = counters_;
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  close();
}

std::shared_ptr<Work> Engine::submit(OperationSpec spec, Plan plan) {
  const std::lock_guard ordered(submit_mutex_);
  {
    const std::lock_guard lock(mutex_);
    raise_if_broken(n_submitted_ + 1);
  }
  auto work = std::make_shared<Work>();
  auto execution = std::make_unique<Execution>(context_, std::move(spec), std::move(plan),
                                               n_submitted_ + 1, work);
  ++n_submitted_;
  const std::lock_guard lock(mutex_);
  raise_if_broken(n_submitted_);  // since: nobody would take it out of the inbox
  inbox_.push_back(std::move(execution));
  submitted_.notify_one();
  transport_->wake();
  return work;
}

/// With mutex_ held.
void Engine::raise_if_broken(std::uint32_t sequence) {
  if (broken_ && sequence >= open_before_) {
    // A peer's failure may arrive before this member's own call: that call ends as the peer's did.
    if (!failure_told_) {
      failure_told_ = true;
      throw broken_->as_error_of(sequence);
    }
    fail(ErrorKind::group_broken, "the group is broken and must be rebuilt; it failed with: " +
                                      std::string(broken_->what()));
  }
  if (closing_) fail(ErrorKind::group_broken, "the group is closed");
}

void Engine::abort(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!requested_abort_) requested_abort_ = error;
  submitted_.notify_one();
  transport_->wake();
}

void Engine::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    submitted_.notify_one();
    transport_->wake();
  }
  const std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void Engine::set_session(std::uint64_t session) {
  const std::lock_guard lock(mutex_);
  new_session_ = session;
  submitted_.notify_one();
}

std::optional<Error> Engine::broken() const {
  const std::lock_guard lock(mutex_);
  return broken_;
}

Counters Engine::counters() const {
  const std::lock_guard lock(mutex_);
  return published_;
}

void Engine::forget_rates() {
  const std::lock_guard lock(mutex_);
  forget_rates_ = true;
  submitted_.notify_one();
}

// --- the progress thread -------------------------------------------------------------------------

void Engine::run() {
  // Results must not depend on how the thread that opened the group rounds, or treats denormals.
  std::fesetenv(FE_DFL_ENV);
  ::prctl(PR_SET_TIMERSLACK, 1000UL);  // ns; 50,000 else, by which each short sleep is longer
  try {
    post_control_receives();
  } catch (const std::exception& error) {
    break_group({Error(ErrorKind::peer_lost, error.what()), 0}, false);
  }
  for (;;) {
    std::optional<Error> abort_with;
    {
      std::unique_lock lock(mutex_);
      published_ = counters_;
      submitted_.wait_for(lock, kIdlePoll, [this] {
        return !active_.empty() || !inbox_.empty() || closing_ || requested_abort_ ||
               new_session_ || n_control_sends_ > 0;
      });
      abort_with.swap(requested_abort_);
      take_inbox();
      if (std::exchange(forget_rates_, false)) {
        for (std::size_t i = 0; i < meters_.size(); ++i) {
          meters_[i].forget();
          counters_.links[i].received_rate = 0;
        }
      }
      if (new_session_) context_.session = *std::exchange(new_session_, std::nullopt);
      if (active_.empty() && closing_ && !abort_with && !ending_) break;
    }
    if (abort_with && !ending_) break_group({*abort_with, 0}, true);
    progress();
  }
  say_goodbye();
}

/// With mutex_ held.
void Engine::take_inbox() {
  for (auto& execution : inbox_) {
    n_taken_ = execution->sequence();
    active_.push_back({std::move(execution), Clock::now()});
  }
  inbox_.clear();
}

void Engine::progress() {
  try {
    bool moved = take_completions();
    if (context_.session != 0) {
      for (const auto& [member, completion] : std::exchange(early_, {})) {
        complete_control(member, completion);
      }
    }
    note_departed();
    check_loss();
    moved = post_transfers() || moved;
    moved = compute() || moved;
    retire_finished();
    check_ending();
    if (moved) {
      last_progress_ = Clock::now();
    } else if (!active_.empty() || n_control_sends_ > 0) {
      check_deadlines();
      idle();
    }
  } catch (const Failure& failure) {
    break_group(failure, true);
  } catch (const Error& error) {
    break_group({error, 0}, true);
  } catch (const std::exception& error) {
    break_group({Error(ErrorKind::internal, error.what()), 0}, true);
  }
}

bool Engine::take_completions() {
  completions_.clear();
  transport_->poll(completions_);
  const auto now = Clock::now();
  if (now - std::exchange(last_look_, now) > kLongestLookAway) {
    for (LinkMeter& meter : meters_)
      meter.pause();
  }
  std::optional<Failure> first;  // one bad frame must not lose the news of the others
  const auto note = [&first](const Failure& failure) {
    if (!first || failure.sequence < first->sequence) first.emplace(failure);
  };
  for (const Completion& completion : completions_) {
    const auto found = requests_.find(completion.id);
    if (found == requests_.end()) continue;  // given up when the group broke
    const Target target = found->second;
    requests_.erase(found);
    try {
      if (target.execution == nullptr) {
        complete_control(target.member, completion);
      } else {
        complete(target, completion);
      }
    } catch (const Failure& failure) {
      note(failure);
    } catch (const Error& error) {
      note({error, 0});
    }
  }
  if (first) throw Failure(*first);
  return !completions_.empty();
}

void Engine::complete(const Target& target, const Completion& completion) {
  Execution& execution = *target.execution;
  try {
    if (!completion.error.empty()) fail(completion.kind, completion.error);
    if (target.is_send) {
      const std::uint64_t payload = counters_.payload_bytes, frames = counters_.frame_bytes;
      execution.sent(target.step, counters_);
      LinkTraffic& link = counters_.links[static_cast<std::size_t>(target.member)];
      link.payload_bytes_sent += counters_.payload_bytes - payload;
      link.frame_bytes_sent += counters_.frame_bytes - frames;
    } else if (!execution.received(target.step, completion.n_bytes)) {
      post(execution, execution.retry(target.step));
      return;
    } else {
      note_received(target.member, completion.n_bytes);
    }
  } catch (const Error& error) {
    const bool lost = error.kind() == ErrorKind::peer_lost;
    const Error placed(error.kind(),
                       context_.at(target.member) + error.what() + " " + execution.where(),
                       lost ? target.member : error.detail());
    if (!lost) throw Failure(placed, execution.sequence());
    return note_loss(placed, execution);
  }
  last_data_ = Clock::now();
  if (!target.is_send) last_heard_[static_cast<std::size_t>(target.member)] = last_data_;
}

void Engine::note_received(int member, std::size_t n_frame_bytes) {
  LinkTraffic& link = counters_.links[static_cast<std::size_t>(member)];
  link.frame_bytes_received += n_frame_bytes;
  link.payload_bytes_received += n_frame_bytes - kHeaderBytes - context_.sealer->overhead_bytes();
  link.received_rate = meters_[static_cast<std::size_t>(member)].note(n_frame_bytes, last_look_);
}

bool Engine::post_transfers() {
  bool posted = false;
  for (Active& active : active_) {
    while (const auto transfer = active.execution->next_transfer()) {
      post(*active.execution, *transfer);
      posted = true;
    }
  }
  return posted;
}

void Engine::post(Execution& execution, const Execution::Transfer& transfer) {
  const Tag tag{execution.sequence(), transfer.slot};
  const RequestId id =
      transfer.is_send ? transport_->send(transfer.member, tag, transfer.buffer, transfer.n_bytes)
                       : transport_->receive(transfer.member, tag, transfer.buffer);
  requests_[id] = {&execution, transfer.step, transfer.is_send, transfer.member};
}

/// Goes on with what a GPU has done, and begins one step of the oldest operation that has one. One
/// operation chooses from its input at a time: a GPU would share its memory among all of them, and
/// the link have nothing to send until it is through with the last.
bool Engine::compute() {
  bool moved = false;
  for (Active& active : active_) {
    Execution& execution = *active.execution;
    try {
      moved = execution.settle(counters_) || moved;
    } catch (const Error& error) {
      throw at_own_step(error, execution);
    }
  }
  bool one_chooses = false;
  for (Active& active : active_) {
    Execution& execution = *active.execution;
    if (!execution.has_compute() || (one_chooses && execution.is_to_choose())) {
      one_chooses = one_chooses || execution.chooses();
      continue;
    }
    try {
      execution.compute(counters_);
    } catch (const Error& error) {
      throw at_own_step(error, execution);
    }
    moved = true;
    break;
  }
  if (moved) last_data_ = Clock::now();
  return moved;
}

Engine::Failure Engine::at_own_step(const Error& error, const Execution& execution) const {
  return {Error(error.kind(), context_.at(context_.member) + error.what() + " " + execution.where(),
                error.detail()),
          execution.sequence()};
}

void Engine::retire_finished() {
  for (auto it = active_.begin(); it != active_.end();) {
    if (!it->execution->finished()) {
      ++it;
      continue;
    }
    ++counters_.operations;
    ++n_finished_;
    {
      const std::lock_guard lock(mutex_);
      published_ = counters_;
    }
    it->execution->work().finish();
    it = active_.erase(it);
  }
}

void Engine::idle() {
  const auto start = Clock::now();
  const auto quiet = start - last_progress_;
  bool computes = false, on_gpu = false;
  for (const Active& active : active_) {
    computes = computes || active.execution->computes();
    on_gpu = on_gpu || active.execution->on_gpu();
  }
  const bool must_ask = computes || !transport_->wakes_by_itself();
  if (must_ask && quiet < (on_gpu ? kDeviceSpin : kSpin)) {
    transport_->wait(std::chrono::microseconds(0));
  } else if (computes) {
    transport_->wait(kDevicePoll);
  } else if (!must_ask) {
    transport_->wait(kIdlePoll);
  } else {
    const auto pause = std::chrono::duration_cast<std::chrono::microseconds>(quiet) / 8;
    transport_->wait(
        std::clamp<std::chrono::microseconds>(pause, std::chrono::microseconds(20), kLongestSleep));
  }
  if (active_.empty() || computes) return;
  counters_.wire_s += std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int> Engine::peers() const {
  std::vector<int> others;
  for (int member = 0; member < context_.n_members(); ++member) {
    if (member != context_.member) others.push_back(member);
  }
  return others;
}

}  // namespace fedcomm
