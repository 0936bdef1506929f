#include "collective/device_stage.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/device_tensor.h"

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

// Of the device, for each operation in flight: its sums and payloads. Pinned, for all of them:
// frames have room for all that a codec may choose. To allocate either waits for the device.
constexpr std::size_t kIdleBytes = 512u << 20;
constexpr std::size_t kIdlePinnedBytes = 1u << 30;
// Kernels end by themselves; but the caller's stream, which they come after, may hold anything.
constexpr auto kStopTime = std::chrono::seconds(10);
constexpr auto kStopSpin = std::chrono::microseconds(100);
constexpr auto kStopPoll = std::chrono::microseconds(20);
constexpr DeviceVerdict kAllWell{0, ~std::uint64_t{0}, 0, 0};

std::span<float> floats_in(const BufferPtr& buffer, std::size_t n) {
  return {reinterpret_cast<float*>(buffer->data()), n};
}

}  // namespace

DeviceSet::DeviceSet(int number, std::shared_ptr<BufferPool> pinned)
    : device(number),
      ends(kMostSteps),
      frames(std::move(pinned)),
      memory(std::make_shared<BufferPool>(kIdleBytes, cuda::device_memory())),
      verdicts(memory->take(kMostSteps * sizeof(DeviceVerdict))),
      verdicts_on_host(frames->take(kMostSteps * sizeof(DeviceVerdict))) {
  auto* fresh = reinterpret_cast<DeviceVerdict*>(verdicts_on_host->data());
  std::fill_n(fresh, kMostSteps, kAllWell);
  cuda::copy(verdicts->data(), verdicts_on_host->data(), verdicts->size(), compute);
}

std::unique_ptr<DeviceSet> DeviceSets::take(int device) {
  const std::lock_guard lock(mutex_);
  auto& idle = idle_[device];
  if (!idle.empty()) {
    auto set = std::move(idle.back());
    idle.pop_back();
    return set;
  }
  if (!frames_) frames_ = std::make_shared<BufferPool>(kIdlePinnedBytes, cuda::pinned_memory());
  return std::make_unique<DeviceSet>(device, frames_);
}

void DeviceSets::give_back(std::unique_ptr<DeviceSet> set) {
  const std::lock_guard lock(mutex_);
  idle_[set->device].push_back(std::move(set));
}

// --- an operation --------------------------------------------------------------------------------

DeviceStage::DeviceStage(const GroupContext& context, const OperationSpec& spec)
    : context_(context), spec_(spec) {
  const cuda::CurrentDevice device(spec_.input.device);
  set_ = context_.device_sets->take(spec_.input.device);
  cuda::Event ready;
  ready.record(spec_.input.stream);
  for (cuda::Stream* stream : {&set_->compute, &set_->in, &set_->out})
    stream->wait_for(ready);
  if (!spec_.codec) return;
  copy_bytes_ = spec_.payload_bytes(spec_.segment_elems);
  codec_ = &codec_on_device(*spec_.codec, "");
  codec_->reserve_encode(spec_.encodes_whole() ? spec_.input.n_elems : spec_.segment_elems);
  codec_->reserve_decode(spec_.segment_elems, spec_.input.n_elems);
}

/// Kept by name, and by what it is used for at the same time as others.
DeviceCodec& DeviceStage::codec_on_device(const Codec& codec, const char* what) {
  auto& kept = set_->codecs[what + codec.name()];
  if (!kept) kept = codec.on_device();
  return *kept;
}

DeviceStage::~DeviceStage() {
  if (!set_) return;
  const bool is_clean = steps_.empty();  // else there are flags, and memory in use
  try {
    stop();
    if (is_clean) context_.device_sets->give_back(std::move(set_));
  } catch (const std::exception&) {
    // The device has failed: what it may still write to must not be used for anything else.
    static_cast<void>(set_.release());
  }
}

void DeviceStage::stop() {
  const auto device = current();
  wait_until_idle();
}

