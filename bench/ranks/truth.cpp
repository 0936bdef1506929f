#include "ranks/truth.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "codec/codec.h"
#include "codec/parse.h"
#include "codec/quant_codec.h"

namespace fedcomm::bench {
namespace {

constexpr double kFloatRounding = 0x1p-24;  // of a float32 operation, in units of its result
// A step, its inverse, and the products with either are rounded, each by 2^-24 of a value that is
// at most the block's largest magnitude, or as many steps.
constexpr double kStepRounding = 0x1p-21;
constexpr double kBf16StepUp = 1 + 0x1p-7;  // a bf16 step may be so much larger than it need be

std::uint64_t mix(std::uint64_t x) {  // SplitMix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

float stored(float x, DType dtype) {
  switch (dtype) {
    case DType::f32: return x;
    case DType::f16: return half_to_float(float_to_half(x));
    case DType::bf16: return bf16_to_float(float_to_bf16(x));
    case DType::u8: break;
  }
  fail(ErrorKind::internal, "bytes are not summed");
}

/// Half of the last place, in units of the value.
double store_rounding(DType dtype) {
  switch (dtype) {
    case DType::f32: return 0;
    case DType::f16: return 0x1p-11;
    case DType::bf16: return 0x1p-8;
    case DType::u8: break;
  }
  fail(ErrorKind::internal, "bytes are not summed");
}

/// The largest gap between two codes that have values between them, in units of the block's largest
/// magnitude (of a format without scales: of the element). See csrc/quant/formats/.
double gap_of(Format format) {
  switch (format) {
    case Format::Fp32: return 0;
    case Format::Bf16: return 0x1p-7;           // 7 bits of mantissa
    case Format::Fp8E4m3: return 32.0 / 448.0;  // from 256 to 448 in steps of 32
    case Format::Int8: return 1.0 / 127.0;      // 127 steps
    case Format::Int4: return 1.0 / 7.0;        // 7 steps
    case Format::Int2: return 2.0 / 3.0;        // -3, -1, 1, 3, of 3
    case Format::E3m0: return 1.0 / 2.0;        // 1/2 to 1
    case Format::Sign: return 2.0;              // the mean is between 0 and the largest
  }
  return 0;
}

double loss_of(const QuantSpec& spec) {
  if (spec.format == Format::Fp32) return 0;
  const double gap = gap_of(spec.format);
  const double loss = spec.rounding == Rounding::stochastic ? gap : gap / 2;
  return loss * (spec.block > 1 && spec.scale == ScaleType::bf16 ? kBf16StepUp : 1) + kStepRounding;
}

template <typename T>
double kth_largest(std::vector<T>& values, std::size_t k) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(k);
  std::ranges::nth_element(values, at, std::greater<>());
  return static_cast<double>(*at);
}

/// Of magnitudes that are at least `least` and at most `most`; more than k may be as large as an
/// element only if the k+1 largest can be.
template <typename T>
Thresholds thresholds(std::vector<T> least, std::vector<T> most, std::size_t k) {
  Thresholds found;
  if (!most.empty()) found.largest = static_cast<double>(*std::ranges::max_element(most));
  if (k >= most.size()) return found;  // all are chosen
  found.kept_above = kth_largest(most, k);
  found.dropped_below = kth_largest(least, k - 1);
  return found;
}

/// Codes elements of which some are chosen; each loses at most `loss`.
void code_chosen(Intervals& v, Range range, const Thresholds& chosen, double loss) {
  for (std::size_t i = range.begin; i < range.end; ++i) {
    if (v.magnitude(i) < chosen.dropped_below) {
      v.low[i] = v.high[i] = 0;
      continue;
    }
    const bool kept = v.least_magnitude(i) > chosen.kept_above;
    v.low[i] = kept ? v.low[i] - loss : std::min(v.low[i] - loss, 0.0);
    v.high[i] = kept ? v.high[i] + loss : std::max(v.high[i] + loss, 0.0);
  }
}

Thresholds thresholds_in(const Intervals& v, Range range, std::size_t k) {
  std::vector<double> least, most;
  for (std::size_t i = range.begin; i < range.end; ++i) {
    least.push_back(v.least_magnitude(i));
    most.push_back(v.magnitude(i));
  }
  return thresholds(std::move(least), std::move(most), k);
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", x);
  return text;
}

}  // namespace

void input_values(int rank, std::size_t begin, DType dtype, std::span<float> out) {
  const std::uint64_t stream = mix(static_cast<std::uint64_t>(rank) + 0x9e3779b97f4a7c15u);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint64_t bits = mix(stream + (begin + i) * 0x9e3779b97f4a7c15u);
    const auto sum = static_cast<std::int32_t>((bits & 0xffffu) + (bits >> 16 & 0xffffu) +
                                               (bits >> 32 & 0xffffu) + (bits >> 48));
    out[i] = stored(static_cast<float>(sum - 2 * 0xffff) * 0x1p-16f, dtype);
  }
}

