#include "collective/execution.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool is_transfer(Action action) {
  return action == Action::send || action == Action::receive;
}

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::all_reduce:
      return "all_reduce";
    case Operation::all_gather:
      return "all_gather";
    case Operation::broadcast:
      return "broadcast";
  }
  return "?";
}

const char* name_of(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::direct:
      return "direct";
    case Algorithm::ring:
      return "ring";
    case Algorithm::all_gather:
      return "all_gather";
  }
  return "?";
}

const char* dtype_text(std::uint8_t dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::u8:
      return "bytes";
  }
  return "?";
}

std::string codec_text(std::uint32_t id) {
  if (id == 0) return "plain bytes";
  for (const std::string& name : codec_names()) {
    if (make_codec(name)->id() == id) return name;
  }
  return "unknown codec " + std::to_string(id);
}

/// What two members' calls differ in: "it has codec bf16, rank 0 has codec int8".
std::string differences(const FrameHeader& there, const FrameHeader& here, const std::string& me) {
  std::string theirs, ours;
  const auto compare = [&](const std::string& a, const std::string& b) {
    if (a == b) return;
    theirs += (theirs.empty() ? "" : ", ") + a;
    ours += (ours.empty() ? "" : ", ") + b;
  };
  const auto number = [](const char* name, std::uint64_t value) {
    return std::string(name) + " " + std::to_string(value);
  };
  const auto size = [](const FrameHeader& h) {
    return std::to_string(h.n_elems) + (h.codec == 0 ? " bytes" : " elements");
  };
  const auto reduction = [](const FrameHeader& h) {
    return std::string("op ") + (h.reduce == ReduceOp::mean ? "mean" : "sum");
  };
  compare(name_of(there.operation), name_of(here.operation));
  compare(size(there), size(here));
  compare("codec " + codec_text(there.codec), "codec " + codec_text(here.codec));
  compare(reduction(there), reduction(here));
  compare(std::string("dtype ") + dtype_text(there.dtype),
          std::string("dtype ") + dtype_text(here.dtype));
  compare(std::string("algorithm ") + name_of(there.algorithm),
          std::string("algorithm ") + name_of(here.algorithm));
  compare(number("round", there.round), number("round", here.round));
  compare(number("bucket", there.bucket), number("bucket", here.bucket));
  compare(number("operation", there.sequence), number("operation", here.sequence));
  return "it has " + theirs + ", " + me + " has " + ours;
}

}  // namespace

Execution::Execution(const GroupContext& context, OperationSpec spec, Plan plan,
                     std::uint32_t sequence, std::shared_ptr<Work> work)
    : context_(context),
      spec_(std::move(spec)),
      plan_(std::move(plan)),
      sequence_(sequence),
      work_(std::move(work)) {
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
  admitted_.assign(n_steps, false);
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
    if (step.lane != kNone) lanes_[step.lane].queue.push_back(static_cast<std::uint32_t>(i));
  }
  const auto n_used = static_cast<std::size_t>(std::count_if(
      lanes_.begin(), lanes_.end(), [](const Lane& lane) { return !lane.queue.empty(); }));
  const std::size_t all_lanes_once = std::max<std::size_t>(1, n_used * frame_capacity());
  window_ = std::max<std::size_t>(2, context_.window_bytes / all_lanes_once);

  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane)
    admit(lane);
  for (std::uint32_t i = 0; i < n_steps; ++i) {
    if (plan_.steps[i].lane == kNone && n_blockers_[i] == 0) make_ready(i);
  }
}

