// Codec: tensor <-> payload. All that a collective knows about how values are coded.
//
// Codecs have no state: residuals are handed in, so that a failed round can forget the new ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fedcomm {

enum class NonFinitePolicy : std::uint8_t { error, propagate };

/// Error feedback of one encoding: acc = x + before; after = acc - decode(encode(acc)).
/// Both spans are empty (no feedback) or as long as x; they may be the same memory.
struct Feedback {
  std::span<const float> before;
  std::span<float> after;
};

class Codec {
 public:
  virtual ~Codec() = default;

  /// Canonical text; make_codec(name()) gives an equal codec.
  virtual std::string_view name() const = 0;
  /// Segment boundaries must be multiples of it, so that no shared scale spans two segments.
  virtual std::size_t block() const = 0;
  /// Largest payload of `n_elems` elements; exact for codecs of fixed size.
  virtual std::size_t wire_bytes(std::size_t n_elems) const = 0;

  /// Writes the payload and returns its size. `payload` has room for wire_bytes(x.size()).
  /// Throws non_finite, with the element's index in x, where the policy is `error`.
  virtual std::size_t encode(std::span<const float> x, std::span<std::byte> payload,
                             NonFinitePolicy policy) const = 0;
  /// As encode, with error feedback.
  virtual std::size_t encode(std::span<const float> x, const Feedback& feedback,
                             std::span<std::byte> payload, NonFinitePolicy policy) const;
  /// Payloads come from peers: throws corrupt_frame on any that cannot be out.size() elements.
  virtual void decode(std::span<const std::byte> payload, std::span<float> out) const = 0;
  /// accumulator += weight * decoded.
  virtual void decode_add(std::span<const std::byte> payload, float weight,
                          std::span<float> accumulator) const = 0;

  /// Identifies the codec in frame headers: a hash of its name, never 0.
  std::uint32_t id() const;
};

/// Parses a codec's name. Throws invalid_argument that lists the names there are.
std::shared_ptr<const Codec> make_codec(std::string_view name);

std::vector<std::string> codec_names();

}  // namespace fedcomm
