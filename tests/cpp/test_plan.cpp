// Every plan of every member for 1 to 16 members, in a simulation.
#include <vector>

#include "check.h"
#include "collective/plan.h"
#include "plan_simulation.h"

namespace fedcomm {
namespace {

using testing::kSegment;
using testing::Simulation;
using testing::Value;

const std::vector<std::size_t> kSizes = {0,          1,          kGrain - 1,      kGrain,
                                         kGrain + 1, 5 * kGrain, 37 * kGrain + 5, 64 * kGrain};

/// Member 0 first, then every third, and so on: neighbours are neighbours no more.
RingOrder strides(int n) {
  RingOrder ring;
  for (int start = 0; start < 3; ++start) {
    for (int member = start; member < n; member += 3)
      ring.push_back(static_cast<std::uint16_t>(member));
  }
  return ring;
}

RingOrder backwards(int n) {
  RingOrder ring;
  for (int member = n; member-- > 0;)
    ring.push_back(static_cast<std::uint16_t>(member));
  return ring;
}

RingOrder in_member_order(int) {
  return {};
}

void check_all_reduce(Algorithm algorithm, RingOrder (*order)(int) = in_member_order) {
  for (int n = 1; n <= 16; ++n) {
    for (const std::size_t size : kSizes) {
      std::vector<Plan> plans;
      for (int member = 0; member < n; ++member) {
        plans.push_back(plan_all_reduce(algorithm, size, kSegment, n, member, order(n)));
      }
      Simulation simulation(std::move(plans), size);
      simulation.run();
      const std::uint32_t everyone = (1u << n) - 1u;
      std::size_t total = 0;
      for (std::size_t member = 0; member < static_cast<std::size_t>(n); ++member) {
        for (std::size_t grain = 0; grain < (size + kGrain - 1) / kGrain; ++grain) {
          const Value& value = simulation.output(member)[grain];
          CHECK_EQUAL(value.members, everyone);
          CHECK(algorithm == Algorithm::all_gather || n == 1 || value.finished);
        }
        total += simulation.elems_sent(member);
      }
      const auto others = static_cast<std::size_t>(n - 1);
      const bool gathers = algorithm == Algorithm::all_gather;
      CHECK_EQUAL(total, (gathers ? static_cast<std::size_t>(n) : 2) * others * size);
    }
  }
}

}  // namespace

TEST(layout_covers_every_element_once) {
  for (std::size_t n_chunks = 1; n_chunks <= 16; ++n_chunks) {
    for (const std::size_t size : kSizes) {
      const Layout layout{size, n_chunks, kSegment};
      std::size_t at = 0;
      for (std::size_t chunk = 0; chunk < n_chunks; ++chunk) {
        CHECK(layout.n_segments(chunk) >= 1);
        CHECK(layout.n_segments(chunk) <= layout.max_segments());
        for (std::size_t s = 0; s < layout.n_segments(chunk); ++s) {
          const Range part = layout.segment(chunk, s);
          CHECK_EQUAL(part.begin, at);
          CHECK(part.size() <= kSegment);
          CHECK(part.begin % kGrain == 0 || part.size() == 0);
          at = part.end;
        }
        CHECK_EQUAL(at, layout.chunk(chunk).end);
      }
      CHECK_EQUAL(at, size);
    }
  }
}

TEST(plan_direct_reduces_everything_once) {
  check_all_reduce(Algorithm::direct);
}
TEST(plan_ring_reduces_everything_once) {
  check_all_reduce(Algorithm::ring);
}
TEST(plan_ring_reduces_everything_once_in_any_order) {
  check_all_reduce(Algorithm::ring, strides);
  check_all_reduce(Algorithm::ring, backwards);
}
TEST(plan_ring_sends_along_the_ring_only) {
  const RingOrder ring = strides(7);
  for (std::size_t place = 0; place < ring.size(); ++place) {
    const Plan plan = plan_all_reduce(Algorithm::ring, 70 * kGrain, kSegment, 7, ring[place], ring);
    for (const Step& step : plan.steps) {
      if (step.action == Action::send) CHECK_EQUAL(step.member, ring[(place + 1) % 7]);
      if (step.action == Action::receive) CHECK_EQUAL(step.member, ring[(place + 6) % 7]);
    }
  }
}
TEST(plan_ring_in_member_order_is_the_plan_without_an_order) {
  for (int member = 0; member < 5; ++member) {
    const Plan with =
        plan_all_reduce(Algorithm::ring, 70 * kGrain, kSegment, 5, member, {0, 1, 2, 3, 4});
    const Plan without = plan_all_reduce(Algorithm::ring, 70 * kGrain, kSegment, 5, member);
    CHECK_EQUAL(with.steps.size(), without.steps.size());
    for (std::size_t i = 0; i < with.steps.size(); ++i) {
      CHECK_EQUAL(with.steps[i].member, without.steps[i].member);
      CHECK_EQUAL(with.steps[i].chunk, without.steps[i].chunk);
      CHECK_EQUAL(with.steps[i].slot, without.steps[i].slot);
    }
  }
}
TEST(plan_exchange_reduces_everything_once) {
  check_all_reduce(Algorithm::all_gather);
}

TEST(plan_sparse_reduces_everything_once) {
  check_all_reduce(Algorithm::sparse);
}
TEST(plan_sparse_writes_nothing_before_all_of_the_input_is_encoded) {
  for (int member = 0; member < 5; ++member) {
    const Plan plan = plan_all_reduce(Algorithm::sparse, 70 * kGrain, kSegment, 5, member);
    // What each step comes after, through others as well.
    std::vector<std::vector<bool>> before(plan.steps.size());
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      before[i].assign(plan.steps.size(), false);
      for (const std::uint32_t each : plan.after(i)) {
        before[i][each] = true;
        for (std::size_t k = 0; k < i; ++k)
          before[i][k] = before[i][k] || before[each][k];
      }
      if (plan.steps[i].action != Action::decode) continue;
      for (std::size_t k = 0; k < plan.steps.size(); ++k) {
        const Step& other = plan.steps[k];
        if (other.action == Action::encode && other.from_input) CHECK(before[i][k]);
      }
    }
  }
}

