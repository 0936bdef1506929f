// Selection from the whole tensor: a sampled guess, one pass over memory that collects candidates,
// an exact choice among them; and what happens where the guess is wrong. The loops over elements
// that matter are in topk_isa.cpp.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <functional>
#include <mutex>

#include "base/dtype.h"
#include "base/thread_pool.h"
#include "topk/checks.h"
#include "topk/kernels.h"
#include "topk/threads.h"
#include "topk/topk.h"

namespace fedcomm::cpu {
namespace {

using detail::TopKStrip;

/// Elements that a thread scans at a time: 64 KiB of floats.
constexpr std::size_t kStrip = 1u << 14;
/// The sample: this many groups of neighbours (a cache line), spread over the tensor.
constexpr std::size_t kGroups = 1u << 13, kGroupSize = 16;
/// Below this, everything is a candidate.
constexpr std::size_t kSmall = 1u << 16;
/// Of so few, std::nth_element finds the k-th largest in no time.
constexpr std::size_t kFew = 1u << 12;
constexpr int kBinBits = 11;
constexpr std::size_t kBins = std::size_t{1} << kBinBits;

std::uint32_t magnitude_of(float value) {
  return float_bits(value) & 0x7fffffffu;
}

/// Magnitudes from lo to below hi, and how many elements have hi or more.
struct Bracket {
  std::uint32_t lo = 0, hi = kNoLimit;
  std::size_t n_above = 0;

