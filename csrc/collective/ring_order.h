// The order in which a ring passes its members, so that it uses the fast links. Pure.
#pragma once

#include "collective/links.h"
#include "collective/plan.h"

namespace fedcomm {

/// The ring, from member 0, whose slowest link is fastest; of several the one with the largest sum
/// of rates, then the first in dictionary order. Exact for up to kExactRing members; beyond, what
/// changes of a greedy ring find. Equal tables give equal rings.
constexpr int kExactRing = 8;
RingOrder best_ring(const LinkTable& links);

/// The same, or member order where that is hardly slower: every order sums in another one, so
/// that two runs whose links differ only by chance should not end in other bits.
RingOrder ring_worth_taking(const LinkTable& links);

/// Of the ring's links.
struct RingRates {
  std::uint64_t slowest = 0;
  std::uint64_t sum = 0;
  auto operator<=>(const RingRates&) const = default;
};
RingRates rates_of(const LinkTable& links, const RingOrder& ring);

}  // namespace fedcomm
