#include "collective/execution.h"

#include <algorithm>
#include <cmath>

#include "collective/identity.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kSumMemory = 256u << 20;  // of segments' sums alive in one operation

bool is_transfer(Action action) {
  return action == Action::send || action == Action::receive;
}

}  // namespace

Execution::Execution(const GroupContext& context, OperationSpec spec, Plan plan,
                     std::uint32_t sequence, std::shared_ptr<Work> work)
    : context_(context),
      spec_(std::move(spec)),
      plan_(std::move(plan)),
      sequence_(sequence),
      work_(std::move(work)),
      stage_(make_stage(context_, spec_)) {
  index_plan();
}

void Execution::index_plan() {
  const std::size_t n_steps = plan_.steps.size();
  n_left_ = n_steps;
  n_blockers_.resize(n_steps);
  dependents_begin_.assign(n_steps + 1, 0);
  payloads_.resize(plan_.n_payloads);
  scratch_.resize(plan_.n_scratch);
  lanes_.resize(plan_.n_lanes);
  waiting_.assign(static_cast<std::size_t>(context_.n_members()), 0);

  for (std::size_t i = 0; i < n_steps; ++i) {
    n_blockers_[i] = static_cast<std::uint32_t>(plan_.after(i).size());
    for (const std::uint32_t before : plan_.after(i))
      ++dependents_begin_[before + 1];
  }
  for (std::size_t i = 0; i < n_steps; ++i)
    dependents_begin_[i + 1] += dependents_begin_[i];
  dependents_.resize(dependents_begin_[n_steps]);
  std::vector<std::size_t> next(dependents_begin_.begin(), dependents_begin_.end() - 1);
  for (std::size_t i = 0; i < n_steps; ++i) {
    for (const std::uint32_t before : plan_.after(i)) {
      dependents_[next[before]++] = static_cast<std::uint32_t>(i);
    }
  }

  for (std::size_t i = 0; i < n_steps; ++i) {
    const Step& step = plan_.steps[i];
    const bool reads_payload = step.action == Action::send || step.action == Action::decode ||
                               (step.action == Action::accumulate && !step.from_input);
    if (reads_payload) ++payloads_[step.payload].uses_left;
    const bool uses_sum =
        step.action == Action::store || (step.action == Action::encode && !step.from_input);
    if (uses_sum) ++scratch_[step.scratch].uses_left;
    if (step.lane != kNone) lanes_[step.lane].queue.push_back(static_cast<std::uint32_t>(i));
  }
  set_windows();

  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane)
    admit(lane);
  for (std::uint32_t i = 0; i < n_steps; ++i) {
    if (plan_.steps[i].lane == kNone && n_blockers_[i] == 0) make_ready(i);
  }
}

/// How many frames of a lane, and how many sums, may be alive: as many as there is memory for, and
/// no fewer than keep the lane busy. Two do; but frames have room for all that codecs may choose,
/// and most of it stays empty: what is in two of those is on the wire in no time.
void Execution::set_windows() {
  std::size_t n_used = 0, n_of_sums = 0;
  const auto has_sums = [this](const Lane& lane) {
    return plan_.steps[lane.queue.front()].action == Action::accumulate;
  };
  for (const Lane& lane : lanes_) {
    if (lane.queue.empty()) continue;
    ++n_used;
    if (has_sums(lane)) ++n_of_sums;
  }
  const auto window = [](std::size_t least, std::size_t memory, std::size_t n_bytes) {
    return std::max(least, memory / std::max<std::size_t>(1, n_bytes));
  };
  const std::size_t of_frames =
      window(spec_.encodes_whole() ? 4 : 2, context_.window_bytes, n_used * frame_capacity());
  const std::size_t of_sums =
      window(2, kSumMemory, n_of_sums * spec_.segment_elems * sizeof(float));
  for (Lane& lane : lanes_) {
    if (lane.queue.empty()) continue;
    lane.window = has_sums(lane) ? std::min(of_frames, of_sums) : of_frames;
  }
}

/// Lets the next steps of a lane in, in order, as long as the window has room.
void Execution::admit(std::uint32_t index) {
  Lane& lane = lanes_[index];
  while (!lane.queue.empty() && lane.n_alive < lane.window &&
         n_blockers_[lane.queue.front()] == 0) {
    const std::uint32_t step = lane.queue.front();
    lane.queue.pop_front();
    ++lane.n_alive;
    make_ready(step);
  }
}

void Execution::make_ready(std::uint32_t index) {
  if (is_transfer(plan_.steps[index].action)) {
    ready_transfers_.push_back(index);
  } else {
    ready_compute_.push(index);
  }
}

void Execution::complete(std::uint32_t index) {
  --n_left_;
  for (std::size_t k = dependents_begin_[index]; k < dependents_begin_[index + 1]; ++k) {
    const std::uint32_t dependent = dependents_[k];
    if (--n_blockers_[dependent] > 0) continue;
    const std::uint32_t lane = plan_.steps[dependent].lane;
    if (lane == kNone) {
      make_ready(dependent);
    } else {
      admit(lane);
    }
  }
}

