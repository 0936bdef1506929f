#include "collective/plan.h"

#include <algorithm>
#include <vector>

namespace fedcomm {

Range Layout::chunk(std::size_t index) const {
  const std::size_t n_grains = (n_elems + kGrain - 1) / kGrain;
  const std::size_t each = n_grains / n_chunks, extra = n_grains % n_chunks;
  const auto start = [&](std::size_t i) {
    return std::min((i * each + std::min(i, extra)) * kGrain, n_elems);
  };
  return {start(index), start(index + 1)};
}

std::size_t Layout::n_segments(std::size_t chunk_index) const {
  return std::max<std::size_t>(1, (chunk(chunk_index).size() + segment_elems - 1) / segment_elems);
}

std::size_t Layout::max_segments() const {
  return n_segments(0);
}  // no chunk is larger

Range Layout::segment(std::size_t chunk_index, std::size_t index) const {
  const Range all = chunk(chunk_index);
  return {std::min(all.begin + index * segment_elems, all.end),
          std::min(all.begin + (index + 1) * segment_elems, all.end)};
}

/// Adds steps; knows the numbering of slots and lanes.
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

namespace {

using Place = PlanBuilder::Place;

/// One member: the result is the input, uncoded.
void plan_alone(PlanBuilder& b) {
  for (std::uint32_t s = 0; s < b.layout().n_segments(0); ++s) {
    const Place place{0, 0, s};
    const std::uint32_t sum = b.new_scratch();
    const std::uint32_t added = b.accumulate_input(place, sum, true, {});
    b.store(place, sum, {b.finish(place, sum, {added})});
  }
}

void plan_direct(PlanBuilder& b) {
  const auto n_segments = static_cast<std::uint32_t>(b.layout().max_segments());
  std::vector<std::uint32_t> encoded(b.n(), kNone);  // of this segment, by chunk
  for (std::uint32_t s = 0; s < n_segments; ++s) {
    // Contributions out; everyone starts with another neighbour.
    for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
      const std::uint16_t owner = b.member_after(hops);
      if (s >= b.layout().n_segments(owner)) continue;
      const Place place{0, owner, s};
      const std::uint32_t payload = b.new_payload();
      encoded[owner] = b.encode(place, payload, kNone, owner, Residual::sender, {});
      b.send(place, 0, payload, owner, {encoded[owner]});
    }
    // Our chunk: contributions in, the sum out.
    if (s < b.layout().n_segments(b.me())) {
      const Place part{0, b.me(), s}, total{1, b.me(), s};
      const std::uint32_t sum = b.new_scratch();
      std::uint32_t added = kNone;
      for (std::uint16_t source = 0; source < b.n(); ++source) {
        if (source == b.me()) {
          added = b.accumulate_input(part, sum, source == 0, {added});
        } else {
          const std::uint32_t payload = b.new_payload();
          const std::uint32_t received = b.receive(part, 0, payload, source, source);
          added = b.accumulate_payload(part, sum, payload, source == 0, false, {added, received});
        }
      }
      const std::uint32_t finished = b.finish(total, sum, {added});
      const std::uint32_t payload = b.new_payload();
      const std::uint32_t coded =
          b.encode(total, payload, sum, kEveryone, Residual::owner, {finished});
      for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
        b.send(total, 1, payload, b.member_after(hops), {coded});
      }
      b.decode(total, payload, b.layout().segment(b.me(), s), {coded});
    }
    // The other sums in. The output may be the input: not before our part of it has been read.
    for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
      const std::uint16_t owner = b.member_after(hops);
      if (s >= b.layout().n_segments(owner)) continue;
      const Place place{1, owner, s};
      const std::uint32_t payload = b.new_payload();
      const std::uint32_t received = b.receive(place, 1, payload, owner, owner);
      b.decode(place, payload, b.layout().segment(owner, s), {received, encoded[owner]});
    }
  }
}

