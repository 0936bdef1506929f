// Plan: what one member does in one operation, as steps with dependencies. Pure: nothing is opened,
// sent or computed here, so every plan for every member can be checked by simulation.
//
// A bucket is cut into one chunk for each member (the part it owns), a chunk into segments (the
// unit of pipelining). Boundaries are multiples of kGrain elements. Every chunk has at least one
// segment, if only an empty one, so that members always hear of each other and can tell if they
// disagree.
//
// all_reduce of P payload bytes by N members:
//   direct      2 steps, 2(N-1)/N P bytes a member, two codings. Everyone sends chunk c to member
//   c,
//               which accumulates in member order, encodes the sum and sends it to everyone.
//   ring        2(N-1) steps, 2(N-1)/N P bytes a member, N codings. Chunk c starts at the member
//               after c and collects one contribution a hop until it reaches c, its owner; the
//               encoded sum is then forwarded, unchanged, all the way round. Who comes after whom
//               is the ring's order, member order unless another is given; it decides in which
//               order a chunk is summed (from the owner's successor to the owner), not who owns it.
//   all_gather  1 step, (N-1) P bytes a member, one coding. Everyone decodes everything in member
//               order.
//   sparse      2 steps, 2(N-1)/N P bytes a member, two codings, for codecs that choose from the
//               whole. Everyone chooses from its bucket and sends what lies in chunk c to member c,
//               which adds these in member order, its own too, chooses from the sum of the whole
//               chunk and sends that to everyone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "wire/frame.h"

namespace fedcomm {

/// The largest block of a format. (chunk_topk counts its chunks from where a segment begins.)
constexpr std::size_t kGrain = 4096;
constexpr std::uint32_t kNone = 0xffffffffu;

struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;

  std::size_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

/// How `n_elems` elements are cut into chunks and segments.
struct Layout {
  std::size_t n_elems = 0;
  std::size_t n_chunks = 1;
  std::size_t segment_elems = 1;

  Range chunk(std::size_t index) const;
  std::size_t n_segments(std::size_t chunk_index) const;
  /// Of the chunk that has most.
  std::size_t max_segments() const;
  Range segment(std::size_t chunk_index, std::size_t index) const;
};

enum class Action : std::uint8_t {
  encode,      // input or scratch -> payload, sealed as a frame
  send,        // payload -> member
  receive,     // member -> payload, opened and checked
  accumulate,  // scratch = or += weight * (input or payload)
  finish,      // scratch, before it is encoded: divide by the sum of weights, for a mean
  decode,      // payload -> output
  store,       // scratch, divided likewise -> output
};

/// What an encoding loses is kept here for the next round.
enum class Residual : std::uint8_t { none, sender, owner };

struct Step {
  Action action = Action::encode;
  bool from_input = false;  // encode, accumulate: reads the input rather than scratch or payload
  bool first = false;       // accumulate: assigns
  bool already_weighted = false;  // accumulate: the payload is a weighted partial sum
  Residual residual = Residual::none;
  std::uint16_t member = 0;  // send: to; receive: from; encode: for (or kEveryone)
  std::uint16_t origin = 0;  // receive: who encoded the payload
  std::uint32_t phase = 0;   // with chunk and segment, the frame's identity in its header
  std::uint32_t chunk = 0;
  std::uint32_t segment = 0;
  std::uint32_t slot = 0;  // send, receive: unique among the frames between two members
  std::uint32_t payload = kNone;
  std::uint32_t scratch = kNone;
  Range sum;                   // what the scratch holds; `range` lies in it
  std::uint32_t lane = kNone;  // steps that take memory queue here, in order, a window at a time
  Range range;  // elements of the input (encode, accumulate) or output (decode, store)
};

struct Plan {
  std::vector<Step> steps;
  std::uint32_t n_payloads = 0;
  std::uint32_t n_scratch = 0;
  std::uint32_t n_lanes = 0;

  /// Steps that must be done before step i.
  std::span<const std::uint32_t> after(std::size_t i) const {
    return std::span(after_).subspan(after_begin_[i], after_begin_[i + 1] - after_begin_[i]);
  }

 private:
  friend class PlanBuilder;
  std::vector<std::uint32_t> after_;
  std::vector<std::size_t> after_begin_{0};
};

/// Into how many chunks all_reduce cuts a bucket.
std::size_t n_chunks(Algorithm algorithm, int n_members);

/// Part of the bucket that `member` owns while reducing; empty for all_gather, which has no owners.
Range owned_range(Algorithm algorithm, std::size_t n_elems, int n_members, int member);

/// What a codec chooses the values from that it sends; those that send all choose from parts.
enum class Choosing : std::uint8_t { from_parts, from_whole };

/// The algorithm that "auto" stands for where nothing was measured (else see choose.h). With two
/// members all_gather moves the same bytes as direct in one step instead of two; for small buckets
/// the steps cost more than the bytes.
Algorithm choose_unmeasured(std::size_t n_elems, int n_members, Choosing choosing);

/// Every member once, in the order in which a ring passes them; equal on all members.
using RingOrder = std::vector<std::uint16_t>;

/// `ring`: empty for member order; used by the ring only.
Plan plan_all_reduce(Algorithm algorithm, std::size_t n_elems, std::size_t segment_elems,
                     int n_members, int member, const RingOrder& ring = {});

/// Plain bytes of equal number from every member; the output is n_members times as long.
Plan plan_all_gather(std::size_t n_bytes, std::size_t segment_bytes, int n_members, int member);

/// Plain bytes of one member to one other, and an empty answer back when all have arrived; nothing
/// to do for the rest. For measuring: on the source's clock it takes a round trip and the bytes.
Plan plan_probe(std::size_t n_bytes, std::size_t segment_bytes, int n_members, int member,
                int source, int destination);

/// Plain bytes of the root, sent to each member directly.
Plan plan_broadcast(std::size_t n_bytes, std::size_t segment_bytes, int n_members, int member,
                    int root);

}  // namespace fedcomm
