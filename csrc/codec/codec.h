// Codec: tensor <-> payload. All that a collective knows about how values are coded.
//
// Codecs have no state: residuals are handed in, so that a failed round can forget the new ones.
// A codec's name says what it is made of; parse.h has the grammar.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/quant.h"

namespace fedcomm {

enum class NonFinitePolicy : std::uint8_t { error, propagate };

/// What an encoder is told besides the values.
struct EncodeOptions {
  /// The codec's own beta (its name says which) replaces feedback.beta.
  Feedback feedback = {};
  /// For stochastic rounding. draw.seed is who draws (a member's index, below 2^16); the seed in
  /// the codec's name is mixed in.
  Draw draw = {};
  NonFinitePolicy policy = NonFinitePolicy::error;
};

/// A tensor that a codec has looked at as a whole, to be encoded in pieces.
class WholeEncoding {
 public:
  virtual ~WholeEncoding() = default;
  /// Writes the payload of elements [begin, end), and their residuals; returns its size. `payload`
  /// has room for segment_bytes(). `begin` is a multiple of 8. Throws as Codec::encode().
  virtual std::size_t encode(std::size_t begin, std::size_t end, std::span<std::byte> payload) = 0;
};

class DeviceCodec;

class Codec : public std::enable_shared_from_this<Codec> {
 public:
  virtual ~Codec() = default;

  /// Canonical text; make_codec(name()) gives an equal codec.
  const std::string& name() const { return name_; }
  /// Elements that share a scale or are selected among together; 1 where each stands by itself.
  virtual std::size_t block() const = 0;
  /// Size of the payload of a tensor of `n_elems` elements: exact, or the largest there is where
  /// indices are entropy-coded.
  virtual std::size_t wire_bytes(std::size_t n_elems) const = 0;
  /// The largest payload that any `n_elems` elements of a tensor of `n_total` can have.
  virtual std::size_t segment_bytes(std::size_t n_elems, std::size_t n_total) const {
    static_cast<void>(n_total);
    return wire_bytes(n_elems);
  }

  /// Writes the payload and returns its size. `payload` has room for wire_bytes(x.size()).
  /// Throws non_finite, with the element's index in x, where the policy is `error`; the new
  /// residual is then of no use.
  virtual std::size_t encode(std::span<const float> x, const EncodeOptions& options,
                             std::span<std::byte> payload) const = 0;
  /// For codecs that choose from the whole tensor: chooses, from `x`, which must stay as it is.
  /// Null for the others, whose pieces are encoded each by itself. Throws as encode().
  virtual std::unique_ptr<WholeEncoding> begin(std::span<const float> x,
                                               const EncodeOptions& options) const {
    static_cast<void>(x);
    static_cast<void>(options);
    return nullptr;
  }
  virtual bool chooses_from_whole() const { return false; }
  /// A codec whose choice from a part is as large as this one's from the whole, in proportion. This
  /// one decodes what that one encodes.
  virtual std::shared_ptr<const Codec> for_part(std::size_t n_part, std::size_t n_total) const {
    static_cast<void>(n_part);
    static_cast<void>(n_total);
    return shared_from_this();
  }

  /// Payloads come from peers: throws corrupt_frame on any that cannot be out.size() elements.
  virtual void decode(std::span<const std::byte> payload, std::span<float> out) const = 0;
  /// accumulator += weight * decoded; elements that were not sent stay as they are.
  virtual void decode_add(std::span<const std::byte> payload, float weight,
                          std::span<float> accumulator) const = 0;
  /// As decode_add() to zeros, bit for bit: the first of several contributions.
  virtual void decode_first(std::span<const std::byte> payload, float weight,
                            std::span<float> accumulator) const {
    std::fill(accumulator.begin(), accumulator.end(), 0.0f);
    decode_add(payload, weight, accumulator);
  }

  /// The same for tensors on a GPU, with the memory that it needs there (codec/device_codec.h).
  /// Keeps this codec alive.
  virtual std::unique_ptr<DeviceCodec> on_device() const = 0;

  /// Identifies the codec in frame headers: a hash of its name, never 0.
  std::uint32_t id() const;

 protected:
  explicit Codec(std::string name) : name_(std::move(name)) {}

 private:
  std::string name_;
};

/// Parses a codec's name. Throws invalid_argument that says what is wrong and what there is.
std::shared_ptr<const Codec> make_codec(std::string_view name);

/// One codec of each kind, by its canonical name.
std::vector<std::string> codec_names();

}  // namespace fedcomm
