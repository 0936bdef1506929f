// The codecs that send a selection, on a GPU: puts selection, value and index kernels in a row, on
// memory that is kept. Knows no kernel itself; what is chosen and how it is coded, the codec says.
#include <string>

#include "base/device_buffer.h"
#include "base/device_stream.h"
#include "base/device_tensor.h"
#include "base/error.h"
#include "codec/device_codec.h"
#include "codec/sparse_codec.h"

namespace fedcomm {
namespace {

/// An array in device memory; growing loses the contents.
template <typename T>
class DeviceScratch {
 public:
  std::span<T> get(std::size_t n) {
    buffer_.reserve(n * sizeof(T));
    return {reinterpret_cast<T*>(buffer_.data()), n};
  }

 private:
  cuda::DeviceBuffer buffer_;
};

/// What one kernel leaves for the next. `end` is of a payload so far.
struct Between {
  std::uint64_t end;
  std::uint32_t range[2];
};

}  // namespace

class DeviceSparse final : public DeviceCodec {
 public:
  explicit DeviceSparse(std::shared_ptr<const SparseCodec> codec) : codec_(std::move(codec)) {}

  void reserve_encode(std::size_t n_elems) override {
    const std::size_t k = codec_->count(n_elems);
    codec_->reserve(n_elems, selection_);
    indices_.get(k);
    values_.get(k);
    between_.get(1);
    rice_.reserve(k);
    if (!branch_) branch_.emplace();
  }
  void reserve_decode(std::size_t n_elems, std::size_t n_total) override {
    decoded_.get(codec_->most(n_elems, n_total));
    rice_.reserve(0);
  }

  std::optional<std::size_t> encode(std::span<const float> x, const EncodeOptions& options,
                                    const DeviceOutput& out, void* stream) override {
    begin(x, options, out.non_finite, stream);
    return encode_piece(0, x.size(), out, stream);
  }

  void begin(std::span<const float> x, const EncodeOptions& options, std::int32_t* non_finite,
             void* stream) override {
    reserve_encode(x.size());
    const std::size_t k = codec_->count(x.size());
    n_total_ = x.size();
    entries_ = {indices_.get(k), values_.get(k)};
    options_ = options;
    const TopKInput input{x, options.feedback.before, options.feedback.after, codec_->beta_};
    codec_->select(input, entries_, non_finite, selection_, stream);
  }

  std::optional<std::size_t> encode_piece(std::size_t begin, std::size_t end,
                                          const DeviceOutput& out, void* stream) override {
    const std::size_t n = end - begin;
    const std::size_t room = codec_->segment_bytes(n, n_total_);
    if (out.payload.size() < room) {
      fail(ErrorKind::invalid_argument, "[cuda] room for " + std::to_string(out.payload.size()) +
                                            " bytes; " + codec_->name() + " may take " +
                                            std::to_string(room));
    }
    Between* between = between_.get(1).data();
    const std::uint32_t* range = nullptr;
    if (n < n_total_) {
      cuda::find_range(entries_.indices, begin, end, between->range, stream);
      range = between->range;
    }
    Draw draw = codec_->values_.draw(options_.draw);
    draw.first += begin;
    const cuda::Entries entries{entries_.values.data(), entries_.indices.data(),
                                entries_.indices.size(), range};
    // Putting back what is left of each value waits for memory, coding indices for itself: beside
    // each other they take no longer than the former.
    branch_->leave(stream);
    cuda::measure_entries(codec_->values_.spec, entries, &between->end, branch_->get());
    const std::optional<std::size_t> size = codec_->encode_indices(
        {.indices = entries_.indices,
         .n = n,
         .base = static_cast<std::uint32_t>(begin),
         .range = range},
        {.bytes = out.payload, .offset = &between->end, .end = out.n_bytes}, rice_, branch_->get());
    cuda::encode_entries(codec_->values_.spec, entries, draw,
                         {.payload = out.payload.data(), .after = options_.feedback.after.data()},
                         out.non_finite, stream);
    branch_->join(stream);
    return size;
  }

  void decode(const DevicePayload& payload, std::span<float> out, std::int32_t* corrupt,
              void* stream) override {
    const auto indices = decode_indices(payload, out.size(), corrupt, stream);
    cuda::fill_zero(out, stream);
    cuda::decode_entries(codec_->values_.spec, values_of(payload), {indices, out.data(), corrupt},
                         stream);
  }
  void decode_add(const DevicePayload& payload, float weight, std::span<float> accumulator,
                  std::int32_t* corrupt, void* stream) override {
    const auto indices = decode_indices(payload, accumulator.size(), corrupt, stream);
    cuda::decode_add_entries(codec_->values_.spec, values_of(payload), weight,
                             {indices, accumulator.data(), corrupt}, stream);
  }

 private:
  static const std::byte* values_of(const DevicePayload& payload) {
    return payload.bytes.data() + SparseCodec::kCountBytes;
  }

  std::span<const std::uint32_t> decode_indices(const DevicePayload& payload, std::size_t n_elems,
                                                std::int32_t* corrupt, void* stream) {
    expect(payload.head.size() >= std::min(DevicePayload::kHeadBytes, payload.bytes.size()),
           "the host has not seen a payload's head");
    const std::size_t k = codec_->count_in(payload.head, payload.bytes.size(), n_elems);
    const auto indices = decoded_.get(k);
    const auto code = payload.bytes.subspan(SparseCodec::kCountBytes + codec_->value_bytes(k));
    codec_->decode_indices(code, n_elems, indices, corrupt, rice_, stream);
    return indices;
  }

  std::shared_ptr<const SparseCodec> codec_;
  cuda::TopKWorkspace selection_;
  cuda::RiceWorkspace rice_;
  std::optional<cuda::Branch> branch_;
  DeviceScratch<std::uint32_t> indices_;  // chosen by begin(): decoding goes on between pieces
  DeviceScratch<std::uint32_t> decoded_;
  DeviceScratch<float> values_;
  DeviceScratch<Between> between_;
  // Of begin().
  std::size_t n_total_ = 0;
  TopKOutput entries_;
  EncodeOptions options_;
};

std::unique_ptr<DeviceCodec> SparseCodec::on_device() const {
  return std::make_unique<DeviceSparse>(
      std::static_pointer_cast<const SparseCodec>(shared_from_this()));
}

}  // namespace fedcomm