  bool one_value() const { return hi - lo == 1; }
};

/// Counts the magnitudes of the bracket in kBins bins of 2^shift each; others go to the last entry.
using Histogram = std::array<std::uint32_t, kBins + 1>;

Histogram histogram(std::span<const float> values, const Bracket& bracket, int shift) {
  constexpr std::size_t kPiece = 1u << 17, kSide = 4;
  Histogram all{};
  std::mutex mutex;
  const std::uint32_t width = bracket.hi - bracket.lo;
  parallel_for(values.size(), kPiece, [&](std::size_t begin, std::size_t end) {
    // Several side by side: equal neighbours would wait for each other's increments.
    std::array<Histogram, kSide> sides{};
    const auto count = [&](std::size_t i, std::size_t side) {
      const std::uint32_t from_lo = magnitude_of(values[i]) - bracket.lo;
      ++sides[side][from_lo < width ? from_lo >> shift : kBins];
    };
    std::size_t i = begin;
    for (; i + kSide <= end; i += kSide) {
      for (std::size_t side = 0; side < kSide; ++side)
        count(i + side, side);
    }
    for (; i < end; ++i)
      count(i, 0);
    const std::lock_guard lock(mutex);
    for (const Histogram& side : sides) {
      for (std::size_t bin = 0; bin < kBins; ++bin)
        all[bin] += side[bin];
    }
  });
  return all;
}

/// Narrows a bracket that holds the rank-th largest (rank from 1) until no more than `enough`
/// elements are in it, or it is a single value. At most three passes.
Bracket narrow(std::span<const float> values, Bracket bracket, std::size_t rank,
               std::size_t enough) {
  while (!bracket.one_value()) {
    const auto bits = static_cast<int>(std::bit_width(bracket.hi - bracket.lo - 1));
    const int shift = std::max(0, bits - kBinBits);
    const Histogram counts = histogram(values, bracket, shift);
    std::size_t bin = kBins - 1;
    for (; bracket.n_above + counts[bin] < rank; --bin)
      bracket.n_above += counts[bin];
    bracket.lo += static_cast<std::uint32_t>(bin << shift);
    bracket.hi = std::min(bracket.hi, bracket.lo + (1u << shift));
    if (bracket.n_above + counts[bin] <= enough) {
      bracket = {bracket.lo, kNoLimit, 0};
      break;
    }
    if (counts[bin] <= enough) break;
  }
  return bracket;
}

/// The rank-th largest magnitude, which lies in the bracket.
std::uint32_t nth_largest(std::span<const float> values, Bracket bracket, std::size_t rank) {
  if (values.size() > kFew) bracket = narrow(values, bracket, rank, kFew);
  if (bracket.one_value()) return bracket.lo;
  std::array<std::uint32_t, kFew + kTopKBlock> found{};
  std::size_t n = 0;
  for (std::size_t begin = 0; begin < values.size(); begin += kFew) {
    const std::size_t length = std::min(kFew, values.size() - begin);
    const TopKRange range{values.data() + begin, nullptr, nullptr, 0.0f, length};
    const auto counts = topk_kernels().scan(range, bracket.lo, bracket.hi, found.data() + n);
    for (std::size_t i = n; i < n + counts.in_band; ++i)
      found[i] = magnitude_of(values[begin + found[i]]);
    n += counts.in_band;
  }
  const auto wanted = found.begin() + static_cast<std::ptrdiff_t>(rank - bracket.n_above - 1);
  std::nth_element(found.begin(), wanted, found.begin() + static_cast<std::ptrdiff_t>(n),
                   std::greater<>());
  return *wanted;
}

/// Where the k-th largest is likely to be, and room for the elements that are likely there.
struct Guess {
  Bracket bracket;
  std::size_t capacity;
};

float sum_at(const TopKInput& input, std::size_t i) {
  if (input.before.empty()) return input.x[i];
  return input.x[i] + input.beta * input.before[i];
}

std::span<const float> take_sample(const TopKInput& input, TopKWorkspace& workspace) {
  const std::size_t n = input.x.size();
  const std::size_t n_groups = std::min(kGroups, n / (16 * kGroupSize));
  float* sample = workspace.sample.get(n_groups * kGroupSize);
  parallel_for(n_groups, kGroups / 8, [&](std::size_t begin, std::size_t end) {
    for (std::size_t group = begin; group < end; ++group) {
      // Somewhere in its own n_groups-th part, so that no period of the data is met in step.
      const std::size_t part = n / n_groups / kGroupSize;
      const std::uint64_t random = (group + 1) * 0x9e3779b97f4a7c15u >> 32;
      const std::size_t first = group * n / n_groups / kGroupSize + (random * part >> 32);
      for (std::size_t i = 0; i < kGroupSize; ++i)
        sample[group * kGroupSize + i] = sum_at(input, first * kGroupSize + i);
    }
  });
  return {sample, n_groups * kGroupSize};
}

/// Standard deviation of how many of the sample reach `threshold`. Neighbours are alike, so groups
/// are what is independent.
double spread_of(std::span<const float> sample, std::uint32_t threshold) {
  double sum = 0, squares = 0;
  for (std::size_t begin = 0; begin < sample.size(); begin += kGroupSize) {
    int count = 0;
    for (std::size_t i = 0; i < kGroupSize; ++i)
      count += static_cast<std::int32_t>(magnitude_of(sample[begin + i])) >=
               static_cast<std::int32_t>(threshold);
    sum += count;
    squares += count * count;
  }
  const double n_groups = static_cast<double>(sample.size() / kGroupSize);
  return std::sqrt(std::max(1.0, squares - sum * sum / n_groups));
}

Guess guess(const TopKInput& input, std::size_t k, TopKWorkspace& workspace) {
  constexpr double kSigmas = 4, kAtLeast = 8;
  const std::size_t n = input.x.size();
  if (n <= kSmall) return {{}, n};
  const std::span<const float> sample = take_sample(input, workspace);
  const auto in_sample = static_cast<double>(sample.size());
  const double each_stands_for = static_cast<double>(n) / in_sample;
  const double rank = static_cast<double>(k) / each_stands_for;
  const auto at = [&](double wanted) {
    return nth_largest(sample, {}, static_cast<std::size_t>(std::clamp(wanted, 1.0, in_sample)));
  };
  const double margin = kSigmas * spread_of(sample, at(rank)) + kAtLeast;
  const double below = rank + margin;
  const std::uint32_t lo = below > in_sample ? 0 : at(below);
  const std::uint32_t hi = at(rank - margin);

  // All that reaches lo is collected, unless that were much: then hi and above is only counted.
  const bool many = k > n / 4;
  const double collected = many ? 4 * margin : rank + 2 * margin;
  const std::size_t capacity = std::min(n, static_cast<std::size_t>(collected * each_stands_for));
  if (lo == hi) return {{lo, lo + 1, 0}, capacity};  // many are equal, the k-th among them
  return {{lo, many ? hi : kNoLimit, 0}, capacity};
}

/// One selection under way.
class Selection {
 public:
  Selection(const TopKOutput& out, std::size_t n, std::size_t capacity, TopKWorkspace& workspace)
      : k_(out.indices.size()),
        n_(n),
        n_strips_((n + kStrip - 1) / kStrip),
        out_(out),
        slots_(n_strips_),
        positions_(workspace.per_thread.get(slots_.size() * kPerSlot)),
        strips_(workspace.strips.get(n_strips_)),
        capacity_(capacity),
        indices_(workspace.candidate_indices.get(capacity)),
        values_(workspace.candidate_values.get(capacity)) {}