void DeviceStage::wait_until_idle() {
  const auto start = Clock::now();
  for (const cuda::Stream* stream : {&set_->in, &set_->compute, &set_->out}) {
    cuda::Event end;
    end.record(stream->get());
    while (!end.is_over()) {
      const auto waited = Clock::now() - start;
      if (waited > kStopTime) {
        fail(ErrorKind::cuda, "[cuda] the device has not come to an end for 10 s");
      }
      if (waited > kStopSpin) std::this_thread::sleep_for(kStopPoll);
    }
  }
}

BufferPtr DeviceStage::take_sum(std::size_t n_elems) {
  const auto device = current();
  return set_->memory->take(std::max(spec_.segment_elems, n_elems) * sizeof(float));
}

DeviceStage::Step& DeviceStage::begin() {
  Step& step = steps_.emplace_back();
  step.slot = n_begun_++ % DeviceSet::kMostSteps;
  return step;
}

DeviceVerdict* DeviceStage::verdict_on_device(const Step& step) const {
  return reinterpret_cast<DeviceVerdict*>(set_->verdicts->data()) + step.slot;
}

const DeviceVerdict& DeviceStage::verdict(const Step& step) const {
  return reinterpret_cast<const DeviceVerdict*>(set_->verdicts_on_host->data())[step.slot];
}

/// After what the step has put into `stream`.
void DeviceStage::copy_verdict(Step& step, const cuda::Stream& stream) {
  const std::size_t at = step.slot * sizeof(DeviceVerdict);
  cuda::copy(set_->verdicts_on_host->data() + at, set_->verdicts->data() + at,
             sizeof(DeviceVerdict), stream);
  step.has_verdict = true;
}

/// In the stream that computes, which stops for it for some microseconds: another stream would have
/// to be told to wait, and telling a GPU takes as long.
void DeviceStage::end_with_verdict(Step& step) {
  copy_verdict(step, set_->compute);
  end_of(step).record(set_->compute.get());
  step.has_end = true;
}

std::span<float> DeviceStage::take_floats(std::size_t n, Step& step) {
  step.keep.push_back(take_sum(n));
  return floats_in(step.keep.back(), n);
}

std::span<const float> DeviceStage::floats_of_input(Range range, Step& step) {
  if (spec_.input.dtype == DType::f32) {
    return {reinterpret_cast<const float*>(spec_.input.data) + range.begin, range.size()};
  }
  const auto values = take_floats(range.size(), step);
  cuda::load_floats(spec_.input, range.begin, values, set_->compute.get());
  return values;
}

// --- steps -------------------------------------------------------------------------------------

void DeviceStage::encode(const EncodeTask& task) {
  const auto device = current();
  Step& step = begin();
  if (spec_.codec) {
    step.encoded = task;
    step.n_bytes = start_encoding(task, step);
    if (!step.n_bytes) return end_with_verdict(step);
    set_->computed.record(set_->compute.get());
    set_->out.wait_for(set_->computed);
    copy_verdict(step, set_->out);
    cuda::copy(task.room.data(), (*task.copy)->data(), *step.n_bytes, set_->out);
  } else {
    step.n_bytes = task.range.size();
    cuda::copy(task.room.data(), spec_.input.bytes() + task.range.begin, *step.n_bytes, set_->out);
  }
  end_of(step).record(set_->out.get());
  step.has_end = true;
}

std::optional<std::size_t> DeviceStage::start_encoding(const EncodeTask& task, Step& step) {
  void* stream = set_->compute.get();
  *task.copy = set_->memory->take(copy_bytes_);
  DeviceVerdict* verdict = verdict_on_device(step);
  const DeviceOutput output{(*task.copy)->bytes().first(task.room.size()), &verdict->n_bytes,
                            &verdict->non_finite};
  if (task.whole) return encode_piece_of_sum(task, output);
  if (task.sum.data() != nullptr || !spec_.encodes_whole()) {
    const auto x = task.sum.data() == nullptr ? floats_of_input(task.range, step) : task.sum;
    return codec_->encode(x, task.options, output, stream);
  }
  if (!whole_begun_) {
    const std::size_t n = spec_.input.n_elems;
    std::span<const float> x(reinterpret_cast<const float*>(spec_.input.data), n);
    if (spec_.input.dtype != DType::f32) {
      whole_input_ = set_->memory->take(n * sizeof(float));
      cuda::load_floats(spec_.input, 0, floats_in(whole_input_, n), stream);
      x = floats_in(whole_input_, n);
    }
    EncodeOptions options = task.options;
    options.feedback = spec_.residuals.sender;
    options.draw.first = 0;
    codec_->begin(x, options, output.non_finite, stream);
    whole_begun_ = true;
  }
  return codec_->encode_piece(task.range.begin, task.range.end, output, stream);
}

