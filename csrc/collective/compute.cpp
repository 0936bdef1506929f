// The steps of an execution that compute: what is around the numbers, which are the stage's.
#include <cmath>
#include <cstring>

#include "collective/execution.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

/// Adds the time of its life to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  Clock::time_point start_ = Clock::now();
};

double& seconds_of(const Step& step, Counters& counters) {
  return step.action == Action::encode ? counters.encode_s : counters.decode_s;
}

}  // namespace

bool Execution::encodes_choice(const Step& step) const {
  return step.action == Action::encode && step.from_input && spec_.encodes_whole();
}

bool Execution::is_to_choose() const {
  return !chooses_ && !has_chosen_ && encodes_choice(plan_.steps[ready_compute_.top()]);
}

void Execution::compute(Counters& counters) {
  const std::uint32_t index = ready_compute_.top();
  ready_compute_.pop();
  const Step& step = plan_.steps[index];
  if (step.action == Action::finish && spec_.reduce == ReduceOp::sum) return complete(index);
  {
    const Stopwatch watch(seconds_of(step, counters));
    begun_.push_back(index);
    if (encodes_choice(step)) chooses_ = !has_chosen_;
    try {
      begin(step);
    } catch (const Error& error) {
      raise(error, step);
    }
    // The stage sees at once what this step writes; a frame that is to be sent must be there.
    if (step.action != Action::encode) complete(index);
  }
  settle(counters);
}

void Execution::begin(const Step& step) {
  switch (step.action) {
    case Action::encode: return begin_encoding(step);
    case Action::accumulate: return accumulate(step);
    case Action::finish: return stage_->divide(scratch_floats(step), divisor_of(step));
    case Action::decode: return decode(step);
    case Action::store: return stage_->store(scratch_floats(step), divisor_of(step), step.range);
    case Action::send:
    case Action::receive: expect(false, "a transfer among the steps that compute");
  }
}

bool Execution::settle(Counters& counters) {
  bool any = false;
  while (!begun_.empty()) {
    const std::uint32_t index = begun_.front();
    const Step& step = plan_.steps[index];
    const Stopwatch watch(seconds_of(step, counters));
    std::optional<std::size_t> n_bytes;
    try {
      n_bytes = stage_->ended();
    } catch (const Error& error) {
      raise(error, step);
    }
    if (!n_bytes) break;
    begun_.pop_front();
    end(index, *n_bytes);
    any = true;
  }
  return any;
}

void Execution::end(std::uint32_t index, std::size_t n_bytes) {
  const Step& step = plan_.steps[index];
  switch (step.action) {
    case Action::encode: {
      Payload& payload = payloads_[step.payload];
      payload.header.payload_bytes = n_bytes;
      seal(payload);
      complete(index);
      if (encodes_choice(step)) {
        chooses_ = false;
        has_chosen_ = true;
      }
      if (!step.from_input) release_scratch(step.scratch);
      break;
    }
    case Action::store: release_scratch(step.scratch); break;
    case Action::accumulate:
      if (!step.from_input) release_payload(step.payload);
      break;
    case Action::decode: release_payload(step.payload); break;
    case Action::finish:
    case Action::send:
    case Action::receive: break;
  }
}

/// With the place in the bucket of a value that the stage refuses.
void Execution::raise(const Error& error, const Step& step) const {
  if (error.kind() != ErrorKind::non_finite) throw error;
  const bool encodes = step.action == Action::encode;
  std::size_t first = step.range.begin;
  if (encodes && step.from_input && spec_.encodes_whole()) first = 0;
  if (encodes && !step.from_input && spec_.sums_whole()) first = step.sum.begin;
  const auto element = static_cast<std::int64_t>(first) + error.detail();
  const char* place = !encodes          ? ", element "
                      : step.from_input ? " at element "
                                        : " in the sum, element ";
  fail(ErrorKind::non_finite, error.what() + (place + std::to_string(element)), element);
}

void Execution::begin_encoding(const Step& step) {
  Payload& payload = payloads_[step.payload];
  payload.lane = step.lane;
  payload.header = expected_header();
  payload.header.destination = step.member;
  payload.header.phase = step.phase;
  payload.header.chunk = step.chunk;
  payload.header.segment = step.segment;
  const std::size_t capacity = spec_.payload_bytes(step.range.size());
  payload.frame =
      stage_->frames().take(kHeaderBytes + capacity + context_.sealer->overhead_bytes());
  EncodeTask task{.range = step.range,
                  .sum = {},
                  .whole = {},
                  .options = {},
                  .room = payload.frame->bytes().subspan(kHeaderBytes, capacity),
                  .copy = &payload.copy};
  if (spec_.codec) {
    payload.header.weight = step.from_input ? spec_.weight : scratch_[step.scratch].weight;
    if (!step.from_input) task.sum = scratch_floats(step);
    if (!step.from_input && spec_.sums_whole()) {
      task.whole = {whole_scratch(step), step.sum.begin, spec_.residuals.owner};
    }
    task.options = encode_options(step);
  }
  stage_->encode(task);
}