  /// Lists the candidates in the bracket, as far as there is room; counts those and those above.
  void scan(const TopKInput& input, const Bracket& bracket) {
    const TopKKernels& kernels = topk_kernels();
    bracket_ = bracket;
    n_candidates_ = 0;
    n_above_ = 0;
    const std::size_t room = bracket.one_value() ? 0 : capacity_;
    slots_.run(n_strips_, [&](std::size_t slot, std::size_t i) {
      const std::size_t begin = i * kStrip;
      std::uint32_t* positions = positions_ + slot * kPerSlot;
      const TopKRange range = range_of(input, begin, length(i));
      const ScanCounts counts = kernels.scan(range, bracket.lo, bracket.hi, positions);
      const std::size_t first = n_candidates_.fetch_add(counts.in_band);
      n_above_ += counts.above;
      strips_[i] = {first, counts.in_band, counts.above, 0, 0, 0};
      if (first + counts.in_band > room) return;
      const float* from = range.before == nullptr ? range.x : range.after;
      for (std::size_t j = 0; j < counts.in_band; ++j) {
        indices_[first + j] = static_cast<std::uint32_t>(begin + positions[j]);
        values_[first + j] = from[positions[j]];
      }
    });
  }

  bool too_many_above() const { return n_above_ >= k_; }
  bool too_few() const { return n_above_ + n_candidates_ < k_; }
  bool too_many() const { return n_candidates_ > capacity_ && !bracket_.one_value(); }
  std::size_t n_above() const { return n_above_; }
  std::size_t n_candidates() const { return n_candidates_; }

  /// After a scan of which none of the above is true; `data` is what was scanned. Returns whether
  /// all that was selected is finite.
  bool finish(std::span<const float> data) {
    if (k_ == 0) return n_candidates_ == 0;
    const bool listed = !bracket_.one_value();
    threshold_ =
        listed ? nth_largest({values_, n_candidates_}, {bracket_.lo, bracket_.hi, 0}, k_ - n_above_)
               : bracket_.lo;
    count_ties();
    std::atomic<bool> finite = true;
    slots_.run(n_strips_, [&](std::size_t slot, std::size_t i) {
      const bool all_listed = listed && bracket_.hi == kNoLimit;
      const std::size_t n =
          all_listed ? emit_listed(strips_[i]) : emit_again(data, i, positions_ + slot * kPerSlot);
      const float* values = out_.values.data() + strips_[i].first_output;
      std::uint32_t largest = 0;
      for (std::size_t j = 0; j < n; ++j)
        largest = std::max(largest, magnitude_of(values[j]));
      if (largest >= kInfinityBits) finite = false;
    });
    return finite;
  }

 private:
  static constexpr std::size_t kPerSlot = kStrip + kTopKBlock;

  std::size_t length(std::size_t strip) const { return std::min(kStrip, n_ - strip * kStrip); }

  /// From the candidates of each strip: what is above the threshold, what equals it, and hence how
  /// many of those the strip may emit and where.
  void count_ties() {
    parallel_for(n_strips_, 64, [&](std::size_t begin, std::size_t end) {
      for (TopKStrip& strip : std::span(strips_ + begin, end - begin)) {
        strip.n_ties_found = strip.n_candidates;
        if (bracket_.one_value()) continue;
        std::uint32_t n_above = 0, n_ties = 0;
        for (std::size_t j = 0; j < strip.n_candidates; ++j) {
          const std::uint32_t each = magnitude_of(values_[strip.first_candidate + j]);
          n_above += each > threshold_ ? 1u : 0u;
          n_ties += each == threshold_ ? 1u : 0u;
        }
        strip.n_above += n_above;
        strip.n_ties_found = n_ties;
      }
    });
    std::size_t ties_left = k_;
    for (std::size_t i = 0; i < n_strips_; ++i)
      ties_left -= strips_[i].n_above;
    std::size_t next = 0;
    for (TopKStrip& strip : std::span(strips_, n_strips_)) {
      strip.n_ties =
          static_cast<std::uint32_t>(std::min<std::size_t>(strip.n_ties_found, ties_left));
      ties_left -= strip.n_ties;
      strip.first_output = next;
      next += strip.n_above + strip.n_ties;
    }
  }

