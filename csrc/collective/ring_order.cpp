#include "collective/ring_order.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace fedcomm {
namespace {

/// Reversing costs the whole ring to judge, so a pass is cubic.
constexpr int kMostImproved = 128;
constexpr int kMostPasses = 20;
constexpr double kWorthIt = 1.25;

RingOrder member_order(int n) {
  RingOrder ring(static_cast<std::size_t>(n));
  std::iota(ring.begin(), ring.end(), std::uint16_t{0});
  return ring;
}

RingOrder exact(const LinkTable& links) {
  RingOrder ring = member_order(links.n_members()), best = ring;
  RingRates rates = rates_of(links, best);
  while (std::next_permutation(ring.begin() + 1, ring.end())) {
    const RingRates now = rates_of(links, ring);
    if (now <= rates) continue;
    rates = now;
    best = ring;
  }
  return best;
}

RingOrder greedy(const LinkTable& links) {
  RingOrder ring = member_order(links.n_members());
  for (std::size_t i = 1; i + 1 < ring.size(); ++i) {
    const auto fastest = std::max_element(ring.begin() + static_cast<std::ptrdiff_t>(i), ring.end(),
                                          [&](std::uint16_t a, std::uint16_t b) {
                                            return links.at(ring[i - 1], a).bytes_per_s <
                                                   links.at(ring[i - 1], b).bytes_per_s;
                                          });
    std::iter_swap(ring.begin() + static_cast<std::ptrdiff_t>(i), fastest);
  }
  return ring;
}

/// Turns pieces of the ring around, and moves single members, for as long as that helps.
void improve(const LinkTable& links, RingOrder& ring) {
  RingRates rates = rates_of(links, ring);
  bool better = true;
  const auto keep_if_better = [&](RingOrder&& changed) {
    const RingRates now = rates_of(links, changed);
    if (now <= rates) return;
    rates = now;
    ring = std::move(changed);
    better = true;
  };
  for (int pass = 0; better && pass < kMostPasses; ++pass) {
    better = false;
    for (std::ptrdiff_t i = 1; i < std::ssize(ring); ++i) {
      for (std::ptrdiff_t j = i + 1; j < std::ssize(ring); ++j) {
        RingOrder turned = ring, moved = ring, moved_back = ring;
        std::reverse(turned.begin() + i, turned.begin() + j + 1);
        keep_if_better(std::move(turned));
        std::rotate(moved.begin() + i, moved.begin() + i + 1, moved.begin() + j + 1);
        keep_if_better(std::move(moved));
        std::rotate(moved_back.begin() + i, moved_back.begin() + j, moved_back.begin() + j + 1);
        keep_if_better(std::move(moved_back));
      }
    }
  }
}

}  // namespace

RingRates rates_of(const LinkTable& links, const RingOrder& ring) {
  RingRates rates{std::numeric_limits<std::uint64_t>::max(), 0};
  for (std::size_t i = 0; i < ring.size(); ++i) {
    const std::uint64_t rate = links.at(ring[i], ring[(i + 1) % ring.size()]).bytes_per_s;
    rates.slowest = std::min(rates.slowest, rate);
    rates.sum += rate;
  }
  return rates;
}

RingOrder best_ring(const LinkTable& links) {
  if (links.n_members() <= 2) return member_order(links.n_members());
  if (links.n_members() <= kExactRing) return exact(links);
  RingOrder ring = greedy(links);
  if (links.n_members() <= kMostImproved) improve(links, ring);
  return ring;
}

RingOrder ring_worth_taking(const LinkTable& links) {
  const RingOrder plain = member_order(links.n_members());
  RingOrder best = best_ring(links);
  const auto slowest = [&](const RingOrder& ring) {
    return static_cast<double>(rates_of(links, ring).slowest);
  };
  return slowest(best) > kWorthIt * slowest(plain) ? best : plain;
}

}  // namespace fedcomm
