// The steps of an execution that compute: encode, accumulate, finish, decode, store.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "collective/execution.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

void Execution::compute(Counters& counters) {
  const std::uint32_t index = ready_compute_.top();
  ready_compute_.pop();
  const Step& step = plan_.steps[index];
  const auto start = Clock::now();
  switch (step.action) {
    case Action::encode: encode(step); break;
    case Action::accumulate: accumulate(step); break;
    case Action::finish: finish(step); break;
    case Action::decode: decode(step); break;
    case Action::store: store(scratch_floats(step), step.range.begin); break;
    case Action::send:
    case Action::receive: expect(false, "a transfer among the steps that compute");
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
    case Action::decode: release_payload(step.payload); break;
    case Action::finish:
    case Action::send:
    case Action::receive: break;
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
    const bool whole = step.from_input && encodes_whole();
    try {
      payload.header.payload_bytes =
          whole ? encode_piece(step.range, room)
                : spec_.codec->encode(x, encode_options(step, step.range.begin), room);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::non_finite) throw;
      const std::int64_t first = whole ? 0 : static_cast<std::int64_t>(step.range.begin);
      const auto element = first + error.detail();
      fail(ErrorKind::non_finite,
           std::string(error.what()) +
               (step.from_input ? " at element " : " in the sum, element ") +
               std::to_string(element),
           element);
    }
  }
  seal(payload);
}

/// Whether the codec chooses from the whole input, and is asked for all of it: a member that
/// reduces a part of the bucket by itself adds its own part as it is.
bool Execution::encodes_whole() const {
  return spec_.codec->chooses_from_whole() && spec_.algorithm == Algorithm::all_gather;
}

std::size_t Execution::encode_piece(Range range, std::span<std::byte> room) {
  if (!whole_) {
    const Step all{.residual = Residual::sender, .range = {0, spec_.input.n_elems}};
    const auto x = floats_of_input(all.range, whole_input_);
    whole_ = spec_.codec->begin(x, encode_options(all, 0));
  }
  return whole_->encode(range.begin, range.end, room);
}

EncodeOptions Execution::encode_options(const Step& step, std::size_t first) const {
  EncodeOptions options{.feedback = feedback_of(step), .draw = {}, .policy = spec_.policy};
  options.draw = {.seed = static_cast<std::uint64_t>(context_.member),
                  .round = static_cast<std::uint32_t>(spec_.round),
                  .bucket = spec_.bucket,
                  .hop = static_cast<std::uint8_t>(step.from_input ? 0 : 1),
                  .first = first};
  return options;
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
  const std::size_t n_elems = std::max(context_.segment_elems, range.size());
  keep = context_.pool->take(n_elems * sizeof(float));
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

std::size_t Execution::payload_bytes_of(std::size_t n_elems) const {
  return spec_.codec ? spec_.codec->segment_bytes(n_elems, spec_.input.n_elems) : n_elems;
}

/// Room for any frame of this group, so that one of a differing call can be read and named.
std::size_t Execution::frame_capacity() const {
  const std::size_t plain = context_.segment_elems * sizeof(float);
  const std::size_t coded = spec_.codec ? payload_bytes_of(context_.segment_elems) : 0;
  return kHeaderBytes + std::max(plain, coded) + context_.sealer->overhead_bytes();
}

}  // namespace fedcomm