  /// Writes the strip's entries from what is at least the threshold there; `from` names the j-th of
  /// those. Without a branch for each: which of them are selected is as good as random.
  template <typename From>
  std::size_t emit(const TopKStrip& strip, const From& from) {
    const std::size_t n = strip.n_above + strip.n_ties;
    std::uint32_t* indices = out_.indices.data() + strip.first_output;
    float* values = out_.values.data() + strip.first_output;
    if (strip.n_ties == strip.n_ties_found || strip.n_ties == 0) {
      const std::uint32_t lowest = threshold_ + (strip.n_ties == 0 ? 1 : 0);
      for (std::size_t j = 0, to = 0; to < n; ++j) {
        const auto [index, value] = from(j);
        indices[to] = index;
        values[to] = value;
        to += magnitude_of(value) >= lowest ? 1u : 0u;
      }
      return n;
    }
    std::uint32_t ties_left = strip.n_ties;  // the one strip in which the ties run out
    for (std::size_t j = 0, to = 0; to < n; ++j) {
      const auto [index, value] = from(j);
      const bool tie = magnitude_of(value) == threshold_;
      if (magnitude_of(value) < threshold_ || (tie && ties_left == 0)) continue;
      if (tie) --ties_left;
      indices[to] = index;
      values[to++] = value;
    }
    return n;
  }

  std::size_t emit_listed(const TopKStrip& strip) {
    const std::uint32_t* indices = indices_ + strip.first_candidate;
    const float* values = values_ + strip.first_candidate;
    return emit(strip, [&](std::size_t j) { return std::pair(indices[j], values[j]); });
  }

  /// The same from the tensor itself.
  std::size_t emit_again(std::span<const float> data, std::size_t i, std::uint32_t* positions) {
    const TopKStrip& strip = strips_[i];
    if (strip.n_above + strip.n_ties == 0) return 0;
    const std::size_t begin = i * kStrip;
    const TopKRange range = range_of({.x = data, .before = {}, .after = {}}, begin, length(i));
    const std::uint32_t lowest = threshold_ + (strip.n_ties == 0 ? 1 : 0);
    topk_kernels().scan(range, lowest, kNoLimit, positions);
    return emit(strip, [&](std::size_t j) {
      return std::pair(static_cast<std::uint32_t>(begin + positions[j]), range.x[positions[j]]);
    });
  }

  std::size_t k_, n_, n_strips_;
  TopKOutput out_;
  Slots slots_;
  std::uint32_t* positions_;
  TopKStrip* strips_;
  std::size_t capacity_;
  std::uint32_t* indices_;
  float* values_;
  Bracket bracket_;
  std::uint32_t threshold_ = 0;
  std::atomic<std::size_t> n_candidates_ = 0, n_above_ = 0;
};

}  // namespace

bool top_k(const TopKInput& input, const TopKOutput& out, TopKWorkspace& workspace) {
  const std::size_t k = out.indices.size();
  detail::check_top_k(input, out);
  if (input.x.empty()) return true;
  // With nothing to select, what is not finite is looked for (and the residual written).
  const Guess first = k > 0 ? guess(input, k, workspace) : Guess{{kInfinityBits, kNoLimit, 0}, 0};
  Selection selection(out, input.x.size(), first.capacity, workspace);
  selection.scan(input, first.bracket);
  if (k == 0) return selection.finish(input.x);

  // From here on the sum is in `after`; `before` may be overwritten.
  const std::span<const float> data = input.before.empty() ? input.x : input.after;
  Bracket bracket = first.bracket;
  for (;;) {
    if (selection.too_many_above()) {
      bracket = {bracket.hi, kNoLimit, 0};
      if (selection.n_above() > first.capacity) bracket = narrow(data, bracket, k, first.capacity);
    } else if (selection.too_few()) {
      bracket = {0, bracket.lo, selection.n_above() + selection.n_candidates()};
      bracket = narrow(data, bracket, k, first.capacity);
    } else if (selection.too_many()) {
      bracket.n_above = selection.n_above();
      bracket = narrow(data, bracket, k, first.capacity);
    } else {
      return selection.finish(data);
    }
    selection.scan({.x = data, .before = {}, .after = {}}, bracket);
  }
}

}  // namespace fedcomm::cpu
