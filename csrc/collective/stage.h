// Stage: where the steps of one operation compute, on the CPU or on the GPU that its tensors are
// on. It turns tensors into payloads and back; frames, plans and peers are the execution's.
//
// A step is begun, and some time later it has ended; steps end in the order in which they were
// begun. A step sees what earlier ones have written even before these have ended; anybody else must
// wait for the end.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "base/error.h"
#include "collective/operation.h"

namespace fedcomm {

/// A payload in host memory.
struct StagedPayload {
  std::span<const std::byte> bytes;
  BufferPtr* copy;  // the stage's own, made when it is needed first
};

/// The sum of a whole chunk, of which a task encodes a piece, chosen from all of it.
struct WholeSum {
  std::span<const float> values;  // in the stage's memory
  std::size_t begin = 0;          // in the bucket
  Feedback feedback;
};

struct EncodeTask {
  Range range;                 // of the input, or of the sum in the bucket
  std::span<const float> sum;  // in the stage's memory; without data: the input is encoded
  std::optional<WholeSum> whole;
  EncodeOptions options;
  std::span<std::byte> room;  // for the payload; in one of frames()
  BufferPtr* copy;
};

class Stage {
 public:
  virtual ~Stage() = default;

  /// Host memory for frames, of the kind that this stage reads and writes fastest.
  virtual BufferPool& frames() = 0;
  /// Memory for a sum, where this stage computes.
  virtual BufferPtr take_sum(std::size_t n_elems) = 0;
  /// Whether another step may be begun.
  virtual bool has_room() const = 0;

  /// Throws non_finite; Error::detail() is then the element's place in what was encoded, or
  /// chosen from.
  virtual void encode(const EncodeTask& task) = 0;
  /// sum += weight * part of the input; = where it is the first.
  virtual void add_input(Range range, float weight, std::span<float> sum, bool first) = 0;
  virtual void add_payload(const StagedPayload& payload, float weight, std::span<float> sum,
                           bool first) = 0;
  virtual void divide(std::span<float> sum, float divisor) = 0;
  virtual void decode(const StagedPayload& payload, Range range) = 0;
  /// sum / divisor to the output, which may not be able to hold it: throws non_finite, with the
  /// element's place in the sum. The sum is not needed any more.
  virtual void store(std::span<float> sum, float divisor, Range range) = 0;

  /// Of the oldest step whose end has not been told yet: the size of its payload, if it encoded
  /// one. None while it goes on. Throws what went wrong in it.
  virtual std::optional<std::size_t> ended() = 0;
  /// Ends everything: no memory of the caller's is read or written afterwards.
  virtual void stop() = 0;
};

/// Where the operation's tensors are. Throws cuda where that GPU cannot be used.
std::unique_ptr<Stage> make_stage(const GroupContext& context, const OperationSpec& spec);

}  // namespace fedcomm
