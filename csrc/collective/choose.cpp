#include "collective/choose.h"

#include <algorithm>

namespace fedcomm {
namespace {

double way_s(const LinkFacts& link) {
  return 0.5e-9 * static_cast<double>(link.round_trip_ns);
}

double rate_of(const LinkFacts& link) {
  return static_cast<double>(link.bytes_per_s);
}

void count(Forecast& forecast, double seconds, Bottleneck bottleneck, int from, int to) {
  if (seconds <= forecast.moving_s) return;
  forecast.moving_s = seconds;
  forecast.bottleneck = bottleneck;
  forecast.from = from;
  forecast.to = to;
}

/// Everyone sends `n_bytes` to everyone.
void count_exchange(Forecast& result, double n_bytes, const LinkTable& links) {
  const int n = links.n_members();
  double farthest = 0;
  for (int member = 0; member < n; ++member) {
    double fastest_out = 0, fastest_in = 0;
    for (int other = 0; other < n; ++other) {
      if (other == member) continue;
      const LinkFacts& out = links.at(member, other);
      farthest = std::max(farthest, way_s(out));
      fastest_out = std::max(fastest_out, rate_of(out));
      fastest_in = std::max(fastest_in, rate_of(links.at(other, member)));
      count(result, n_bytes / rate_of(out), Bottleneck::link, member, other);
    }
    const double all = (n - 1) * n_bytes;
    count(result, all / fastest_out, Bottleneck::sending, member, -1);
    count(result, all / fastest_in, Bottleneck::receiving, -1, member);
  }
  result.latency_s = result.n_steps * farthest;
}

void count_ring(Forecast& result, double n_bytes, const LinkTable& links, const RingOrder& ring) {
  const std::size_t n = ring.size();
  const auto link = [&](std::size_t place) -> const LinkFacts& {
    return links.at(ring[place % n], ring[(place + 1) % n]);
  };
  for (std::size_t place = 0; place < n; ++place) {
    count(result, n_bytes / rate_of(link(place)), Bottleneck::link, ring[place],
          ring[(place + 1) % n]);
    // The chunk of the member before `place` starts there and stops two places before it.
    double chain = 0;
    for (std::size_t hop = 0; hop < 2 * (n - 1); ++hop)
      chain += way_s(link(place + hop));
    result.latency_s = std::max(result.latency_s, chain);
  }
}

constexpr double kPassesOfFrames = 2;

/// A member sends, and receives, `n_frame_bytes`.
void count_computing(Forecast& result, double n_value_bytes, double n_frame_bytes,
                     const LinkTable& links) {
  if (links.coding_rate == 0) return;
  const double all = n_value_bytes + kPassesOfFrames * 2 * n_frame_bytes;
  result.computing_s = all / static_cast<double>(links.coding_rate);
}

}  // namespace

Forecast forecast(Algorithm algorithm, const Amount& amount, const LinkTable& links,
                  const RingOrder& ring) {
  const int n = links.n_members();
  const double shared =
      2 * amount.payload_bytes / n;  // to each, or from each, where all have a part
  Forecast result;
  result.algorithm = algorithm;
  switch (algorithm) {
    case Algorithm::direct:
    case Algorithm::sparse:
      result.n_steps = 2;
      count_exchange(result, shared, links);
      count_computing(result,
                      (algorithm == Algorithm::direct ? 3 + 1.0 / n : 3) * amount.value_bytes,
                      (n - 1) * shared, links);
      break;
    case Algorithm::ring:
      result.n_steps = 2 * (n - 1);
      count_ring(result, (n - 1) * shared, links, ring);
      count_computing(result, (5 - 2.0 / n) * amount.value_bytes, (n - 1) * shared, links);
      break;
    case Algorithm::all_gather:
      result.n_steps = 1;
      count_exchange(result, amount.payload_bytes, links);
      count_computing(result, (n + 4) * amount.value_bytes, (n - 1) * amount.payload_bytes, links);
      break;
  }
  return result;
}

Choice choose_measured(const Amount& amount, const LinkTable& links, const RingOrder& ring,
                       Choosing choosing) {
  // Fewest codings first: it stays where another takes as long.
  const bool from_parts = choosing == Choosing::from_parts;
  Choice choice;
  choice.forecasts = {
      forecast(Algorithm::all_gather, amount, links, ring),
      forecast(from_parts ? Algorithm::direct : Algorithm::sparse, amount, links, ring)};
  const Forecast& gather = choice.forecasts[0];
  const Forecast& owners = choice.forecasts[1];
  const Forecast best = owners.total_s() < gather.total_s() ? owners : gather;
  choice.algorithm = best.algorithm;
  if (!from_parts) return choice;
  choice.forecasts.push_back(forecast(Algorithm::ring, amount, links, ring));
  if (choice.forecasts[2].total_s() < kRingMustTake * best.total_s()) {
    choice.algorithm = Algorithm::ring;
  }
  return choice;
}

std::size_t choose_segment(const Forecast& told, std::size_t most) {
  return told.computing_s > told.moving_s ? std::min(most, kCachedSegmentElems) : most;
}

std::size_t choose_segment_on_gpu(const Codec& codec, std::size_t chunk_elems, std::size_t least) {
  const bool leaves_little = 8 * codec.wire_bytes(kMostSegmentElemsOnGpu) < kMostSegmentElemsOnGpu;
  const std::size_t plain_bytes = least * sizeof(float);
  const std::size_t most_bytes =
      (leaves_little ? plain_bytes : plain_bytes / 2) / 8 * 9;  // some have scales beside values
  const std::size_t enough = leaves_little ? chunk_elems : chunk_elems / 4 + 1;
  std::size_t elems = least;
  while (elems < enough && 2 * elems <= kMostSegmentElemsOnGpu &&
         codec.wire_bytes(2 * elems) <= most_bytes) {
    elems *= 2;
  }
  return elems;
}

}  // namespace fedcomm