void Execution::release_payload(std::uint32_t index) {
  Payload& payload = payloads_[index];
  if (--payload.uses_left > 0) return;
  payload.frame.reset();
  payload.plain.reset();
  payload.copy.reset();
  --lanes_[payload.lane].n_alive;
  admit(payload.lane);
}

void Execution::release_scratch(std::uint32_t index) {
  Scratch& scratch = scratch_[index];
  if (--scratch.uses_left > 0) return;
  scratch.buffer.reset();
  if (scratch.lane == kNone) return;
  --lanes_[scratch.lane].n_alive;
  admit(scratch.lane);
}

// --- transfers ---------------------------------------------------------------------------------

std::optional<Execution::Transfer> Execution::next_transfer() {
  if (ready_transfers_.empty()) return std::nullopt;
  const std::uint32_t index = ready_transfers_.front();
  ready_transfers_.pop_front();
  const Step& step = plan_.steps[index];
  Payload& payload = payloads_[step.payload];
  if (step.action == Action::send) {
    return Transfer{index,     true,          step.member,
                    step.slot, payload.frame, payload.n_frame_bytes(*context_.sealer)};
  }
  payload.frame = stage_->frames().take(frame_capacity());
  payload.lane = step.lane;
  ++waiting_[step.member];
  return retry(index);
}

Execution::Transfer Execution::retry(std::uint32_t index) const {
  const Step& step = plan_.steps[index];
  return {index, false, step.member, step.slot, payloads_[step.payload].frame, 0};
}

void Execution::sent(std::uint32_t index, Counters& counters) {
  const Step& step = plan_.steps[index];
  const Payload& payload = payloads_[step.payload];
  const std::size_t n_bytes = payload.n_frame_bytes(*context_.sealer);
  ++counters.frames;
  counters.payload_bytes += payload.header.payload_bytes;
  counters.frame_bytes += n_bytes;
  counters.sent_to[step.member] += n_bytes;
  complete(index);
  release_payload(step.payload);
}

bool Execution::received(std::uint32_t index, std::size_t n_bytes) {
  const Step& step = plan_.steps[index];
  Payload& payload = payloads_[step.payload];
  const std::span<std::byte> frame = payload.frame->bytes().first(n_bytes);
  payload.header = parse_header(frame);
  const FrameHeader& header = payload.header;
  if (header.epoch < context_.epoch) return false;
  check_identity(header, step);
  const std::size_t around = kHeaderBytes + context_.sealer->overhead_bytes();
  if (n_bytes < around || header.payload_bytes != n_bytes - around) {
    fail(ErrorKind::corrupt_frame, "frame of " + std::to_string(n_bytes) + " bytes claims " +
                                       std::to_string(header.payload_bytes) + " of payload");
  }
  open(payload, frame);
  --waiting_[step.member];
  complete(index);
  return true;
}

void Execution::check_identity(const FrameHeader& header, const Step& step) const {
  const FrameHeader here = expected_header();
  if (header.session != here.session || header.epoch != here.epoch ||
      header.sealer != here.sealer || header.kind != here.kind) {
    fail(ErrorKind::corrupt_frame, "frame of another session, epoch or kind");
  }
  if (!same_call(header, here)) {
    fail(ErrorKind::invalid_argument,
         "members disagree: " +
             differences(header, here, context_.labels[static_cast<std::size_t>(context_.member)]));
  }
  const bool addressed = header.destination == kEveryone || header.destination == context_.member;
  if (!addressed || header.source != step.origin || header.phase != step.phase ||
      header.chunk != step.chunk || header.segment != step.segment) {
    fail(ErrorKind::corrupt_frame, "frame is not the one that was due");
  }
  if (!std::isfinite(static_cast<float>(header.weight)) || header.weight < 0) {
    fail(ErrorKind::corrupt_frame, "frame has the weight " + std::to_string(header.weight));
  }
}

FrameHeader Execution::expected_header() const {
  FrameHeader header;
  header.operation = spec_.operation;
  header.algorithm = spec_.algorithm;
  header.reduce = spec_.reduce;
  header.sealer = context_.sealer->id();
  header.session = context_.session;
  header.epoch = context_.epoch;
  header.source = static_cast<std::uint16_t>(context_.member);
  header.round = spec_.round;
  header.bucket = spec_.bucket;
  header.sequence = sequence_;
  header.codec = spec_.codec ? spec_.codec->id() : 0;
  header.n_elems = spec_.input.n_elems;
  header.dtype = static_cast<std::uint8_t>(spec_.output.dtype);
  return header;
}

int Execution::waiting_for(const std::vector<Clock::time_point>& last_heard) const {
  int silent = -1;
  for (std::size_t member = 0; member < waiting_.size(); ++member) {
    if (waiting_[member] == 0) continue;
    if (silent < 0 || last_heard[member] < last_heard[static_cast<std::size_t>(silent)]) {
      silent = static_cast<int>(member);
    }
  }
  return silent;
}

std::string Execution::where() const {
  return "in " + std::string(name_of(spec_.operation)) + " " + std::to_string(sequence_) +
         ", round " + std::to_string(spec_.round) + ", bucket " + std::to_string(spec_.bucket);
}

}  // namespace fedcomm