Coding coding_of(std::string_view codec) {
  const std::string name = make_codec(codec)->name();  // canonical: with all that matters
  const CodecText text = parse_codec(name);
  if (text.word != "topk" && text.word != "chunk_topk") {
    const QuantSpec spec = value_codec(text).spec;
    return {.loss = loss_of(spec), .block = spec.block};
  }
  // topk(DENSITY or k=COUNT, FORMAT, ...), chunk_topk(CHUNK, K, FORMAT, ...)
  const bool chunked = text.word == "chunk_topk";
  Coding coding{.loss = loss_of(value_codec(text.arguments.at(chunked ? 2 : 1)).spec),
                .choice = chunked ? Coding::Choice::of_chunks : Coding::Choice::of_whole};
  const CodecText& first = text.arguments.at(0);
  if (chunked) {
    coding.chunk = count_of(first, "chunk");
    coding.k = count_of(text.arguments.at(1), "k");
  } else if (first.keyword == "k") {
    coding.k = count_of(first, "k");
  } else {
    coding.density = number_of(first, "density");
  }
  return coding;
}

// --- intervals -----------------------------------------------------------------------------------

double Intervals::magnitude(std::size_t i) const {
  return std::max(std::abs(low[i]), std::abs(high[i]));
}

double Intervals::least_magnitude(std::size_t i) const {
  const bool around_zero = low[i] <= 0 && high[i] >= 0;
  return around_zero ? 0 : std::min(std::abs(low[i]), std::abs(high[i]));
}

void Intervals::add(std::span<const float> x) {
  for (std::size_t i = 0; i < x.size(); ++i)
    add_to(i, static_cast<double>(x[i]), static_cast<double>(x[i]));
}

void Intervals::add(const Intervals& other) {
  for (std::size_t i = 0; i < low.size(); ++i)
    add_to(i, other.low[i], other.high[i]);
}

void Intervals::add_to(std::size_t i, double least, double most) {
  const bool known = low[i] == high[i] && least == most;
  low[i] += least;
  high[i] += most;
  if (known) {  // two float32, whose sum as a double is exact for inputs like ours
    low[i] = high[i] = static_cast<double>(static_cast<float>(low[i]));
    return;
  }
  const double rounding = kFloatRounding * magnitude(i);
  low[i] -= rounding;
  high[i] += rounding;
}

void Intervals::code(const Coding& coding) {
  const std::size_t n = low.size();
  // The values that a sparse codec keeps share scales in the order of their indices, whichever they
  // are: the largest magnitude of all serves for each block.
  const std::size_t unit = coding.choice == Coding::Choice::none ? coding.block : n;
  for (std::size_t begin = 0; begin < n; begin += unit) {
    const std::size_t end = std::min(begin + unit, n);
    double largest = 0;
    for (std::size_t i = begin; i < end; ++i)
      largest = std::max(largest, magnitude(i));
    const double loss = coding.loss * largest;
    if (coding.choice == Coding::Choice::of_chunks) {
      for (std::size_t from = begin; from < end; from += coding.chunk) {
        const Range chunk{from, std::min(from + coding.chunk, end)};
        code_chosen(*this, chunk, thresholds_in(*this, chunk, coding.k), loss);
      }
      continue;
    }
    for (std::size_t i = begin; i < end; ++i) {
      low[i] -= loss;
      high[i] += loss;
    }
  }
}

// --- the reduction -------------------------------------------------------------------------------

Truth::Truth(const Setting& setting) : setting_(setting), coding_(coding_of(setting.codec)) {
  const bool whole = setting.algorithm == Algorithm::all_gather || setting.n_ranks == 1;
  const Layout layout{setting.n_elems, whole ? 1 : static_cast<std::size_t>(setting.n_ranks),
                      setting.segment_elems};
  for (std::size_t chunk = 0; chunk < layout.n_chunks; ++chunk) {
    for (std::size_t i = 0; i < layout.n_segments(chunk); ++i) {
      const Range range = layout.segment(chunk, i);
      if (range.size() > 0) segments_.push_back({chunk, range});
    }
  }
  if (coding_.choice != Coding::Choice::of_whole || setting.n_ranks == 1) return;
  for (int rank = 0; rank < setting.n_ranks; ++rank)
    of_ranks_.push_back(thresholds_of_rank(rank));
  if (setting.algorithm != Algorithm::sparse) return;
  for (std::size_t chunk = 0; chunk < layout.n_chunks; ++chunk)
    of_sums_.push_back(thresholds_of_sum(chunk));
}

std::size_t Truth::k_of_whole() const {
  if (coding_.k > 0) return coding_.k;
  const double share = std::round(coding_.density * static_cast<double>(setting_.n_elems));
  return std::max<std::size_t>(1, static_cast<std::size_t>(share));
}