/// The ring as one of its members sees it.
class RingView {
 public:
  RingView(const RingOrder& order, std::uint32_t n, std::uint16_t me) : order_(order), n_(n) {
    for (std::uint32_t i = 0; i < n_; ++i) {
      if (at(i) == me) place_ = i;
    }
  }
  std::uint16_t next() const { return at(place_ + 1); }
  /// Also the owner of the chunk of that number.
  std::uint16_t before(std::uint32_t hops) const { return at(place_ + 2 * n_ - hops); }

 private:
  std::uint16_t at(std::uint32_t place) const {
    place %= n_;
    return order_.empty() ? static_cast<std::uint16_t>(place) : order_[place];
  }
  const RingOrder& order_;
  std::uint32_t n_;
  std::uint32_t place_ = 0;
};

void plan_ring(PlanBuilder& b, const RingOrder& order) {
  const auto n_segments = static_cast<std::uint32_t>(b.layout().max_segments());
  const RingView ring(order, b.n(), b.me());
  const std::uint16_t next = ring.next(), previous = ring.before(1);
  const std::uint32_t hops = b.n() - 1;           // of each half
  std::vector<std::uint32_t> read(b.n(), kNone);  // step that read our input of a chunk
  for (std::uint32_t s = 0; s < n_segments; ++s) {
    // Our contribution starts the chunk of our predecessor.
    const std::uint32_t started = ring.before(1);
    if (s < b.layout().n_segments(started)) {
      const Place place{0, started, s};
      const std::uint32_t sum = b.new_scratch(), payload = b.new_payload();
      read[started] = b.accumulate_input(place, sum, true, {});
      b.send(place, 0, payload, next,
             {b.encode(place, payload, sum, next, Residual::sender, {read[started]})});
    }
    // Partial sums pass through; the last is of our own chunk.
    for (std::uint32_t hop = 0; hop < hops; ++hop) {
      const std::uint32_t chunk = ring.before(2 + hop);
      if (s >= b.layout().n_segments(chunk)) continue;
      const Place in{hop, chunk, s}, out{hop + 1, chunk, s};
      const std::uint32_t arrived = b.new_payload(), sum = b.new_scratch(), left = b.new_payload();
      const std::uint32_t received = b.receive(in, hop, arrived, previous, previous);
      const std::uint32_t copied = b.accumulate_payload(in, sum, arrived, true, true, {received});
      read[chunk] = b.accumulate_input(in, sum, false, {copied});
      if (chunk != b.me()) {
        b.send(out, hop + 1, left, next,
               {b.encode(out, left, sum, next, Residual::sender, {read[chunk]})});
      } else {
        const std::uint32_t finished = b.finish(out, sum, {read[chunk]});
        const std::uint32_t coded =
            b.encode(out, left, sum, kEveryone, Residual::owner, {finished});
        b.send(out, hop + 1, left, next, {coded});
        b.decode(out, left, b.layout().segment(chunk, s), {coded});
      }
    }
    // Sums pass through, as their owners encoded them.
    for (std::uint32_t hop = 0; hop < hops; ++hop) {
      const std::uint32_t chunk = ring.before(1 + hop);
      if (s >= b.layout().n_segments(chunk)) continue;
      const Place place{hops, chunk, s};
      const std::uint32_t payload = b.new_payload();
      const std::uint32_t received =
          b.receive(place, hops + hop, payload, previous, static_cast<std::uint16_t>(chunk));
      if (hop + 1 < hops) b.send(place, hops + hop + 1, payload, next, {received});
      b.decode(place, payload, b.layout().segment(chunk, s), {received, read[chunk]});
    }
  }
}

