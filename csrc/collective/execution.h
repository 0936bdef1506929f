// Execution: one operation under way. It walks a plan: has a stage run the steps that compute,
// hands out those that send and receive, and checks every frame that arrives. It owns no thread and
// no transport; the engine drives it.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "collective/link_meter.h"
#include "collective/stage.h"
#include "collective/work.h"

namespace fedcomm {

/// Seconds and bytes, added to by the progress thread.
struct Counters {
  std::uint64_t operations = 0;
  std::uint64_t frames = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t frame_bytes = 0;
  double encode_s = 0;
  double decode_s = 0;
  double wire_s = 0;
  std::vector<std::uint64_t> sent_to;
  std::vector<LinkTraffic> links;  // by member
};

class Execution {
 public:
  Execution(const GroupContext& context, OperationSpec spec, Plan plan, std::uint32_t sequence,
            std::shared_ptr<Work> work);

  const OperationSpec& spec() const { return spec_; }
  std::uint32_t sequence() const { return sequence_; }
  Work& work() { return *work_; }

  bool finished() const { return n_left_ == 0 && begun_.empty(); }
  bool has_compute() const { return !ready_compute_.empty() && stage_->has_room(); }
  /// Begins the earliest step that can begin.
  void compute(Counters& counters);
  /// Whether the earliest step that can begin has the stage choose from the whole input what to
  /// send.
  bool is_to_choose() const;
  /// Whether that has been begun, and there is nothing to send yet.
  bool chooses() const { return chooses_; }
  /// Whether steps have been begun that have not ended.
  bool computes() const { return !begun_.empty(); }
  /// Whether its tensors are in a GPU's memory.
  bool on_gpu() const { return spec_.input.device != kHost; }
  /// Goes on with those that have ended since. Returns whether there were any.
  bool settle(Counters& counters);
  /// Gives up: no tensor of the caller's is read or written any more.
  void stop() { stage_->stop(); }

  /// A send or receive to hand to the transport, or none.
  struct Transfer {
    std::uint32_t step;
    bool is_send;
    int member;
    std::uint32_t slot;
    BufferPtr buffer;
    std::size_t n_bytes;  // of a send
  };
  std::optional<Transfer> next_transfer();

  void sent(std::uint32_t step, Counters& counters);
  /// Checks the frame. Returns false for one of an earlier epoch, whose receive must be posted
  /// again (`retry`). Throws on anything else that does not belong here.
  bool received(std::uint32_t step, std::size_t n_bytes);
  Transfer retry(std::uint32_t step) const;

  /// Of the members that owe a frame, the one heard of least recently; -1 if none does.
  int waiting_for(const std::vector<std::chrono::steady_clock::time_point>& last_heard) const;
  /// "in round 12, bucket 3"
  std::string where() const;

 private:
  struct Payload {
    BufferPtr frame;  // as on the wire
    BufferPtr plain;  // the payload as the codec knows it; null where the frame holds it as it is
    FrameHeader header;
    BufferPtr copy;  // the stage's
    std::uint32_t uses_left = 0;
    std::uint32_t lane = kNone;

    std::size_t n_frame_bytes(const FrameSealer& sealer) const {
      return kHeaderBytes + header.payload_bytes + sealer.overhead_bytes();
    }
    std::span<std::byte> wire_bytes() const {
      return frame->bytes().subspan(kHeaderBytes, header.payload_bytes);
    }
    std::span<std::byte> bytes() const {
      return plain ? plain->bytes().first(header.payload_bytes) : wire_bytes();
    }
  };
  struct Scratch {
    BufferPtr buffer;
    double weight = 0;  // of all that has been added
    std::uint32_t uses_left = 0;
    std::uint32_t lane = kNone;
  };
  struct Lane {
    std::deque<std::uint32_t> queue;  // steps not yet admitted, in order
    std::size_t n_alive = 0;
    std::size_t window = 0;  // the most that are alive
  };

  void index_plan();
  void set_windows();
  void admit(std::uint32_t lane);
  void make_ready(std::uint32_t step);
  void complete(std::uint32_t step);
  void release_payload(std::uint32_t payload);
  void release_scratch(std::uint32_t scratch);

  void begin(const Step& step);
  void begin_encoding(const Step& step);
  bool encodes_choice(const Step& step) const;
  void accumulate(const Step& step);
  float divisor_of(const Step& step) const;
  void decode(const Step& step);
  void end(std::uint32_t step, std::size_t n_bytes);
  [[noreturn]] void raise(const Error& error, const Step& step) const;
  EncodeOptions encode_options(const Step& step) const;
  std::span<float> scratch_floats(const Step& step);
  std::span<float> whole_scratch(const Step& step);
  Feedback feedback_of(const Step& step) const;
  void open(Payload& payload, std::span<const std::byte> frame);
  void seal(Payload& payload);
  bool plain_apart() const;
  std::size_t frame_capacity() const;
  FrameHeader expected_header() const;
  void check_identity(const FrameHeader& header, const Step& step) const;

  const GroupContext& context_;
  OperationSpec spec_;
  Plan plan_;
  std::uint32_t sequence_;
  std::shared_ptr<Work> work_;

  std::size_t n_left_ = 0;
  std::vector<std::uint32_t> n_blockers_;  // by step
  std::vector<std::uint32_t> dependents_;  // by step, packed
  std::vector<std::size_t> dependents_begin_;
  std::vector<Payload> payloads_;
  std::vector<Scratch> scratch_;
  std::vector<Lane> lanes_;
  std::vector<std::uint32_t> waiting_;  // receives posted and not completed, by member
  std::priority_queue<std::uint32_t, std::vector<std::uint32_t>, std::greater<>> ready_compute_;
  std::deque<std::uint32_t> ready_transfers_;
  std::deque<std::uint32_t> begun_;  // steps that compute and have not ended
  bool chooses_ = false, has_chosen_ = false;
  std::unique_ptr<Stage> stage_;  // the last: it ends before the memory that it works on
};

}  // namespace fedcomm
