// Steps that compute on the CPU: each has ended when it has been begun.
#pragma once

#include "collective/stage.h"

namespace fedcomm {

class HostStage final : public Stage {
 public:
  HostStage(const GroupContext& context, const OperationSpec& spec)
      : context_(context), spec_(spec) {}

  BufferPool& frames() override { return *context_.pool; }
  BufferPtr take_sum(std::size_t n_elems) override;
  bool has_room() const override { return true; }

  void encode(const EncodeTask& task) override;
  void add_input(Range range, float weight, std::span<float> sum, bool first) override;
  void add_payload(const StagedPayload& payload, float weight, std::span<float> sum,
                   bool first) override;
  void divide(std::span<float> sum, float divisor) override;
  void decode(const StagedPayload& payload, Range range) override;
  void store(std::span<float> sum, float divisor, Range range) override;

  std::optional<std::size_t> ended() override { return n_bytes_; }
  void stop() override {}

 private:
  std::span<const float> floats_of_input(Range range, BufferPtr& keep);
  std::size_t encode_piece(const EncodeTask& task);
  std::size_t encode_piece_of_sum(const EncodeTask& task);

  const GroupContext& context_;
  const OperationSpec& spec_;
  BufferPtr whole_input_;                 // as float32, where the input is not
  std::unique_ptr<WholeEncoding> whole_;  // made by the first encoding, where encodes_whole()
  std::shared_ptr<const Codec> sum_codec_;
  std::unique_ptr<WholeEncoding> whole_sum_;  // a member owns one chunk
  std::size_t n_bytes_ = 0;                   // of what was encoded last
};

}  // namespace fedcomm