TEST(plan_direct_sums_in_member_order) {
  const Plan plan = plan_all_reduce(Algorithm::direct, 8 * kGrain, kSegment, 4, 2);
  std::vector<std::uint16_t> order;
  for (const Step& step : plan.steps) {
    if (step.action != Action::accumulate) continue;
    std::uint16_t source = 2;
    for (const Step& each : plan.steps) {
      if (each.action == Action::receive && each.payload == step.payload) source = each.member;
    }
    order.push_back(source);
  }
  CHECK(order == (std::vector<std::uint16_t>{0, 1, 2, 3}));
}

TEST(plan_gather_and_broadcast_reach_everyone) {
  for (int n = 1; n <= 16; ++n) {
    for (const std::size_t size : {std::size_t{0}, 3 * kSegment, 5 * kGrain}) {
      std::vector<Plan> gather;
      for (int member = 0; member < n; ++member) {
        gather.push_back(plan_all_gather(size, kSegment, n, member));
      }
      const auto members = static_cast<std::size_t>(n);
      Simulation simulation(std::move(gather), size * members);
      simulation.run();
      for (std::size_t member = 0; member < members; ++member) {
        for (std::size_t at = 0; at < size * members; at += kGrain) {
          CHECK_EQUAL(simulation.output(member)[at / kGrain].members, 1u << (at / size));
        }
      }
      for (int root = 0; root < n; ++root) {
        std::vector<Plan> broadcast;
        for (int member = 0; member < n; ++member) {
          broadcast.push_back(plan_broadcast(size, kSegment, n, member, root));
        }
        Simulation told(std::move(broadcast), size);
        told.run();
        for (int member = 0; member < n; ++member) {
          if (member == root) continue;
          for (std::size_t at = 0; at < size; at += kGrain) {
            CHECK_EQUAL(told.output(static_cast<std::size_t>(member))[at / kGrain].members,
                        1u << root);
          }
        }
      }
    }
  }
}

TEST(plan_probe_moves_bytes_between_two_and_answers) {
  for (int n = 2; n <= 6; ++n) {
    for (int source = 0; source < n; ++source) {
      for (int destination = 0; destination < n; ++destination) {
        if (source == destination) continue;
        for (const std::size_t size : kSizes) {
          std::vector<Plan> plans;
          for (int member = 0; member < n; ++member) {
            plans.push_back(plan_probe(size, kSegment, n, member, source, destination));
            const bool idle = member != source && member != destination;
            CHECK_EQUAL(plans.back().steps.empty(), idle);
            std::size_t n_answers = 0;
            for (const Step& step : plans.back().steps) {
              if (step.action != Action::send || member != destination) continue;
              ++n_answers;
              CHECK_EQUAL(step.member, source);
              CHECK_EQUAL(step.range.size(), 0u);
            }
            CHECK_EQUAL(n_answers, member == destination ? 1u : 0u);
          }
          Simulation simulation(std::move(plans), size);
          simulation.run();
          for (std::size_t grain = 0; grain < (size + kGrain - 1) / kGrain; ++grain) {
            const Value& value = simulation.output(static_cast<std::size_t>(destination))[grain];
            CHECK_EQUAL(value.members, 1u << source);
          }
          CHECK_EQUAL(simulation.elems_sent(static_cast<std::size_t>(source)), size);
          CHECK_EQUAL(simulation.elems_sent(static_cast<std::size_t>(destination)), 0u);
        }
      }
    }
  }
}

TEST(plan_probe_answers_when_all_has_arrived) {
  const Plan plan = plan_probe(9 * kSegment + 1, kSegment, 3, 2, 0, 2);
  // Everything that the answer's encoding waits for, through all that they wait for.
  std::vector<std::uint32_t> open;
  for (std::uint32_t i = 0; i < plan.steps.size(); ++i) {
    if (plan.steps[i].action == Action::encode) open.push_back(i);
  }
  CHECK_EQUAL(open.size(), 1u);
  std::vector<bool> before(plan.steps.size(), false);
  while (!open.empty()) {
    const std::uint32_t step = open.back();
    open.pop_back();
    for (const std::uint32_t each : plan.after(step)) {
      if (!before[each]) open.push_back(each);
      before[each] = true;
    }
  }
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    if (plan.steps[i].action == Action::receive) CHECK(before[i]);
  }
}

TEST(owned_ranges_tile_the_bucket) {
  for (int n = 2; n <= 16; ++n) {
    for (const std::size_t size : kSizes) {
      std::size_t at = 0;
      for (int member = 0; member < n; ++member) {
        const Range range = owned_range(Algorithm::ring, size, n, member);
        CHECK_EQUAL(range.begin, at);
        CHECK(range == owned_range(Algorithm::direct, size, n, member));
        CHECK_EQUAL(owned_range(Algorithm::all_gather, size, n, member).size(), 0u);
        at = range.end;
      }
      CHECK_EQUAL(at, size);
    }
  }
}

}  // namespace fedcomm
