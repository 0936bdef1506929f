// What a sum over ranks must be: inputs that every rank can make, and, for each element, the
// interval that a right outcome lies in. Slow, in double precision, and apart from what is timed:
// of the library it uses the number of elements of a chunk and of a segment, and what codecs are
// called.
//
// The interval follows the plan of the algorithm (collective/plan.h), one coding after the other. A
// coding of a block whose largest magnitude is A moves an element by at most half of the format's
// largest gap between two codes, in units of A (stochastic rounding: by a whole gap), see
// loss_of(); each float32 addition by 2^-24 of the sum. A sparse codec keeps what is surely among
// the largest, drops what surely is not, and may do either with what the intervals leave open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "collective/plan.h"

namespace fedcomm::bench {

/// Rank's elements from `begin` on: sums of four uniform numbers, multiples of 2^-16 between -2 and
/// 2 with a standard deviation of 0.58, as `dtype` holds them.
void input_values(int rank, std::size_t begin, DType dtype, std::span<float> out);

/// What one coding does to values.
struct Coding {
  double loss = 0;        // at most, in units of the block's largest magnitude
  std::size_t block = 1;  // elements that share a scale
  enum class Choice : std::uint8_t { none, of_whole, of_chunks };
  Choice choice = Choice::none;
  std::size_t chunk = 0;  // of_chunks: elements that k are chosen from
  std::size_t k = 0;      // of_chunks; of_whole, unless it is a density
  double density = 0;
};

/// Of a codec by its name. Throws invalid_argument.
Coding coding_of(std::string_view codec);

/// Where values lie: [low[i], high[i]].
struct Intervals {
  explicit Intervals(std::size_t n) : low(n), high(n) {}

  std::vector<double> low, high;

  double magnitude(std::size_t i) const;
  double least_magnitude(std::size_t i) const;
  /// Adds, as float32 does: exactly where both are known exactly.
  void add(std::span<const float> x);
  void add(const Intervals& other);
  /// Codes and decodes.
  void code(const Coding& coding);

 private:
  void add_to(std::size_t i, double least, double most);
};

/// What is known of a choice of the k largest: what is larger than one number is chosen, what is
/// smaller than another is not.
struct Thresholds {
  double kept_above = -1, dropped_below = 0;
  double largest = 0;
};

/// A reduction whose outcome is known.
class Truth {
 public:
  struct Setting {
    std::string codec = "fp32";
    Algorithm algorithm = Algorithm::direct;
    std::size_t n_elems = 0;
    std::size_t segment_elems = 0;
    int n_ranks = 1;
    DType dtype = DType::f32;
    RingOrder ring = {};  // member order where it is empty
  };

  explicit Truth(const Setting& setting);

  /// The segments, in an order that all ranks agree on.
  std::size_t n_segments() const { return segments_.size(); }
  /// What is wrong with a segment of `output`; "" where nothing is.
  std::string check(std::size_t segment, const TensorView& output) const;

 private:
  struct Segment {
    std::size_t chunk;
    Range range;
  };

  std::size_t k_of_whole() const;
  Thresholds thresholds_of_rank(int rank) const;
  Thresholds thresholds_of_sum(std::size_t chunk) const;
  Intervals coded_input(int rank, std::span<const float> x) const;
  /// The sum of what all ranks sent.
  Intervals sum_of_coded(Range range) const;
  std::vector<std::size_t> ring_after(std::size_t rank) const;
  Intervals reduced(const Segment& segment) const;

  Setting setting_;
  Coding coding_;
  std::vector<Segment> segments_;
  // Only for a choice from the whole: of each rank's tensor; for sparse, of the sum of each chunk.
  std::vector<Thresholds> of_ranks_, of_sums_;
};

}  // namespace fedcomm::bench
