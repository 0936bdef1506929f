#include "collective/host_stage.h"

#include <algorithm>
#include <cstring>

namespace fedcomm {

BufferPtr HostStage::take_sum(std::size_t n_elems) {
  return context_.pool->take(std::max(spec_.segment_elems, n_elems) * sizeof(float));
}

void HostStage::encode(const EncodeTask& task) {
  if (!spec_.codec) {
    n_bytes_ = task.range.size();
    if (n_bytes_ > 0) {
      std::memcpy(task.room.data(), spec_.input.bytes() + task.range.begin, n_bytes_);
    }
    return;
  }
  if (task.whole) {
    n_bytes_ = encode_piece_of_sum(task);
    return;
  }
  if (task.sum.data() == nullptr && spec_.encodes_whole()) {
    n_bytes_ = encode_piece(task);
    return;
  }
  BufferPtr keep;
  const auto x = task.sum.data() == nullptr ? floats_of_input(task.range, keep) : task.sum;
  n_bytes_ = spec_.codec->encode(x, task.options, task.room);
}

/// The options of the first piece are those of the whole.
std::size_t HostStage::encode_piece(const EncodeTask& task) {
  if (!whole_) {
    EncodeOptions options = task.options;
    options.feedback = spec_.residuals.sender;
    options.draw.first = 0;
    whole_ = spec_.codec->begin(floats_of_input({0, spec_.input.n_elems}, whole_input_), options);
  }
  return whole_->encode(task.range.begin, task.range.end, task.room);
}

std::size_t HostStage::encode_piece_of_sum(const EncodeTask& task) {
  const WholeSum& sum = *task.whole;
  if (!whole_sum_) {
    EncodeOptions options = task.options;
    options.feedback = sum.feedback;
    options.draw.first = sum.begin;
    sum_codec_ = spec_.codec->for_part(sum.values.size(), spec_.input.n_elems);
    whole_sum_ = sum_codec_->begin(sum.values, options);
  }
  return whole_sum_->encode(task.range.begin - sum.begin, task.range.end - sum.begin, task.room);
}

void HostStage::add_input(Range range, float weight, std::span<float> sum, bool first) {
  BufferPtr keep;
  const std::span<const float> x = floats_of_input(range, keep);
  if (first) {
    for (std::size_t i = 0; i < x.size(); ++i)
      sum[i] = weight * x[i];
  } else {
    for (std::size_t i = 0; i < x.size(); ++i)
      sum[i] += weight * x[i];
  }
}

void HostStage::add_payload(const StagedPayload& payload, float weight, std::span<float> sum,
                            bool first) {
  if (first) return spec_.codec->decode_first(payload.bytes, weight, sum);
  spec_.codec->decode_add(payload.bytes, weight, sum);
}

void HostStage::divide(std::span<float> sum, float divisor) {
  for (float& x : sum)
    x /= divisor;
}

void HostStage::decode(const StagedPayload& payload, Range range) {
  if (!spec_.codec) {
    if (range.size() > 0) {
      std::memcpy(spec_.output.bytes() + range.begin, payload.bytes.data(), range.size());
    }
    return;
  }
  if (spec_.output.dtype == DType::f32) {
    auto* out = reinterpret_cast<float*>(spec_.output.data) + range.begin;
    spec_.codec->decode(payload.bytes, {out, range.size()});
    return;
  }
  const BufferPtr buffer = take_sum(range.size());
  const std::span<float> values(reinterpret_cast<float*>(buffer->data()), range.size());
  spec_.codec->decode(payload.bytes, values);
  store(values, 1.0f, range);
}

void HostStage::store(std::span<float> sum, float divisor, Range range) {
  constexpr std::size_t kStrip = 4096;  // 16 KiB, which the three passes find in the L1 cache
  for (std::size_t begin = 0; begin < sum.size(); begin += kStrip) {
    const std::span<float> strip = sum.subspan(begin, std::min(kStrip, sum.size() - begin));
    if (divisor != 1.0f) divide(strip, divisor);
    if (spec_.policy == NonFinitePolicy::error) {
      const std::size_t bad = first_beyond(strip, overflow_bits(spec_.output.dtype));
      if (bad < strip.size()) {
        fail(ErrorKind::non_finite, "NaN or infinity in the result",
             static_cast<std::int64_t>(begin + bad));
      }
    }
    store_floats(strip, spec_.output, range.begin + begin);
  }
}

/// The input as float32: in place where it is, else converted into `keep`.
std::span<const float> HostStage::floats_of_input(Range range, BufferPtr& keep) {
  if (spec_.input.dtype == DType::f32) {
    return {reinterpret_cast<const float*>(spec_.input.data) + range.begin, range.size()};
  }
  const std::size_t n_elems = std::max(spec_.segment_elems, range.size());
  keep = context_.pool->take(n_elems * sizeof(float));
  const std::span<float> values(reinterpret_cast<float*>(keep->data()), range.size());
  load_floats(spec_.input, range.begin, values);
  return values;
}

}  // namespace fedcomm
