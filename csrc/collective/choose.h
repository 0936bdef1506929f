// The algorithm that "auto" stands for where the links have been measured: a model of what each
// would take, for P payload bytes of the whole bucket, V bytes of its values as float32, and N
// members. Pure.
//
//   time = latency + the longer of moving and computing + 1/16 of the shorter: frames are
//   pipelined, but the first is coded before anything moves, and the last one added when all has
//   moved.
//
//   direct      latency: 2 ways of the farthest pair.     Over each link P/N bytes, twice.
//   ring        latency: the longest of the N chains of 2(N-1) links.
//                                                   Over each link of the ring 2(N-1)/N P bytes.
//   all_gather  latency: 1 way of the farthest pair.      Over each link P bytes.
//   sparse      as direct.
//
// A way is half a round trip. Moving takes as long as the slowest link; and, where several links
// begin or end at a member at once, at least as long as all their bytes take at the rate of its
// fastest one: pairs are measured alone, and nothing tells that a member could do more than that.
//
// Computing is what passes through a member's processor, at the rate at which it codes. Values,
// once for each time that a step reads or writes all of them: direct (3 + 1/N) V, ring (5 - 2/N) V,
// all_gather (N + 4) V (it clears, adds N times, looks for what is not finite, and stores), sparse
// 3 V. Frames twice for each byte that a member sends or receives, which is copied and summed up.
// It takes longer than moving inside a host, and on links so fast that nobody waits for them.
#pragma once

#include <algorithm>
#include <vector>

#include "codec/codec.h"
#include "collective/links.h"
#include "collective/plan.h"

namespace fedcomm {

/// What moving waits for.
enum class Bottleneck : std::uint8_t { link, sending, receiving };

struct Forecast {
  Algorithm algorithm = Algorithm::direct;
  int n_steps = 0;
  double latency_s = 0;
  double moving_s = 0;
  double computing_s = 0;
  Bottleneck bottleneck = Bottleneck::link;
  int from = -1;  // of the slowest link, or who sends; -1 where it is who receives
  int to = -1;

  double total_s() const {
    return latency_s + std::max(moving_s, computing_s) + std::min(moving_s, computing_s) / 16;
  }
};

/// A whole bucket.
struct Amount {
  double payload_bytes = 0;  // coded
  double value_bytes = 0;    // as float32
};

/// `links` is complete and has two members or more.
Forecast forecast(Algorithm algorithm, const Amount& amount, const LinkTable& links,
                  const RingOrder& ring);

/// A ring codes every value N times and adds as many errors: it must be this much faster.
constexpr double kRingMustTake = 0.9;

/// All candidates and the one taken.
struct Choice {
  Algorithm algorithm = Algorithm::direct;
  std::vector<Forecast> forecasts;  // none where nothing was measured
};
Choice choose_measured(const Amount& amount, const LinkTable& links, const RingOrder& ring,
                       Choosing choosing);

/// As float32 256 KiB: a sum and the frame that is added to it fit into the L2 cache of most cores.
constexpr std::size_t kCachedSegmentElems = 1u << 16;

/// Elements of a segment, at most `most`. Where a member computes for longer than bytes move, as
/// inside a host, passes over memory are what counts, and what one step has written should still be
/// in the cache when the next one reads it. Elsewhere there should be few frames.
std::size_t choose_segment(const Forecast& told, std::size_t most);

/// As float32 128 MiB, which a GPU works on for longer than it takes to ask it for that.
constexpr std::size_t kMostSegmentElemsOnGpu = 1u << 25;

/// Elements of a segment of a chunk of `chunk_elems` where a member is a GPU, which takes 0.1 to
/// 0.2 ms for a segment however short it is: `least` doubled for as long as payloads are at most
/// half as long as a plain segment of `least` (512 KiB, which keep 25 Gbit/s busy), and the chunk
/// has two segments, of which one is under way while the other is coded. Where the codec leaves
/// less than a bit an element a segment takes most calls and the wire least time: payloads are as
/// long as a plain segment, and one segment may be all there is.
std::size_t choose_segment_on_gpu(const Codec& codec, std::size_t chunk_elems, std::size_t least);

}  // namespace fedcomm
