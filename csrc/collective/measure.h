// Measuring the links of a group: every ordered pair, one pair of a member at a time, so that none
// disturbs another at its ends. Members that share a link somewhere between do disturb each other.
//
// A probe is the operation of that name: bytes there, an empty answer back, timed on the source's
// clock. Empty ones give the round trip (their least). Full ones grow until the bytes alone take
// kLongEnough and several round trips, so that TCP has found the link's rate, and are repeated
// until they agree, or until the time for the direction is over. Rates are what an operation gets:
// with frames, checksums and copies.
//
// Before that every member finds how fast it codes, all at once: members that share a machine share
// it then as in an operation.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "collective/links.h"
#include "transport/transport.h"

namespace fedcomm {

class Group;

/// Who meets whom in which turn: [turn][member] is the partner, or the member itself if idle. Every
/// pair meets once, in n_members - 1 turns (one more for an odd number).
std::vector<std::vector<int>> tournament(int n_members);

/// Billionths of the segments sent in between; none if there were none.
std::optional<std::uint32_t> loss_between(const PathFacts& before, const PathFacts& after);

/// Enough for links of 100 ms; well-behaved ones need much less, and take it.
double time_to_measure(int n_members);

/// Collective. At most `seconds` for all of it, if the links do not get slower while they are
/// measured; the round trips of a few empty probes and one of 32 KiB are taken in any case.
LinkReport probe_links(Group& group, double seconds);

}  // namespace fedcomm
