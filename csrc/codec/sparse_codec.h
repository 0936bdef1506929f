// What the codecs that send a selection share: the payload, and everything but the choice.
//
// Payload: the number of entries (uint32, little-endian), their values in the value format, in
// order of index, and their indices coded (coding/coding.h), which take the rest.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "codec/quant_codec.h"
#include "coding/coding.h"
#include "topk/topk.h"

namespace fedcomm {

/// Memory that encoding and decoding need; kept and used again.
struct SparseWorkspace {
  TopKWorkspace selection;
  detail::Scratch<std::uint32_t> indices;
  detail::Scratch<std::uint32_t> local_indices;
  detail::Scratch<float> values;
  detail::Scratch<float> decoded;
};
using SparseWorkspacePtr = std::unique_ptr<SparseWorkspace, void (*)(SparseWorkspace*)>;
SparseWorkspacePtr take_sparse_workspace();

class SparseCodec : public Codec {
 public:
  std::size_t wire_bytes(std::size_t n_elems) const override {
    return segment_bytes(n_elems, n_elems);
  }
  std::size_t encode(std::span<const float> x, const EncodeOptions& options,
                     std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;
  void decode_add(std::span<const std::byte> payload, float weight,
                  std::span<float> accumulator) const override;
  std::unique_ptr<DeviceCodec> on_device() const override;

 protected:
  SparseCodec(std::string name, ValueCodec values, float beta)
      : Codec(std::move(name)), values_(values), beta_(beta) {}

  /// Entries chosen from a tensor of n elements that is encoded by itself.
  virtual std::size_t count(std::size_t n_elems) const = 0;
  virtual bool select(const TopKInput& input, const TopKOutput& out,
                      TopKWorkspace& workspace) const = 0;
  virtual bool count_can_be(std::size_t count, std::size_t n_elems) const = 0;
  virtual std::size_t encode_indices(std::span<const std::uint32_t> indices, std::size_t n_elems,
                                     std::span<std::byte> out) const = 0;
  virtual void decode_indices(std::span<const std::byte> bytes, std::size_t n_elems,
                              std::span<std::uint32_t> indices) const = 0;

  /// The most entries that lie in any n_elems elements of a tensor of n_total.
  virtual std::size_t most(std::size_t n_elems, std::size_t n_total) const = 0;

  // The same on a GPU, as cuda:: in topk.h and coding.h. encode_indices() is given the whole
  // payload and an offset on the device, and returns the payload's size where lengths tell it.
  virtual void reserve(std::size_t n_elems, cuda::TopKWorkspace& workspace) const = 0;
  virtual void select(const TopKInput& input, const TopKOutput& out, std::int32_t* non_finite,
                      cuda::TopKWorkspace& workspace, void* stream) const = 0;
  virtual std::optional<std::size_t> encode_indices(const cuda::IndexSet& set,
                                                    const cuda::CodeOutput& out,
                                                    cuda::RiceWorkspace& workspace,
                                                    void* stream) const = 0;
  virtual void decode_indices(std::span<const std::byte> bytes, std::size_t n_elems,
                              std::span<std::uint32_t> indices, std::int32_t* corrupt,
                              cuda::RiceWorkspace& workspace, void* stream) const = 0;

  static constexpr std::size_t kCountBytes = sizeof(std::uint32_t);
  std::size_t value_bytes(std::size_t count) const { return quant_bytes(values_.spec, count); }

  /// Chooses from x, into the workspace. Throws non_finite where the policy says so.
  TopKOutput choose(std::span<const float> x, const EncodeOptions& options,
                    SparseWorkspace& workspace) const;
  /// Elements [begin, end) of the tensor that entries were chosen from.
  struct Piece {
    std::size_t begin;
    std::size_t end;
  };
  /// Writes the payload of those entries that lie in the piece, and to options.feedback what is
  /// left of them.
  std::size_t encode_entries(const TopKOutput& entries, Piece piece, const EncodeOptions& options,
                             SparseWorkspace& workspace, std::span<std::byte> payload) const;

  const ValueCodec values_;
  const float beta_;

 private:
  friend class DeviceSparse;

  /// The number of entries in a payload of n_bytes. `head` has its first kCountBytes, or all.
  /// Throws corrupt_frame where it cannot be one of n_elems elements.
  std::size_t count_in(std::span<const std::byte> head, std::size_t n_bytes,
                       std::size_t n_elems) const;
  TopKOutput decode_entries(std::span<const std::byte> payload, std::size_t n_elems,
                            SparseWorkspace& workspace) const;
};

/// `topk(density | k=N, format, beta=)`: of the whole tensor; null where `text` is no such codec.
std::shared_ptr<const Codec> make_topk_codec(const CodecText& text);
/// `chunk_topk(chunk, k, format, beta=, index=rice|packed)`.
std::shared_ptr<const Codec> make_chunk_topk_codec(const CodecText& text);

}  // namespace fedcomm