std::optional<std::size_t> DeviceStage::encode_piece_of_sum(const EncodeTask& task,
                                                            const DeviceOutput& out) {
  const WholeSum& sum = *task.whole;
  void* stream = set_->compute.get();
  if (sum_codec_ == nullptr) {
    const auto codec = spec_.codec->for_part(sum.values.size(), spec_.input.n_elems);
    sum_codec_ = &codec_on_device(*codec, "sum: ");
    EncodeOptions options = task.options;
    options.feedback = sum.feedback;
    options.draw.first = sum.begin;
    sum_codec_->begin(sum.values, options, out.non_finite, stream);
  }
  return sum_codec_->encode_piece(task.range.begin - sum.begin, task.range.end - sum.begin, out,
                                  stream);
}

void DeviceStage::add_input(Range range, float weight, std::span<float> sum, bool first) {
  const auto device = current();
  begin();
  cuda::accumulate(spec_.input, range.begin, weight, sum,
                   first ? cuda::Sum::start : cuda::Sum::go_on, set_->compute.get());
}

/// The payload's copy on the device, made by the first step that needs it.
DevicePayload DeviceStage::upload(const StagedPayload& payload) {
  if (!*payload.copy) {
    // A peer may send more than any encoder would: the codec will say so.
    *payload.copy = set_->memory->take(std::max(copy_bytes_, payload.bytes.size()));
    cuda::copy((*payload.copy)->data(), payload.bytes.data(), payload.bytes.size(), set_->in);
    set_->copied_in.record(set_->in.get());
    set_->compute.wait_for(set_->copied_in);
  }
  const std::size_t n_head = std::min(DevicePayload::kHeadBytes, payload.bytes.size());
  return {(*payload.copy)->bytes().first(payload.bytes.size()), payload.bytes.first(n_head)};
}

void DeviceStage::add_payload(const StagedPayload& payload, float weight, std::span<float> sum,
                              bool first) {
  const auto device = current();
  Step& step = begin();
  step.decoded = payload;
  step.range = {0, sum.size()};
  if (first) cuda::fill_zero(sum, set_->compute.get());
  codec_->decode_add(upload(payload), weight, sum, &verdict_on_device(step)->corrupt,
                     set_->compute.get());
  end_with_verdict(step);
}

void DeviceStage::divide(std::span<float> sum, float divisor) {
  const auto device = current();
  begin();
  cuda::divide(sum, divisor, set_->compute.get());
}

void DeviceStage::decode(const StagedPayload& payload, Range range) {
  const auto device = current();
  Step& step = begin();
  if (!spec_.codec) {
    cuda::copy(spec_.output.bytes() + range.begin, payload.bytes.data(), range.size(), set_->in);
    end_of(step).record(set_->in.get());
    step.has_end = true;
    return;
  }
  step.decoded = payload;
  step.range = range;
  DeviceVerdict* verdict = verdict_on_device(step);
  const DevicePayload on_device = upload(payload);
  void* stream = set_->compute.get();
  if (spec_.output.dtype == DType::f32) {
    auto* out = reinterpret_cast<float*>(spec_.output.data) + range.begin;
    codec_->decode(on_device, {out, range.size()}, &verdict->corrupt, stream);
  } else {
    const auto values = take_floats(range.size(), step);
    codec_->decode(on_device, values, &verdict->corrupt, stream);
    cuda::store_floats(values, 1.0f, spec_.output, range.begin, &verdict->lowest, stream);
  }
  end_with_verdict(step);
}

void DeviceStage::store(std::span<float> sum, float divisor, Range range) {
  const auto device = current();
  Step& step = begin();
  step.range = range;
  cuda::store_floats(sum, divisor, spec_.output, range.begin, &verdict_on_device(step)->lowest,
                     set_->compute.get());
  end_with_verdict(step);
}

