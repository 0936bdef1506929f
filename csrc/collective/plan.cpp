#include "collective/plan.h"

#include <algorithm>

#include "collective/plan_builder.h"

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

using Place = PlanBuilder::Place;

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
