// Steps that compute on a GPU: on several streams, so that one segment is encoded while the one
// before it is copied to the host, and another one from there. Only payloads cross; they are copied
// from and to pinned memory. The progress thread puts steps into the streams and looks at events;
// it never waits for the GPU, but to stop.
//
// The same bytes and sums as HostStage.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "base/device_stream.h"
#include "codec/device_codec.h"
#include "collective/stage.h"

namespace fedcomm {

/// What the GPU tells the host about one step. Kernels set a flag where something is wrong.
struct DeviceVerdict {
  std::uint64_t n_bytes;
  std::uint64_t lowest;  // element of the output that its dtype cannot hold; beyond all: none
  std::int32_t non_finite;
  std::int32_t corrupt;
};

/// All that a stage needs on a device. Kept from operation to operation, and used by one at a time.
struct DeviceSet {
  static constexpr std::size_t kMostSteps = 64;  // begun and not ended

  DeviceSet(int device, std::shared_ptr<BufferPool> frames);

  int device;
  cuda::Stream compute, in, out;
  cuda::Event copied_in, computed;
  std::vector<cuda::Event> ends;         // of steps, in turn
  std::shared_ptr<BufferPool> frames;    // pinned
  std::shared_ptr<BufferPool> memory;    // of the device
  BufferPtr verdicts, verdicts_on_host;  // kMostSteps each
  std::map<std::string, std::unique_ptr<DeviceCodec>> codecs;
};

/// The sets of a group. Thread-safe.
class DeviceSets {
 public:
  std::unique_ptr<DeviceSet> take(int device);
  void give_back(std::unique_ptr<DeviceSet> set);

 private:
  std::mutex mutex_;
  std::map<int, std::vector<std::unique_ptr<DeviceSet>>> idle_;
  std::shared_ptr<BufferPool> frames_;
};

class DeviceStage final : public Stage {
 public:
  DeviceStage(const GroupContext& context, const OperationSpec& spec);
  ~DeviceStage() override;

  BufferPool& frames() override { return *set_->frames; }
  BufferPtr take_sum(std::size_t n_elems) override;
  bool has_room() const override { return steps_.size() < DeviceSet::kMostSteps; }

  void encode(const EncodeTask& task) override;
  void add_input(Range range, float weight, std::span<float> sum, bool first) override;
  void add_payload(const StagedPayload& payload, float weight, std::span<float> sum,
                   bool first) override;
  void divide(std::span<float> sum, float divisor) override;
  void decode(const StagedPayload& payload, Range range) override;
  void store(std::span<float> sum, float divisor, Range range) override;

  std::optional<std::size_t> ended() override;
  void stop() override;

 private:
  struct Step {
    std::size_t slot = 0;  // of its event and its verdict
    // Else nobody need wait for it: what follows in the stream reads what it writes.
    bool has_end = false;
    bool has_verdict = false;
    std::optional<std::size_t> n_bytes = 0;  // none: the GPU will tell, and then so many are copied
    std::optional<EncodeTask> encoded;
    StagedPayload decoded;
    Range range;  // of the output
    std::vector<BufferPtr> keep;
  };

  cuda::CurrentDevice current() const { return cuda::CurrentDevice(set_->device); }
  Step& begin();
  DeviceVerdict* verdict_on_device(const Step& step) const;
  const DeviceVerdict& verdict(const Step& step) const;
  cuda::Event& end_of(const Step& step) { return set_->ends[step.slot]; }
  void copy_verdict(Step& step, const cuda::Stream& stream);
  void end_with_verdict(Step& step);
  std::span<float> take_floats(std::size_t n, Step& step);
  std::span<const float> floats_of_input(Range range, Step& step);
  std::optional<std::size_t> start_encoding(const EncodeTask& task, Step& step);
  std::optional<std::size_t> encode_piece_of_sum(const EncodeTask& task, const DeviceOutput& out);
  DeviceCodec& codec_on_device(const Codec& codec, const char* what);
  DevicePayload upload(const StagedPayload& payload);
  void copy_sized_payloads();
  void judge(const Step& step);
  void name_non_finite(const EncodeTask& task);
  std::vector<float> to_host(std::span<const float> values);
  void wait_until_idle();

  const GroupContext& context_;
  const OperationSpec& spec_;
  std::unique_ptr<DeviceSet> set_;
  DeviceCodec* codec_ = nullptr;  // null: plain bytes
  std::size_t copy_bytes_ = 0;    // of a payload's copy on the device
  std::deque<Step> steps_;        // begun, and not told to have ended
  std::size_t n_begun_ = 0;
  BufferPtr whole_input_;  // as float32, where the input is not
  bool whole_begun_ = false;
  DeviceCodec* sum_codec_ = nullptr;  // of the chunk that this member owns, once it is encoded
};

}  // namespace fedcomm