// --- their ends ----------------------------------------------------------------------------------

std::optional<std::size_t> DeviceStage::ended() {
  if (steps_.empty()) return std::nullopt;
  const auto device = current();
  copy_sized_payloads();
  Step& oldest = steps_.front();
  if (oldest.has_end) {
    if (!oldest.n_bytes || !end_of(oldest).is_over()) return std::nullopt;
    judge(oldest);
  }
  const std::size_t n_bytes = *oldest.n_bytes;
  steps_.pop_front();
  return n_bytes;
}

/// The sizes that have come: now that many bytes can be copied.
void DeviceStage::copy_sized_payloads() {
  for (Step& step : steps_) {
    if (step.n_bytes || !end_of(step).is_over()) continue;
    const std::size_t n_bytes = verdict(step).n_bytes;
    expect(n_bytes <= step.encoded->room.size(), "size of a payload from the device");
    step.n_bytes = n_bytes;
    cuda::copy(step.encoded->room.data(), (*step.encoded->copy)->data(), n_bytes, set_->out);
    end_of(step).record(set_->out.get());
  }
}

void DeviceStage::judge(const Step& step) {
  const DeviceVerdict told = verdict(step);
  const bool well = told.corrupt == 0 && told.non_finite == 0 && told.lowest == kAllWell.lowest;
  if (!step.has_verdict || well) return;
  // For the next step with this slot.
  auto* slot = reinterpret_cast<DeviceVerdict*>(set_->verdicts_on_host->data()) + step.slot;
  *slot = kAllWell;
  cuda::copy(reinterpret_cast<std::byte*>(verdict_on_device(step)),
             reinterpret_cast<const std::byte*>(slot), sizeof *slot, set_->compute);
  if (told.corrupt != 0) {
    std::vector<float> values(step.range.size());
    spec_.codec->decode(step.decoded.bytes, values);  // says what is wrong
    fail(ErrorKind::corrupt_frame, "payload that makes no sense on the device");
  }
  if (spec_.policy != NonFinitePolicy::error) return;
  if (told.non_finite != 0) name_non_finite(*step.encoded);
  if (told.lowest != kAllWell.lowest) {
    fail(ErrorKind::non_finite, "NaN or infinity in the result",
         static_cast<std::int64_t>(told.lowest - step.range.begin));
  }
}

/// The GPU has seen a value that may be wrong: the codec on the CPU says which, or that none is.
void DeviceStage::name_non_finite(const EncodeTask& task) {
  const bool whole = task.whole || (task.sum.data() == nullptr && spec_.encodes_whole());
  const Range range = whole && !task.whole ? Range{0, spec_.input.n_elems} : task.range;
  std::vector<float> x;
  if (task.sum.data() != nullptr) {
    x = to_host(task.whole ? task.whole->values : task.sum);
  } else {
    const BufferPtr floats = set_->memory->take(std::max<std::size_t>(1, range.size()) * 4);
    cuda::load_floats(spec_.input, range.begin, floats_in(floats, range.size()),
                      set_->compute.get());
    x = to_host(floats_in(floats, range.size()));
  }
  EncodeOptions options = task.options;
  if (whole) options.feedback = task.whole ? task.whole->feedback : spec_.residuals.sender;
  const std::vector<float> before = to_host(options.feedback.before);
  std::vector<float> after(options.feedback.after.size());
  options.feedback.before = before;
  options.feedback.after = after;
  std::vector<std::byte> payload(spec_.payload_bytes(x.size()));
  const auto codec =
      task.whole ? spec_.codec->for_part(x.size(), spec_.input.n_elems) : spec_.codec;
  if (const auto encoding = whole ? codec->begin(x, options) : nullptr) {
    encoding->encode(0, x.size(), payload);
  } else {
    spec_.codec->encode(x, options, payload);
  }
}

std::vector<float> DeviceStage::to_host(std::span<const float> values) {
  std::vector<float> copy(values.size());
  cuda::copy(reinterpret_cast<std::byte*>(copy.data()),
             reinterpret_cast<const std::byte*>(values.data()), values.size_bytes(), set_->compute);
  wait_until_idle();
  return copy;
}

}  // namespace fedcomm
