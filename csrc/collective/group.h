// Group: members that reduce, gather and broadcast among themselves. The C++ face of the library.
//
//   auto group = Group::open(fabric, {});
//   group->all_reduce(view, view, {.reduce = ReduceOp::mean, .codec = "int8"})->wait();
//
// Every member calls the same operations in the same order. Results are bit-identical on all
// members. After an error the group is broken; rebuild() makes a new one, an epoch later.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collective/engine.h"

namespace fedcomm {

struct GroupOptions {
  double timeout_s = 30.0;               // without progress
  std::size_t segment_elems = 1u << 18;  // a multiple of kGrain; must be the same on all members
  std::size_t window_bytes = 64u << 20;  // of frames alive in one operation
  std::vector<std::string> labels;       // of the members in messages; default "rank i"
  std::shared_ptr<const FrameSealer> sealer;  // default CrcSealer
  std::shared_ptr<const PayloadMask> mask;    // default none
};

/// Algorithm by name; empty for "auto". Throws invalid_argument.
std::optional<Algorithm> algorithm_named(std::string_view name);

struct ReduceOptions {
  ReduceOp reduce = ReduceOp::sum;
  double weight = 1.0;  // of this member, for a mean
  std::string codec = "fp32";
  std::optional<Algorithm> algorithm;  // none: chosen by size and members
  Residuals residuals;
  NonFinitePolicy policy = NonFinitePolicy::error;
  std::uint64_t round = 0;
  std::uint32_t bucket = 0;
  std::optional<double> timeout_s;  // default the group's
};

class Group {
 public:
  /// All ranks of the fabric. Collective: throws timeout or config if the others do not come along
  /// or differ in wire version, segment size or membership.
  static std::shared_ptr<Group> open(std::shared_ptr<Fabric> fabric, GroupOptions options);
  /// As open, for several members in one thread: starts all before it waits for any.
  static std::vector<std::shared_ptr<Group>> open_all(
      const std::vector<std::shared_ptr<Fabric>>& fabrics, const GroupOptions& options);

  /// Disjoint sub-groups of this one, the same on every member. Null where this member is in none.
  std::shared_ptr<Group> split(const std::vector<std::vector<int>>& groups, GroupOptions options);
  /// The chosen members, one epoch later. Collective among them; this group is closed.
  std::shared_ptr<Group> rebuild(const std::vector<int>& members);

  /// Views must stay valid, and untouched, until the work has ended. `output` may be `input`.
  std::shared_ptr<Work> all_reduce(const TensorView& input, const TensorView& output,
                                   const ReduceOptions& options);
  /// Plain bytes; `output` has size() times the bytes of `input`, in member order.
  std::shared_ptr<Work> all_gather(const TensorView& input, const TensorView& output,
                                   std::optional<double> timeout_s = std::nullopt);
  std::shared_ptr<Work> broadcast(const TensorView& tensor, int root,
                                  std::optional<double> timeout_s = std::nullopt);
  std::shared_ptr<Work> barrier(std::optional<double> timeout_s = std::nullopt);

  void abort(const std::string& reason);
  void close() { engine_->close(); }

  int rank() const { return member_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  std::uint32_t epoch() const { return epoch_; }
  std::uint64_t session() const { return session_; }
  double timeout_s() const { return options_.timeout_s; }
  const std::string& transport_name() const { return engine_->context().transport; }
  std::optional<Error> broken() const { return engine_->broken(); }
  Counters counters() const { return engine_->counters(); }
  /// Part of a bucket that this member owns in an all_reduce with these options.
  Range owned(std::size_t n_elems, std::optional<Algorithm> algorithm,
              std::string_view codec) const;

 private:
  struct Identity {
    std::uint32_t id;  // of the group among those of its fabric
    std::uint32_t epoch;
    std::vector<int> ranks;  // of the fabric
  };

  Group(std::shared_ptr<Fabric> fabric, Identity identity, GroupOptions options);
  Algorithm algorithm_for(std::optional<Algorithm> asked, const Codec& codec,
                          std::size_t n_elems) const;
  void start_handshake();
  void finish_handshake();

  std::shared_ptr<Fabric> fabric_;
  std::uint32_t id_;
  std::uint32_t epoch_;
  std::vector<int> ranks_;
  int member_;
  GroupOptions options_;
  std::uint64_t session_ = 0;
  std::uint32_t n_rebuilds_ = 0;  // tried, so that each has an epoch of its own

  std::vector<std::byte> hello_;
  std::vector<std::byte> hellos_;
  std::shared_ptr<Work> handshake_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses the rest
};

}  // namespace fedcomm