void plan_sparse(PlanBuilder& b) {
  const auto n_segments = static_cast<std::uint32_t>(b.layout().max_segments());
  const auto n_own = static_cast<std::uint32_t>(b.layout().n_segments(b.me()));
  const std::uint32_t sum = b.new_scratch(b.me());
  // Our last encoding of each chunk (earlier ones came before it); then the step by which a payload
  // is there. Together, what a decoding waits for: the output may be the input, which encoding
  // reads.
  PlanBuilder::Steps encoded(b.n() + 1, kNone);
  std::uint32_t finished = kNone;
  for (std::uint32_t s = 0; s < n_segments; ++s) {
    // What was chosen of each chunk, to its owner; our part, too, as the others would decode it.
    std::uint32_t own = kNone;
    for (std::uint32_t hops = 1; hops <= b.n(); ++hops) {
      const std::uint16_t owner = b.member_after(hops);
      if (s >= b.layout().n_segments(owner)) continue;
      const Place place{0, owner, s};
      const std::uint32_t payload = b.new_payload();
      encoded[owner] = b.encode(place, payload, kNone, owner, Residual::sender, {encoded[owner]});
      if (owner == b.me()) {
        own = payload;
      } else {
        b.send(place, 0, payload, owner, {encoded[owner]});
      }
    }
    if (s >= n_own) continue;
    const Place part{0, b.me(), s};
    std::uint32_t added = kNone;
    for (std::uint16_t source = 0; source < b.n(); ++source) {
      std::uint32_t payload = own, available = encoded[b.me()];
      if (source != b.me()) {
        payload = b.new_payload();
        available = b.receive(part, 0, payload, source, source);
      }
      added = b.accumulate_payload(part, sum, payload, source == 0, false, {added, available});
    }
    finished = b.finish({1, b.me(), s}, sum, {added, finished});
  }
  // All of our chunk is there: choose from it, and send that.
  for (std::uint32_t s = 0; s < n_own; ++s) {
    const Place total{1, b.me(), s};
    const std::uint32_t payload = b.new_payload();
    const std::uint32_t coded =
        b.encode(total, payload, sum, kEveryone, Residual::owner, {finished});
    for (std::uint32_t hops = 1; hops < b.n(); ++hops)
      b.send(total, 1, payload, b.member_after(hops), {coded});
    encoded.back() = coded;
    b.decode(total, payload, b.layout().segment(b.me(), s), encoded);
  }
  for (std::uint32_t s = 0; s < n_segments; ++s) {
    for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
      const std::uint16_t owner = b.member_after(hops);
      if (s >= b.layout().n_segments(owner)) continue;
      const Place place{1, owner, s};
      const std::uint32_t payload = b.new_payload();
      encoded.back() = b.receive(place, 1, payload, owner, owner);
      b.decode(place, payload, b.layout().segment(owner, s), encoded);
    }
  }
}

void plan_exchange_all(PlanBuilder& b) {
  for (std::uint32_t s = 0; s < b.layout().n_segments(0); ++s) {
    const Place place{0, 0, s};
    const std::uint32_t own = b.new_payload();
    const std::uint32_t encoded = b.encode(place, own, kNone, kEveryone, Residual::sender, {});
    for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
      b.send(place, 0, own, b.member_after(hops), {encoded});
    }
    const std::uint32_t sum = b.new_scratch();
    std::uint32_t added = kNone;
    for (std::uint16_t source = 0; source < b.n(); ++source) {
      std::uint32_t payload = own, available = encoded;
      if (source != b.me()) {
        payload = b.new_payload();
        available = b.receive(place, 0, payload, source, source);
      }
      added = b.accumulate_payload(place, sum, payload, source == 0, false, {added, available});
    }
    b.store(place, sum, {b.finish(place, sum, {added})});
  }
}

}  // namespace

Range owned_range(Algorithm algorithm, std::size_t n_elems, int n_members, int member) {
  if (n_members == 1 || algorithm == Algorithm::all_gather) return {};
  const Layout layout{n_elems, static_cast<std::size_t>(n_members), n_elems + 1};
  return layout.chunk(static_cast<std::size_t>(member));
}

Algorithm choose_unmeasured(std::size_t n_elems, int n_members, Choosing choosing) {
  if (n_members <= 2 || n_elems <= 2 * kGrain) return Algorithm::all_gather;
  switch (choosing) {
    case Choosing::from_parts: return Algorithm::direct;
    case Choosing::from_whole: return Algorithm::sparse;
  }
  return Algorithm::direct;
}

