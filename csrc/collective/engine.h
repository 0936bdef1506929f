// Engine: the progress thread of a group. It feeds executions to the transport and back, keeps the
// deadlines, and breaks the group, here and at the peers, when something goes wrong.
//
// While no operation is in flight the thread looks around 50 times a second; while one waits for a
// peer it sleeps until the transport wakes it, or, over a transport that cannot, it polls, at first
// without pause, then ever more rarely.
#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>

#include "collective/execution.h"
#include "transport/transport.h"

namespace fedcomm {

/// How long a loss waits for its reason. A member that fails tells all others and may end, and
/// whoever has heard of it ends as well: the end of one and the news of another come by different
/// ways, in any order.
constexpr std::chrono::milliseconds kReasonGrace{200};

/// How long operations before one that failed may stand still before they end with its error. They
/// may have all that they need on its way, and members that have heard of the failure serve them.
constexpr std::chrono::milliseconds kFinishGrace{1000};

class Engine {
 public:
  Engine(GroupContext context, std::unique_ptr<Transport> transport);
  ~Engine();

  /// Starts an operation; its number is the count of operations so far, from 1.
  /// Throws group_broken.
  std::shared_ptr<Work> submit(OperationSpec spec, Plan plan);
  /// Breaks the group here and at the peers: all operations end at once. Does nothing to a group
  /// that is broken already.
  void abort(const Error& error);
  /// Waits for what is in flight, says goodbye, stops the thread. Idempotent. In a broken group
  /// that is what came before the failed operation.
  void close();

  /// Frames made from now on carry this session. Once, when the handshake has ended.
  void set_session(std::uint64_t session);

  std::optional<Error> broken() const;
  Counters counters() const;
  /// Rates at which frames came are counted anew from here on.
  void forget_rates();
  const GroupContext& context() const { return context_; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Active {
    std::unique_ptr<Execution> execution;
    Clock::time_point started;
  };
  /// What breaks the group: thrown by what fails in one operation.
  struct Failure : Error {
    Failure(const Error& error, std::uint32_t operation) : Error(error), sequence(operation) {}
    std::uint32_t sequence;  // of the operation; 0: of none, so that none is spared
    Error as_error_of(std::uint32_t operation) const;
  };
  /// Of a group that is broken, as long as operations before the failed one may end well.
  struct Ending {
    std::uint32_t sequence;  // of the earliest that is known to have failed
    Clock::time_point begun;
    Clock::time_point latest;
  };
  /// Of a peer, in an operation that cannot end without it.
  struct Loss {
    Error error;
    std::uint32_t sequence;
    Clock::time_point noticed;
  };
  struct Target {
    Execution* execution = nullptr;  // null: a control frame
    std::uint32_t step = 0;
    bool is_send = false;
    int member = -1;
  };

  void run();
  void progress();
  bool take_completions();
  void post_control_receives();
  void raise_if_broken(std::uint32_t sequence);
  void take_inbox();
  void note_received(int member, std::size_t n_frame_bytes);
  void complete(const Target& target, const Completion& completion);
  void complete_control(int member, const Completion& completion);
  bool post_transfers();
  void post(Execution& execution, const Execution::Transfer& transfer);
  bool compute();
  Failure at_own_step(const Error& error, const Execution& execution) const;
  void retire_finished();
  void note_moved_bytes();
  void check_deadlines();
  void note_departed();
  void note_loss(const Error& error, const Execution& execution);
  void check_loss();
  void break_group(const Failure& failure, bool tell_peers);
  void give_up_from(std::uint32_t sequence);
  void check_ending();
  void end_all();

  void send_control(FrameKind kind, std::uint32_t sequence, int member,
                    std::span<const std::byte> payload);
  void say_goodbye();
  void idle();

  std::vector<int> peers() const;

  GroupContext context_;
  std::unique_ptr<Transport> transport_;

  std::mutex submit_mutex_;  // orders submissions; executions are made under it
  std::uint32_t n_submitted_ = 0;

  mutable std::mutex mutex_;  // guards the next block
  std::condition_variable submitted_;
  std::deque<std::unique_ptr<Execution>> inbox_;
  std::optional<Error> requested_abort_;
  std::optional<std::uint64_t> new_session_;
  std::optional<Failure> broken_;
  std::uint32_t open_before_ = 0;  // operations before this one may begin though it is broken
  bool failure_told_ = false;      // to a caller of this member
  bool closing_ = false;
  bool forget_rates_ = false;
  Counters published_;

  // Of the progress thread alone.
  std::list<Active> active_;
  std::uint32_t n_taken_ = 0;  // operations, out of the inbox
  std::optional<Ending> ending_;
  std::list<Active> given_up_;  // since then: not told yet, as an earlier failure may come
  std::unordered_map<RequestId, Target> requests_;
  std::vector<BufferPtr> control_buffers_;              // by member
  std::vector<std::optional<std::uint32_t>> departed_;  // last operation of members that left
  std::vector<std::string> lost_;                       // why, of members that could not say it
  std::optional<Loss> loss_;                            // the first, not yet told
  std::vector<Completion> completions_;
  std::vector<std::pair<int, Completion>> early_;  // control frames from beyond the handshake
  Counters counters_;
  std::vector<LinkMeter> meters_;  // by member
  Clock::time_point last_look_;    // for what has arrived
  std::uint32_t n_finished_ = 0;
  std::size_t n_control_sends_ = 0;
  std::vector<Clock::time_point> last_heard_;  // by member
  std::vector<std::uint64_t> moved_bytes_;     // by member, as the transport told last
  Clock::time_point last_progress_;            // of anything
  Clock::time_point last_data_;                // of an operation

  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace fedcomm
