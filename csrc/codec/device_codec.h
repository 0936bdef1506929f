// A codec at work on a GPU: tensors, residuals and payloads in device memory; the same bytes,
// residuals and verdicts as the Codec that it was made from.
//
// Everything is asynchronous on `stream` (a cudaStream_t), which may be capturing a graph: what is
// launched depends on lengths only (and, to decode, on the number of entries). Nothing waits, and
// nothing is allocated once reserve_*() has been called for the lengths in use. The sizes of
// payloads that depend on values, and what is wrong with a tensor or a payload, are told in device
// memory. Of a tensor that is not finite the flag tells, not the element: to name it, copy the
// tensor to the host and let the Codec encode it, which throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "codec/codec.h"

namespace fedcomm {

/// Where an encoder writes; all of it in device memory.
struct DeviceOutput {
  std::span<std::byte> payload;  // room for segment_bytes(), at a multiple of 16
  std::uint64_t* n_bytes;        // set to the payload's size where lengths do not tell it
  std::int32_t* non_finite;      // set to 1 where Codec::encode() may throw non_finite, else left
};

/// A payload to decode, and its first bytes as the host has seen them: kHeadBytes, or all where it
/// has fewer.
struct DevicePayload {
  static constexpr std::size_t kHeadBytes = 4;

  std::span<const std::byte> bytes;  // in device memory, at a multiple of 16
  std::span<const std::byte> head;   // in host memory
};

/// One call after the other uses it, in the order of one stream.
class DeviceCodec {
 public:
  virtual ~DeviceCodec() = default;

  /// encode() and begin() of up to n_elems elements then allocate nothing.
  virtual void reserve_encode(std::size_t n_elems) = 0;
  /// The same for decoding up to n_elems elements of a tensor of n_total, from payloads that
  /// Codec::segment_bytes() is true of.
  virtual void reserve_decode(std::size_t n_elems, std::size_t n_total) = 0;

  /// As Codec::encode(); spans of options.feedback are of device memory, and its policy is left to
  /// whoever looks at *out.non_finite. Returns the payload's size where lengths tell it; null where
  /// it is in *out.n_bytes.
  virtual std::optional<std::size_t> encode(std::span<const float> x, const EncodeOptions& options,
                                            const DeviceOutput& out, void* stream) = 0;

  /// For codecs that choose from the whole tensor: as Codec::begin(), then WholeEncoding::encode()
  /// for each piece, with other payloads decoded in between if need be. The pieces' `non_finite` is
  /// about their own values' coding.
  virtual void begin(std::span<const float> x, const EncodeOptions& options,
                     std::int32_t* non_finite, void* stream) = 0;
  virtual std::optional<std::size_t> encode_piece(std::size_t begin, std::size_t end,
                                                  const DeviceOutput& out, void* stream) = 0;

  /// As the Codec's: throw corrupt_frame for what the host can see, and set *corrupt (on the
  /// device) to 1 for the rest; it is left alone otherwise. Where it is not 0 no element is added
  /// to, and decoded ones are of no use.
  virtual void decode(const DevicePayload& payload, std::span<float> out, std::int32_t* corrupt,
                      void* stream) = 0;
  virtual void decode_add(const DevicePayload& payload, float weight, std::span<float> accumulator,
                          std::int32_t* corrupt, void* stream) = 0;
};

}  // namespace fedcomm