Plan plan_all_reduce(Algorithm algorithm, std::size_t n_elems, std::size_t segment_elems,
                     int n_members, int member, const RingOrder& ring) {
  const auto n = static_cast<std::size_t>(n_members);
  const bool one_chunk = n == 1 || algorithm == Algorithm::all_gather;
  const Layout layout{n_elems, one_chunk ? 1 : n, segment_elems};
  const std::size_t n_phases = algorithm == Algorithm::ring ? 2 * n : 2;
  PlanBuilder builder(layout, n_members, member, n_phases);
  if (n == 1) {
    plan_alone(builder);
  } else {
    switch (algorithm) {
      case Algorithm::direct: plan_direct(builder); break;
      case Algorithm::ring: plan_ring(builder, ring); break;
      case Algorithm::all_gather: plan_exchange_all(builder); break;
      case Algorithm::sparse: plan_sparse(builder); break;
    }
  }
  return builder.take();
}

Plan plan_all_gather(std::size_t n_bytes, std::size_t segment_bytes, int n_members, int member) {
  PlanBuilder b({n_bytes, 1, segment_bytes}, n_members, member, 1);
  const auto row = [&](std::uint16_t source, std::uint32_t s) {
    const Range part = b.layout().segment(0, s);
    return Range{source * n_bytes + part.begin, source * n_bytes + part.end};
  };
  for (std::uint32_t s = 0; s < b.layout().n_segments(0); ++s) {
    const Place place{0, 0, s};
    const std::uint32_t own = b.new_payload();
    const std::uint32_t encoded = b.encode(place, own, kNone, kEveryone, Residual::none, {});
    b.decode(place, own, row(b.me(), s), {encoded});
    for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
      b.send(place, 0, own, b.member_after(hops), {encoded});
    }
    for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
      const std::uint16_t source = b.member_after(hops);
      const std::uint32_t payload = b.new_payload();
      b.decode(place, payload, row(source, s), {b.receive(place, 0, payload, source, source)});
    }
  }
  return b.take();
}

Plan plan_probe(std::size_t n_bytes, std::size_t segment_bytes, int n_members, int member,
                int source, int destination) {
  PlanBuilder b({n_bytes, 1, segment_bytes}, n_members, member, 2);
  const auto from = static_cast<std::uint16_t>(source),
             to = static_cast<std::uint16_t>(destination);
  const auto n_segments = static_cast<std::uint32_t>(b.layout().n_segments(0));
  const Place answer{1, 0, n_segments};  // the segment after the last: empty
  const std::uint32_t answered = b.me() == from || b.me() == to ? b.new_payload() : kNone;
  std::uint32_t last = kNone;
  for (std::uint32_t s = 0; s < n_segments && answered != kNone; ++s) {
    const Place place{0, 0, s};
    const std::uint32_t payload = b.new_payload();
    if (b.me() == from) {
      b.send(place, 0, payload, to, {b.encode(place, payload, kNone, to, Residual::none, {})});
    } else {
      last = b.decode(place, payload, b.layout().segment(0, s),
                      {b.receive(place, 0, payload, from, from), last});
    }
  }
  if (b.me() == from) {
    b.decode(answer, answered, {}, {b.receive(answer, 1, answered, to, to)});
  } else if (b.me() == to) {
    b.send(answer, 1, answered, from,
           {b.encode(answer, answered, kNone, from, Residual::none, {last})});
  }
  return b.take();
}

Plan plan_broadcast(std::size_t n_bytes, std::size_t segment_bytes, int n_members, int member,
                    int root) {
  PlanBuilder b({n_bytes, 1, segment_bytes}, n_members, member, 1);
  const auto source = static_cast<std::uint16_t>(root);
  for (std::uint32_t s = 0; s < b.layout().n_segments(0) && n_members > 1; ++s) {
    const Place place{0, 0, s};
    const std::uint32_t payload = b.new_payload();
    if (member == root) {
      const std::uint32_t encoded = b.encode(place, payload, kNone, kEveryone, Residual::none, {});
      for (std::uint32_t hops = 1; hops < b.n(); ++hops) {
        b.send(place, 0, payload, b.member_after(hops), {encoded});
      }
    } else {
      b.decode(place, payload, b.layout().segment(0, s),
               {b.receive(place, 0, payload, source, source)});
    }
  }
  return b.take();
}

}  // namespace fedcomm
