// The plans of all_reduce, one function for each algorithm; plan.h has their steps and bytes.
#include <vector>

#include "collective/plan_builder.h"

namespace fedcomm {
namespace {

using Place = PlanBuilder::Place;

/// One member: the result is the input, uncoded.
void plan_alone(PlanBuilder& b) {
  for (std::uint32_t s = 0; s < b.layout().n_segments(0); ++s) {
    const Place place{0, 0, s};
    const std::uint32_t sum = b.new_scratch();
    b.store(place, sum, {b.accumulate_input(place, sum, true, {})});
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
    b.store(place, sum, {added});
  }
}

}  // namespace

std::size_t n_chunks(Algorithm algorithm, int n_members) {
  return algorithm == Algorithm::all_gather ? 1 : static_cast<std::size_t>(n_members);
}

Range owned_range(Algorithm algorithm, std::size_t n_elems, int n_members, int member) {
  const Layout layout{n_elems, n_chunks(algorithm, n_members), n_elems + 1};
  if (layout.n_chunks == 1) return {};
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
  const Layout layout{n_elems, n_chunks(algorithm, n_members), segment_elems};
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

}  // namespace fedcomm