/// Lets the next steps of a lane in, in order, as long as the window has room.
void Execution::admit(std::uint32_t index) {
  Lane& lane = lanes_[index];
  while (!lane.queue.empty() && lane.n_alive < window_ && n_blockers_[lane.queue.front()] == 0) {
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
  --lanes_[payload.lane].n_alive;
  admit(payload.lane);
}

void Execution::release_scratch(std::uint32_t index) {
  Scratch& scratch = scratch_[index];
  scratch.buffer.reset();
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
  payload.frame = context_.pool->take(frame_capacity());
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
  const bool same_call = header.operation == here.operation && header.codec == here.codec &&
                         header.n_elems == here.n_elems && header.reduce == here.reduce &&
                         header.algorithm == here.algorithm && header.round == here.round &&
                         header.bucket == here.bucket && header.sequence == here.sequence &&
                         header.dtype == here.dtype;
  if (!same_call) {
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

// --- computing ---------------------------------------------------------------------------------

void Execution::compute(Counters& counters) {
  const std::uint32_t index = ready_compute_.top();
  ready_compute_.pop();
  const Step& step = plan_.steps[index];
  const auto start = Clock::now();
  switch (step.action) {
    case Action::encode:
      encode(step);
      break;
    case Action::accumulate:
      accumulate(step);
      break;
    case Action::finish:
      finish(step);
      break;
    case Action::decode:
      decode(step);
      break;
    case Action::store:
      store(scratch_floats(step), step.range.begin);
      break;
    case Action::send:
    case Action::receive:
      expect(false, "a transfer among the steps that compute");
  }
  (step.action == Action::encode ? counters.encode_s : counters.decode_s) += seconds_since(start);
  complete(index);
  switch (step.action) {
    case Action::encode:
    case Action::store:
      if (!step.from_input) release_scratch(step.scratch);
      break;
    case Action::accumulate:
      if (!step.from_input) release_payload(step.payload);
      break;
    case Action::decode:
      release_payload(step.payload);
      break;
    case Action::finish:
    case Action::send:
    case Action::receive:
      break;
  }
}

void Execution::encode(const Step& step) {
  Payload& payload = payloads_[step.payload];
  payload.lane = step.lane;
  payload.header = expected_header();
  payload.header.destination = step.member;
  payload.header.phase = step.phase;
  payload.header.chunk = step.chunk;
  payload.header.segment = step.segment;
  const std::size_t capacity = payload_bytes_of(step.range.size());
  payload.frame = context_.pool->take(kHeaderBytes + capacity + context_.sealer->overhead_bytes());
  const auto room = payload.frame->bytes().subspan(kHeaderBytes, capacity);
  if (!spec_.codec) {
    if (capacity > 0) std::memcpy(room.data(), spec_.input.bytes() + step.range.begin, capacity);
    payload.header.payload_bytes = capacity;
  } else {
    BufferPtr keep;
    const std::span<const float> x =
        step.from_input ? floats_of_input(step.range, keep) : scratch_floats(step);
    payload.header.weight = step.from_input ? spec_.weight : scratch_[step.scratch].weight;
    try {
      payload.header.payload_bytes = spec_.codec->encode(x, feedback_of(step), room, spec_.policy);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::non_finite) throw;
      const auto element = static_cast<std::int64_t>(step.range.begin) + error.detail();
      fail(ErrorKind::non_finite,
           std::string(error.what()) +
               (step.from_input ? " at element " : " in the sum, element ") +
               std::to_string(element),
           element);
    }
  }
  seal(payload);
}

/// Payload to frame: mask, header, seal. The plain payload stays readable, since a member decodes
/// what it has encoded.
void Execution::seal(Payload& payload) {
  const std::span<std::byte> frame =
      payload.frame->bytes().first(payload.n_frame_bytes(*context_.sealer));
  if (plain_apart()) {
    payload.plain = context_.pool->take(payload.frame->size());
    std::memcpy(payload.plain->data(), payload.wire_bytes().data(), payload.header.payload_bytes);
  }
  if (context_.mask) context_.mask->outgoing(payload.header, payload.wire_bytes());
  write_header(payload.header, frame);
  context_.sealer->seal(frame);
}

/// Frame to payload. The frame stays as it came, since a ring forwards it.
void Execution::open(Payload& payload, std::span<const std::byte> frame) {
  if (plain_apart()) payload.plain = context_.pool->take(payload.frame->size());
  context_.sealer->open(frame, payload.bytes());
  if (context_.mask) context_.mask->incoming(payload.header, payload.bytes());
}

bool Execution::plain_apart() const {
  return context_.mask != nullptr || context_.sealer->changes_payload();
}

void Execution::accumulate(const Step& step) {
  Scratch& scratch = scratch_[step.scratch];
  if (step.first) {
    scratch.buffer = context_.pool->take(context_.segment_elems * sizeof(float));
    scratch.lane = step.lane;
    scratch.weight = 0;
  }
  const std::span<float> sum = scratch_floats(step);
  if (step.from_input) {
    BufferPtr keep;
    const std::span<const float> x = floats_of_input(step.range, keep);
    const auto weight = static_cast<float>(spec_.weight);
    scratch.weight += spec_.weight;
    if (step.first) {
      for (std::size_t i = 0; i < x.size(); ++i)
        sum[i] = weight * x[i];
    } else {
      for (std::size_t i = 0; i < x.size(); ++i)
        sum[i] += weight * x[i];
    }
    return;
  }
  const Payload& payload = payloads_[step.payload];
  scratch.weight += payload.header.weight;
  const float weight = step.already_weighted ? 1.0f : static_cast<float>(payload.header.weight);
  if (step.first) std::fill(sum.begin(), sum.end(), 0.0f);
  spec_.codec->decode_add(payload.bytes(), weight, sum);
}

void Execution::finish(const Step& step) {
  if (spec_.reduce == ReduceOp::sum) return;
  const double total = scratch_[step.scratch].weight;
  if (!(total > 0)) {
    fail(ErrorKind::invalid_argument, "the weights of all members add up to " +
                                          std::to_string(total) +
                                          "; a mean needs at least one that is positive");
  }
  const auto divisor = static_cast<float>(total);
  if (!(divisor > 0) || !std::isfinite(divisor)) {
    fail(ErrorKind::invalid_argument, "the weights of all members add up to " +
                                          std::to_string(total) + ", which float32 cannot hold");
  }
  for (float& x : scratch_floats(step))
    x /= divisor;
}

void Execution::decode(const Step& step) {
  const Payload& payload = payloads_[step.payload];
  if (!spec_.codec) {
    if (payload.header.payload_bytes != step.range.size()) {
      fail(ErrorKind::corrupt_frame, "frame has " + std::to_string(payload.header.payload_bytes) +
                                         " bytes where " + std::to_string(step.range.size()) +
                                         " were due");
    }
    if (step.range.size() > 0) {
      std::memcpy(spec_.output.bytes() + step.range.begin, payload.bytes().data(),
                  step.range.size());
    }
    return;
  }
  if (spec_.output.dtype == DType::f32) {
    auto* out = reinterpret_cast<float*>(spec_.output.data) + step.range.begin;
    spec_.codec->decode(payload.bytes(), {out, step.range.size()});
    return;
  }
  const BufferPtr buffer = context_.pool->take(context_.segment_elems * sizeof(float));
  const std::span<float> values(reinterpret_cast<float*>(buffer->data()), step.range.size());
  spec_.codec->decode(payload.bytes(), values);
  store(values, step.range.begin);
}

/// To the output, which may not be able to hold what an encoder could.
void Execution::store(std::span<const float> values, std::size_t begin) {
  if (spec_.policy == NonFinitePolicy::error) {
    const std::size_t bad = first_beyond(values, overflow_bits(spec_.output.dtype));
    if (bad < values.size()) {
      const std::size_t element = begin + bad;
      fail(ErrorKind::non_finite,
           "NaN or infinity in the result, element " + std::to_string(element),
           static_cast<std::int64_t>(element));
    }
  }
  store_floats(values, spec_.output, begin);
}

/// The input as float32: in place where it is, else converted into `keep`.
std::span<const float> Execution::floats_of_input(Range range, BufferPtr& keep) {
  if (spec_.input.dtype == DType::f32) {
    return {reinterpret_cast<const float*>(spec_.input.data) + range.begin, range.size()};
  }
  keep = context_.pool->take(context_.segment_elems * sizeof(float));
  const std::span<float> values(reinterpret_cast<float*>(keep->data()), range.size());
  load_floats(spec_.input, range.begin, values);
  return values;
}

std::span<float> Execution::scratch_floats(const Step& step) {
  return {reinterpret_cast<float*>(scratch_[step.scratch].buffer->data()), step.range.size()};
}

Feedback Execution::feedback_of(const Step& step) const {
  const auto part = [](const Feedback& all, std::size_t begin, std::size_t n) -> Feedback {
    if (all.after.empty()) return {};
    return {all.before.subspan(begin, n), all.after.subspan(begin, n)};
  };
  switch (step.residual) {
    case Residual::none:
      return {};
    case Residual::sender:
      return part(spec_.residuals.sender, step.range.begin, step.range.size());
    case Residual::owner: {
      const Range owned =
          owned_range(spec_.algorithm, spec_.input.n_elems, context_.n_members(), context_.member);
      return part(spec_.residuals.owner, step.range.begin - owned.begin, step.range.size());
    }
  }
  return {};
}

std::size_t Execution::payload_bytes_of(std::size_t n_elems) const {
  return spec_.codec ? spec_.codec->wire_bytes(n_elems) : n_elems;
}

/// Room for any frame of this group, so that one of a differing call can be read and named.
std::size_t Execution::frame_capacity() const {
  const std::size_t plain = context_.segment_elems * sizeof(float);
  const std::size_t coded = spec_.codec ? spec_.codec->wire_bytes(context_.segment_elems) : 0;
  return kHeaderBytes + std::max(plain, coded) + context_.sealer->overhead_bytes();
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
