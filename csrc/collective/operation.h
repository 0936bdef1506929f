// What an operation is asked for, and what is the same for all operations of a group.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/dtype.h"
#include "codec/codec.h"
#include "collective/plan.h"
#include "wire/frame.h"

namespace fedcomm {

class DeviceSets;

/// Error feedback of an all_reduce; empty spans mean none. `sender` spans are as long as the
/// bucket, `owner` spans as long as the part that this member owns. In the memory that the bucket
/// is in.
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
  std::size_t segment_elems = 0;       // as the plan has them; with a codec
  TensorView input;
  TensorView output;
  double weight = 1.0;
  Residuals residuals;
  NonFinitePolicy policy = NonFinitePolicy::error;
  std::uint64_t round = 0;
  std::uint32_t bucket = 0;
  double timeout_s = 30.0;

  /// The largest payload of `n` elements of the input.
  std::size_t payload_bytes(std::size_t n) const {
    return codec ? codec->segment_bytes(n, input.n_elems) : n;
  }
  /// Whether the codec chooses from the whole input, and is asked for all of it: a member that
  /// reduces a part of the bucket by itself adds its own part as it is.
  bool encodes_whole() const {
    const bool asked = algorithm == Algorithm::all_gather || algorithm == Algorithm::sparse;
    return codec && codec->chooses_from_whole() && asked;
  }
  /// Whether the owner of a chunk chooses from its whole sum.
  bool sums_whole() const { return algorithm == Algorithm::sparse; }
};

/// What is the same for all operations of a group.
struct GroupContext {
  std::string transport;
  std::vector<std::string> labels;  // of the members, for messages
  std::uint64_t session = 0;
  std::uint32_t epoch = 0;
  int member = 0;
  std::size_t segment_elems = 0;  // unless an operation has its own; of plain bytes 4 times as many
  std::size_t window_bytes = 0;   // of frames alive in one operation
  std::shared_ptr<const FrameSealer> sealer;
  std::shared_ptr<const PayloadMask> mask;  // may be null
  std::shared_ptr<BufferPool> pool;
  std::shared_ptr<DeviceSets> device_sets;

  int n_members() const { return static_cast<int>(labels.size()); }
  /// "[mpi] cloud 2: "
  std::string at(int about) const {
    return "[" + transport + "] " + labels[static_cast<std::size_t>(about)] + ": ";
  }
};

}  // namespace fedcomm
