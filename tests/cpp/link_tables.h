// Tables of links made up for tests.
#pragma once

#include <functional>

#include "collective/links.h"

namespace fedcomm::testing {

constexpr std::uint64_t kMillisecond = 1'000'000;

/// The rate of each link, in bytes a second; all with one round trip.
inline LinkTable links_of(int n, std::uint64_t round_trip_ns,
                          const std::function<std::uint64_t(int from, int to)>& rate) {
  LinkTable links(n);
  for (int from = 0; from < n; ++from) {
    for (int to = 0; to < n; ++to) {
      if (from != to) links.at(from, to) = {rate(from, to), round_trip_ns, std::nullopt};
    }
  }
  return links;
}

}  // namespace fedcomm::testing
