// PlanBuilder: adds steps to a plan; knows the numbering of slots and lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "collective/plan.h"

namespace fedcomm {

class PlanBuilder {
 public:
  using Steps = std::vector<std::uint32_t>;

  PlanBuilder(Layout layout, int n_members, int member, std::size_t n_phases)
      : layout_(layout),
        n_(static_cast<std::uint32_t>(n_members)),
        me_(static_cast<std::uint16_t>(member)) {
    plan_.n_lanes = static_cast<std::uint32_t>(n_phases) * kLaneKinds * n_;
  }

  const Layout& layout() const { return layout_; }
  std::uint32_t n() const { return n_; }
  std::uint16_t me() const { return me_; }
  std::uint16_t member_after(std::uint32_t hops) const {
    return static_cast<std::uint16_t>((me_ + hops) % n_);
  }
  std::uint32_t new_payload() { return plan_.n_payloads++; }
  /// For the sum of a segment; which one, the step says that is first to add to it.
  std::uint32_t new_scratch() {
    sums_.push_back({});
    is_chunk_.push_back(false);
    return plan_.n_scratch++;
  }
  /// For the sum of a whole chunk.
  std::uint32_t new_scratch(std::uint32_t chunk) {
    sums_.push_back(layout_.chunk(chunk));
    is_chunk_.push_back(true);
    return plan_.n_scratch++;
  }

  /// Where a frame belongs: its identity in the header.
  struct Place {
    std::uint32_t phase;
    std::uint32_t chunk;
    std::uint32_t segment;
  };

  std::uint32_t encode(Place place, std::uint32_t payload, std::uint32_t scratch,
                       std::uint16_t destination, Residual residual, const Steps& after) {
    Step step = at(Action::encode, place, range_of(place));
    step.from_input = scratch == kNone;
    step.residual = residual;
    step.member = destination;
    step.payload = payload;
    set_scratch(step, scratch);
    step.lane = lane(place.phase, kEncodeLane, destination == kEveryone ? me_ : destination);
    return add(step, after);
  }
  /// `hop` tells apart the frames that pass between the same two members for one segment.
  std::uint32_t send(Place place, std::uint32_t hop, std::uint32_t payload, std::uint16_t to,
                     const Steps& after) {
    Step step = at(Action::send, place, {});
    step.member = to;
    step.payload = payload;
    step.slot = slot(hop, place.segment);
    return add(step, after);
  }
  std::uint32_t receive(Place place, std::uint32_t hop, std::uint32_t payload, std::uint16_t from,
                        std::uint16_t origin) {
    Step step = at(Action::receive, place, range_of(place));
    step.member = from;
    step.origin = origin;
    step.payload = payload;
    step.slot = slot(hop, place.segment);
    step.lane = lane(hop, kReceiveLane, from);
    return add(step, {});
  }
  std::uint32_t accumulate_input(Place place, std::uint32_t scratch, bool first,
                                 const Steps& after) {
    Step step = at(Action::accumulate, place, range_of(place));
    step.from_input = true;
    return add_accumulate(step, scratch, first, after);
  }
  std::uint32_t accumulate_payload(Place place, std::uint32_t scratch, std::uint32_t payload,
                                   bool first, bool already_weighted, const Steps& after) {
    Step step = at(Action::accumulate, place, range_of(place));
    step.payload = payload;
    step.already_weighted = already_weighted;
    return add_accumulate(step, scratch, first, after);
  }
  std::uint32_t finish(Place place, std::uint32_t scratch, const Steps& after) {
    Step step = at(Action::finish, place, range_of(place));
    set_scratch(step, scratch);
    return add(step, after);
  }
  std::uint32_t decode(Place place, std::uint32_t payload, Range output, const Steps& after) {
    Step step = at(Action::decode, place, output);
    step.payload = payload;
    return add(step, after);
  }
  std::uint32_t store(Place place, std::uint32_t scratch, const Steps& after) {
    Step step = at(Action::store, place, range_of(place));
    set_scratch(step, scratch);
    return add(step, after);
  }

  Plan take() { return std::move(plan_); }

 private:
  static constexpr std::uint32_t kEncodeLane = 0, kReceiveLane = 1, kScratchLane = 2;
  static constexpr std::uint32_t kLaneKinds = 3;

  Range range_of(Place place) const { return layout_.segment(place.chunk, place.segment); }
  std::uint32_t lane(std::uint32_t phase, std::uint32_t kind, std::uint32_t member) const {
    return (phase * kLaneKinds + kind) * n_ + member;
  }
  std::uint32_t slot(std::uint32_t hop, std::uint32_t segment) const {
    return hop * static_cast<std::uint32_t>(layout_.max_segments()) + segment;
  }
  Step at(Action action, Place place, Range range) const {
    Step step;
    step.action = action;
    step.phase = place.phase;
    step.chunk = place.chunk;
    step.segment = place.segment;
    step.range = range;
    return step;
  }
  std::uint32_t add_accumulate(Step step, std::uint32_t scratch, bool first, const Steps& after) {
    if (first && !is_chunk_[scratch]) sums_[scratch] = step.range;
    set_scratch(step, scratch);
    step.first = first;
    // A sum that starts from our input must not queue behind one that waits for a peer.
    const std::uint32_t phase = step.from_input ? step.phase : step.phase + 1;
    if (first && !is_chunk_[scratch]) step.lane = lane(phase, kScratchLane, me_);
    return add(step, after);
  }
  void set_scratch(Step& step, std::uint32_t scratch) const {
    step.scratch = scratch;
    if (scratch != kNone) step.sum = sums_[scratch];
  }
  std::uint32_t add(const Step& step, const Steps& after) {
    plan_.steps.push_back(step);
    for (const std::uint32_t each : after) {
      if (each != kNone) plan_.after_.push_back(each);
    }
    plan_.after_begin_.push_back(plan_.after_.size());
    return static_cast<std::uint32_t>(plan_.steps.size() - 1);
  }

  Layout layout_;
  std::uint32_t n_;
  std::uint16_t me_;
  Plan plan_;
  std::vector<Range> sums_;  // by scratch, as is_chunk_
  std::vector<bool> is_chunk_;
};

}  // namespace fedcomm
