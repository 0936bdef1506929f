// Group, the part that knows its links: measuring, what was found, and what "auto" makes of it.
#include <cmath>
#include <cstring>

#include "collective/group.h"
#include "collective/measure.h"
#include "collective/ring_order.h"
#include "wire/bytes.h"

namespace fedcomm {
namespace {

constexpr double kLongestMeasurement = 3600;

Amount amount_of(const Codec& codec, std::size_t n_elems) {
  return {.payload_bytes = static_cast<double>(codec.wire_bytes(n_elems)),
          .value_bytes = static_cast<double>(n_elems * sizeof(float))};
}

/// What all members must have called for.
std::vector<std::byte> write_call(MeasureBy by, double seconds) {
  std::vector<std::byte> bytes(9);
  ByteWriter writer(bytes);
  writer.put(static_cast<std::uint8_t>(by));
  writer.put(seconds);
  return bytes;
}

TensorView view(std::vector<std::byte>& bytes) {
  return {bytes.data(), bytes.size(), DType::u8};
}

}  // namespace

std::shared_ptr<Work> Group::probe(const TensorView& bytes, int source, int destination,
                                   double timeout_s) {
  const auto is_member = [this](int member) { return member >= 0 && member < size(); };
  if (!is_member(source) || !is_member(destination) || source == destination) {
    fail(ErrorKind::invalid_argument, "a probe goes from one member to another one");
  }
  OperationSpec spec;
  spec.operation = Operation::probe;
  spec.bucket = static_cast<std::uint32_t>(source) << 16 | static_cast<std::uint32_t>(destination);
  spec.input = {bytes.data, bytes.n_bytes(), DType::u8};
  spec.output = spec.input;
  spec.timeout_s = timeout_s;
  Plan plan = plan_probe(spec.input.n_elems, options_.segment_elems * sizeof(float), size(),
                         member_, source, destination);
  return engine_->submit(std::move(spec), std::move(plan));
}

std::shared_ptr<Work> Group::skip() {
  OperationSpec spec;
  spec.operation = Operation::probe;
  spec.input = spec.output = {nullptr, 0, DType::u8};
  spec.timeout_s = options_.timeout_s;
  return engine_->submit(std::move(spec), Plan{});
}

std::shared_ptr<const Measured> Group::measure(MeasureBy by, std::optional<double> at_most) {
  const double seconds = at_most.value_or(time_to_measure(size()));
  if (!(seconds > 0) || seconds > kLongestMeasurement) {
    fail(ErrorKind::invalid_argument,
         "measure: " + std::to_string(seconds) +
             " seconds; they must be more than 0, and an hour at most");
  }
  std::vector<std::byte> call = write_call(by, seconds), calls(call.size() * ranks_.size());
  all_gather(view(call), view(calls))->wait();
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    if (std::memcmp(&calls[i * call.size()], &calls[0], call.size()) != 0) {
      fail(ErrorKind::invalid_argument, about(static_cast<int>(i)) +
                                            "measures in another way, or for another time, than " +
                                            options_.labels[0]);
    }
  }
  try {
    std::vector<std::byte> mine =
        write_report(by == MeasureBy::probes ? probe_links(*this, seconds) : report_traffic());
    std::vector<std::byte> all(mine.size() * ranks_.size());
    all_gather(view(mine), view(all))->wait();
    std::vector<LinkReport> reports;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      reports.push_back(read_report(std::span(all).subspan(i * mine.size(), mine.size()), size()));
    }
    auto found = std::make_shared<Measured>(Measured{merge_reports(reports), {}});
    if (found->links.is_complete()) found->ring = ring_worth_taking(found->links);
    note_paths();
    const std::lock_guard lock(measured_mutex_);
    measured_ = found;
    return found;
  } catch (const std::exception& error) {
    if (!broken()) abort(std::string("measure: ") + error.what());
    throw;
  }
}

/// What this member knows without asking anybody.
LinkReport Group::report_traffic() const {
  const auto known = measured();
  const auto n = ranks_.size();
  LinkReport report{std::vector<LinkFacts>(n), std::vector<std::uint64_t>(n),
                    known ? known->links.coding_rate : 0};
  const Counters now = counters();
  for (std::size_t i = 0; i < n; ++i) {
    if (static_cast<int>(i) == member_) continue;
    LinkFacts& facts = report.to[i];
    if (known) facts = known->links.at(member_, static_cast<int>(i));
    report.received_rate[i] = now.links[i].received_rate;
    const auto path = fabric_->path_facts(ranks_[i]);
    if (!path) continue;
    if (facts.round_trip_ns == 0) {
      facts.round_trip_ns = static_cast<std::uint64_t>(1e9 * path->round_trip_s);
    }
    const PathFacts before = paths_.empty() ? PathFacts{} : paths_[i].value_or(PathFacts{});
    facts.lost_billionths = loss_between(before, *path);
  }
  return report;
}

void Group::note_paths() {
  paths_.assign(ranks_.size(), std::nullopt);
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    if (static_cast<int>(i) != member_) paths_[i] = fabric_->path_facts(ranks_[i]);
  }
  engine_->forget_rates();
}

std::shared_ptr<const Measured> Group::measured() const {
  const std::lock_guard lock(measured_mutex_);
  return measured_;
}

Choice Group::choose(std::size_t n_elems, std::string_view codec) const {
  return choice_for(*make_codec(codec), n_elems);
}

/// Depends on nothing that could differ between members: they have the same table.
Choice Group::choice_for(const Codec& codec, std::size_t n_elems) const {
  const auto known = measured();
  const bool can_tell = known && size() > 1 && known->links.is_complete();
  const Choosing choosing =
      codec.chooses_from_whole() ? Choosing::from_whole : Choosing::from_parts;
  if (!can_tell) return {choose_unmeasured(n_elems, size(), choosing), {}};
  return choose_measured(amount_of(codec, n_elems), known->links, known->ring, choosing);
}

/// Equal on all members, as a choice is. Of codecs whose blocks a segment could cut, or that choose
/// from the whole, segments do not depend on measuring: nothing but time does.
std::size_t Group::segment_elems_for(const OperationSpec& spec) const {
  if (any_on_gpu_) {
    const std::size_t chunk_elems = spec.input.n_elems / n_chunks(spec.algorithm, size());
    return choose_segment_on_gpu(*spec.codec, chunk_elems, options_.segment_elems);
  }
  const auto known = measured();
  const bool can_tell = known && size() > 1 && known->links.is_complete();
  const bool by_blocks =
      !spec.codec->chooses_from_whole() && kCachedSegmentElems % spec.codec->block() == 0;
  if (!can_tell || !by_blocks) return options_.segment_elems;
  const Amount amount = amount_of(*spec.codec, spec.input.n_elems);
  return choose_segment(forecast(spec.algorithm, amount, known->links, known->ring),
                        options_.segment_elems);
}

}  // namespace fedcomm