EncodeOptions Execution::encode_options(const Step& step) const {
  EncodeOptions options{.feedback = feedback_of(step), .draw = {}, .policy = spec_.policy};
  options.draw = {.seed = static_cast<std::uint64_t>(context_.member),
                  .round = static_cast<std::uint32_t>(spec_.round),
                  .bucket = spec_.bucket,
                  .hop = static_cast<std::uint8_t>(step.from_input ? 0 : 1),
                  .first = step.range.begin};
  return options;
}

/// Payload to frame: mask, header, seal. The plain payload stays readable, since a member decodes
/// what it has encoded.
void Execution::seal(Payload& payload) {
  const std::span<std::byte> frame =
      payload.frame->bytes().first(payload.n_frame_bytes(*context_.sealer));
  if (plain_apart()) {
    payload.plain = stage_->frames().take(payload.frame->size());
    std::memcpy(payload.plain->data(), payload.wire_bytes().data(), payload.header.payload_bytes);
  }
  if (context_.mask) context_.mask->outgoing(payload.header, payload.wire_bytes());
  write_header(payload.header, frame);
  context_.sealer->seal(frame);
}

/// Frame to payload. The frame stays as it came, since a ring forwards it.
void Execution::open(Payload& payload, std::span<const std::byte> frame) {
  if (plain_apart()) payload.plain = stage_->frames().take(payload.frame->size());
  context_.sealer->open(frame, payload.bytes());
  if (context_.mask) context_.mask->incoming(payload.header, payload.bytes());
}

bool Execution::plain_apart() const {
  return context_.mask != nullptr || context_.sealer->changes_payload();
}

void Execution::accumulate(const Step& step) {
  Scratch& scratch = scratch_[step.scratch];
  if (!scratch.buffer) {
    scratch.buffer = stage_->take_sum(step.sum.size());
    scratch.lane = step.lane;
  }
  // Of a sum of several segments, a member's weight counts once.
  const bool counts = step.range.begin == step.sum.begin;
  const std::span<float> sum = scratch_floats(step);
  if (step.from_input) {
    if (counts) scratch.weight += spec_.weight;
    return stage_->add_input(step.range, static_cast<float>(spec_.weight), sum, step.first);
  }
  Payload& payload = payloads_[step.payload];
  if (counts) scratch.weight += payload.header.weight;
  const float weight = step.already_weighted ? 1.0f : static_cast<float>(payload.header.weight);
  stage_->add_payload({payload.bytes(), &payload.copy}, weight, sum, step.first);
}

/// Of a mean the sum of weights.
float Execution::divisor_of(const Step& step) const {
  if (spec_.reduce == ReduceOp::sum) return 1.0f;
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
  return divisor;
}

void Execution::decode(const Step& step) {
  Payload& payload = payloads_[step.payload];
  if (!spec_.codec && payload.header.payload_bytes != step.range.size()) {
    fail(ErrorKind::corrupt_frame, "frame has " + std::to_string(payload.header.payload_bytes) +
                                       " bytes where " + std::to_string(step.range.size()) +
                                       " were due");
  }
  stage_->decode({payload.bytes(), &payload.copy}, step.range);
}

std::span<float> Execution::scratch_floats(const Step& step) {
  return whole_scratch(step).subspan(step.range.begin - step.sum.begin, step.range.size());
}

std::span<float> Execution::whole_scratch(const Step& step) {
  return {reinterpret_cast<float*>(scratch_[step.scratch].buffer->data()), step.sum.size()};
}

Feedback Execution::feedback_of(const Step& step) const {
  const auto part = [](const Feedback& all, std::size_t begin, std::size_t n) -> Feedback {
    if (all.after.empty()) return {};
    return {all.before.subspan(begin, n), all.after.subspan(begin, n)};
  };
  switch (step.residual) {
    case Residual::none: return {};
    case Residual::sender: return part(spec_.residuals.sender, step.range.begin, step.range.size());
    case Residual::owner: {
      const Range owned =
          owned_range(spec_.algorithm, spec_.input.n_elems, context_.n_members(), context_.member);
      return part(spec_.residuals.owner, step.range.begin - owned.begin, step.range.size());
    }
  }
  return {};
}

/// Room for any frame of this group, so that one of a differing call can be read and named.
std::size_t Execution::frame_capacity() const {
  const std::size_t plain = context_.segment_elems * sizeof(float);
  const std::size_t coded = spec_.codec ? spec_.payload_bytes(spec_.segment_elems) : 0;
  return kHeaderBytes + std::max(plain, coded) + context_.sealer->overhead_bytes();
}

}  // namespace fedcomm
