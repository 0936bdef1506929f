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

#include "collective/choose.h"
#include "collective/engine.h"

namespace fedcomm {

struct GroupOptions {
  double timeout_s = 30.0;               // without progress
  std::size_t segment_elems = 1u << 18;  // a multiple of kGrain; must be the same on all members
  bool on_gpu = false;                   // this member's tensors mostly are; others may differ
  std::size_t window_bytes = 64u << 20;  // of frames alive in one operation
  std::optional<double> rate_limit;      // of what this member sends, bytes a second
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

/// From what measure() learns.
enum class MeasureBy : std::uint8_t {
  probes,   // bytes that it sends for that; every link anew
  traffic,  // what this group has received since: raises rates where a link was seen to be faster
};

/// What all members know of the links between them.
struct Measured {
  LinkTable links;
  RingOrder ring;  // the best by these links; member order where some are not known
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
  /// With `other`, a fabric whose ranks are the members of this group, they talk over that one.
  std::shared_ptr<Group> split(const std::vector<std::vector<int>>& groups, GroupOptions options,
                               const std::shared_ptr<Fabric>& other = nullptr);
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

  /// Plain bytes from one member to another one, and an answer back; for measure().
  std::shared_ptr<Work> probe(const TensorView& bytes, int source, int destination,
                              double timeout_s);
  /// An operation in which this member has no part: it has a number like any other.
  std::shared_ptr<Work> skip();

  /// The pairwise table of links, equal on all members; from then on algorithms are chosen, and
  /// rings ordered, by it. Collective, blocking, with nothing else in flight. `seconds`: of
  /// probing, see measure.h. Breaks the group on all members if any of them fails.
  std::shared_ptr<const Measured> measure(MeasureBy by,
                                          std::optional<double> seconds = std::nullopt);
  /// What measure() found last; null before, and in a rebuilt group.
  std::shared_ptr<const Measured> measured() const;
  /// What "auto" stands for, and why.
  Choice choose(std::size_t n_elems, std::string_view codec) const;

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
  const std::shared_ptr<Fabric>& fabric() const { return fabric_; }
  /// What messages call the members.
  const std::vector<std::string>& labels() const { return options_.labels; }
  /// "[mpi] cloud 2: ", to begin a message with.
  std::string about(int member) const { return engine_->context().at(member); }
  /// Of the members, in the fabric.
  const std::vector<int>& ranks() const { return ranks_; }
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
  Choice choice_for(const Codec& codec, std::size_t n_elems) const;
  std::size_t segment_elems_for(const OperationSpec& spec) const;
  LinkReport report_traffic() const;
  void note_paths();
  void start_handshake();
  void finish_handshake();

  std::shared_ptr<Fabric> fabric_;
  std::uint32_t id_;
  std::uint32_t epoch_;
  std::vector<int> ranks_;
  int member_;
  GroupOptions options_;
  std::uint64_t session_ = 0;
  bool any_on_gpu_ = false;       // of all members
  std::uint32_t n_rebuilds_ = 0;  // tried, so that each has an epoch of its own

  mutable std::mutex measured_mutex_;
  std::shared_ptr<const Measured> measured_;
  std::vector<std::optional<PathFacts>> paths_;  // by member, when they were measured

  std::vector<std::byte> hello_;
  std::vector<std::byte> hellos_;
  std::shared_ptr<Work> handshake_;
  std::unique_ptr<Engine> engine_;  // last: its thread uses the rest
};

}  // namespace fedcomm
