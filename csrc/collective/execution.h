// Execution: one operation under way. It walks a plan: runs the steps that compute, hands out those
// that send and receive, and checks every frame that arrives. It owns no thread and no transport;
// the engine drives it.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/dtype.h"
#include "codec/codec.h"
#include "collective/plan.h"
#include "collective/work.h"
#include "wire/frame.h"

namespace fedcomm {

/// Error feedback of an all_reduce; empty spans mean none. `sender` spans are as long as the
/// bucket, `owner` spans as long as the part that this member owns.
struct Residuals {
  Feedback sender;
  Feedback owner;
};

/// What the caller asked for.
struct OperationSpec {
  Operation operation = Operation::all_reduce;
  Algorithm algorithm = Algorithm::direct;
  ReduceOp reduce = ReduceOp::sum;
  std::shared_ptr<const Codec> codec;  // null: plain bytes
  TensorView input;
  TensorView output;
  double weight = 1.0;
  Residuals residuals;
  NonFinitePolicy policy = NonFinitePolicy::error;
  std::uint64_t round = 0;
  std::uint32_t bucket = 0;
  double timeout_s = 30.0;
};

/// What is the same for all operations of a group.
struct GroupContext {
  std::string transport;
  std::vector<std::string> labels;  // of the members, for messages
  std::uint64_t session = 0;
  std::uint32_t epoch = 0;
  int member = 0;
  std::size_t segment_elems = 0;  // of float32; segments of plain bytes are 4 times as long
  std::size_t window_bytes = 0;   // of frames alive in one operation
  std::shared_ptr<const FrameSealer> sealer;
  std::shared_ptr<const PayloadMask> mask;  // may be null
  std::shared_ptr<BufferPool> pool;

  int n_members() const { return static_cast<int>(labels.size()); }
  /// "[mpi] cloud 2: "
  std::string at(int about) const {
    return "[" + transport + "] " + labels[static_cast<std::size_t>(about)] + ": ";
  }
};

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
};

class Execution {
 public:
  Execution(const GroupContext& context, OperationSpec spec, Plan plan, std::uint32_t sequence,
            std::shared_ptr<Work> work);

  const OperationSpec& spec() const { return spec_; }
  std::uint32_t sequence() const { return sequence_; }
  Work& work() { return *work_; }

  bool finished() const { return n_left_ == 0; }
  bool has_compute() const { return !ready_compute_.empty(); }
  /// Runs the earliest step that can run.
  void compute(Counters& counters);

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
    std::uint32_t lane = kNone;
  };
  struct Lane {
    std::deque<std::uint32_t> queue;  // steps not yet admitted, in order
    std::size_t n_alive = 0;
  };

  void index_plan();
  void admit(std::uint32_t lane);
  void make_ready(std::uint32_t step);
  void complete(std::uint32_t step);
  void release_payload(std::uint32_t payload);
  void release_scratch(std::uint32_t scratch);

  void encode(const Step& step);
  bool encodes_whole() const;
  std::size_t encode_piece(Range range, std::span<std::byte> room);
  EncodeOptions encode_options(const Step& step, std::size_t first) const;
  void accumulate(const Step& step);
  void finish(const Step& step);
  void decode(const Step& step);
  void store(std::span<const float> values, std::size_t begin);
  std::span<const float> floats_of_input(Range range, BufferPtr& keep);
  std::span<float> scratch_floats(const Step& step);
  Feedback feedback_of(const Step& step) const;
  void open(Payload& payload, std::span<const std::byte> frame);
  void seal(Payload& payload);
  bool plain_apart() const;
  std::size_t frame_capacity() const;
  std::size_t payload_bytes_of(std::size_t n_elems) const;
  FrameHeader expected_header() const;
  void check_identity(const FrameHeader& header, const Step& step) const;

  const GroupContext& context_;
  OperationSpec spec_;
  Plan plan_;
  std::uint32_t sequence_;
  std::shared_ptr<Work> work_;

  BufferPtr whole_input_;                 // as float32, where the input is not
  std::unique_ptr<WholeEncoding> whole_;  // made by the first encoding, where encodes_whole()
  std::size_t window_ = 1;
  std::size_t n_left_ = 0;
  std::vector<std::uint32_t> n_blockers_;  // by step
  std::vector<std::uint32_t> dependents_;  // by step, packed
  std::vector<std::size_t> dependents_begin_;
  std::vector<Payload> payloads_;
  std::vector<Scratch> scratch_;
  std::vector<Lane> lanes_;
  std::vector<bool> admitted_;
  std::vector<std::uint32_t> waiting_;  // receives posted and not completed, by member
  std::priority_queue<std::uint32_t, std::vector<std::uint32_t>, std::greater<>> ready_compute_;
  std::deque<std::uint32_t> ready_transfers_;
};

}  // namespace fedcomm