Thresholds Truth::thresholds_of_rank(int rank) const {
  std::vector<float> x(setting_.n_elems);
  input_values(rank, 0, setting_.dtype, x);
  for (float& each : x)
    each = std::abs(each);
  std::vector<float> most = x;
  return thresholds(std::move(x), std::move(most), k_of_whole());
}

Thresholds Truth::thresholds_of_sum(std::size_t chunk) const {
  std::vector<double> least, most;
  for (const Segment& segment : segments_) {
    if (segment.chunk != chunk) continue;
    const Intervals sum = sum_of_coded(segment.range);
    for (std::size_t i = 0; i < segment.range.size(); ++i) {
      least.push_back(sum.least_magnitude(i));
      most.push_back(sum.magnitude(i));
    }
  }
  // A density is that of the chunk; of a count, the chunk's share of the tensor, rounded up.
  const auto n = static_cast<double>(most.size());
  const double k = coding_.k > 0
                       ? std::ceil(n / static_cast<double>(setting_.n_elems) *
                                   static_cast<double>(std::min(coding_.k, setting_.n_elems)))
                       : std::round(coding_.density * n);
  const auto at_least_one = std::max<std::size_t>(1, static_cast<std::size_t>(k));
  return thresholds(std::move(least), std::move(most), at_least_one);
}

Intervals Truth::coded_input(int rank, std::span<const float> x) const {
  Intervals v(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    v.low[i] = v.high[i] = static_cast<double>(x[i]);
  if (of_ranks_.empty()) {
    v.code(coding_);
  } else {
    const Thresholds& chosen = of_ranks_[static_cast<std::size_t>(rank)];
    code_chosen(v, {0, x.size()}, chosen, coding_.loss * chosen.largest);
  }
  return v;
}

Intervals Truth::sum_of_coded(Range range) const {
  std::vector<float> x(range.size());
  Intervals sum(range.size());
  for (int rank = 0; rank < setting_.n_ranks; ++rank) {
    input_values(rank, range.begin, setting_.dtype, x);
    sum.add(coded_input(rank, x));
  }
  return sum;
}

/// All ranks in the order of the ring, from the one after `rank` to itself.
std::vector<std::size_t> Truth::ring_after(std::size_t rank) const {
  std::vector<std::size_t> ranks(setting_.ring.begin(), setting_.ring.end());
  if (ranks.empty()) {
    ranks.resize(static_cast<std::size_t>(setting_.n_ranks));
    std::iota(ranks.begin(), ranks.end(), 0u);
  }
  std::rotate(ranks.begin(), std::find(ranks.begin(), ranks.end(), rank) + 1, ranks.end());
  return ranks;
}

Intervals Truth::reduced(const Segment& segment) const {
  const std::size_t n = segment.range.size();
  const auto n_ranks = static_cast<std::size_t>(setting_.n_ranks);
  std::vector<float> x(n);
  const auto input_of = [&](std::size_t rank) -> std::span<const float> {
    input_values(static_cast<int>(rank), segment.range.begin, setting_.dtype, x);
    return x;
  };
  const auto coded_of = [&](std::size_t rank) {
    return coded_input(static_cast<int>(rank), input_of(rank));
  };
  Intervals sum(n);
  if (n_ranks == 1) {  // nothing travels, nothing is coded
    sum.add(input_of(0));
    return sum;
  }
  switch (setting_.algorithm) {
    case Algorithm::direct:  // the owner's own part is not coded; the sum is
      for (std::size_t rank = 0; rank < n_ranks; ++rank) {
        if (rank == segment.chunk) {
          sum.add(input_of(rank));
        } else {
          sum.add(coded_of(rank));
        }
      }
      sum.code(coding_);
      break;
    case Algorithm::ring:  // from the owner's successor round to the owner, coded at each hop
      for (const std::size_t rank : ring_after(segment.chunk)) {
        sum.add(input_of(rank));
        sum.code(coding_);
      }
      break;
    case Algorithm::all_gather: return sum_of_coded(segment.range);
    case Algorithm::sparse: {  // the owner's own part is coded, too
      sum = sum_of_coded(segment.range);
      const Thresholds& chosen = of_sums_[segment.chunk];
      code_chosen(sum, {0, n}, chosen, coding_.loss * chosen.largest);
      break;
    }
  }
  return sum;
}

std::string Truth::check(std::size_t segment, const TensorView& output) const {
  const Segment& part = segments_.at(segment);
  const Intervals expected = reduced(part);
  std::vector<float> values(part.range.size());
  load_floats(output, part.range.begin, values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double slack = store_rounding(setting_.dtype) * expected.magnitude(i);
    const double low = expected.low[i] - slack, high = expected.high[i] + slack;
    const auto value = static_cast<double>(values[i]);
    if (value >= low && value <= high) continue;  // a NaN is not
    return "element " + std::to_string(part.range.begin + i) + " is " + number(value) +
           ", not between " + number(low) + " and " + number(high);
  }
  return "";
}

}  // namespace fedcomm::bench
