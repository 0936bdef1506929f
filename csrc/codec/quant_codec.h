// A number format as a codec, and what codecs that hold one share: `name(block=, scale=, seed=,
// stochastic)`.
#pragma once

#include <memory>
#include <string>

#include "codec/codec.h"
#include "codec/parse.h"

namespace fedcomm {

/// A format with its choices, and the seed of its random bits.
struct ValueCodec {
  QuantSpec spec;
  std::uint32_t seed = 0;

  /// Canonical: choices that are the format's usual ones are left out. `more` comes last.
  std::string text(const std::string& more = "") const;
  Draw draw(Draw from) const {
    from.seed |= std::uint64_t{seed} << 16;
    return from;
  }
};

/// Takes the format's arguments. Throws invalid_argument.
ValueCodec value_codec(const CodecText& text, CodecArguments& arguments);
/// The same for a codec inside another.
ValueCodec value_codec(const CodecText& text);

/// The `beta` argument, 1 where there is none. Throws invalid_argument outside [0, 1].
float beta_of(CodecArguments& arguments);
std::string beta_text(float beta);

/// Throws non_finite, with the index of the first element that makes acc = x + beta * before one.
[[noreturn]] void fail_non_finite(Format format, std::span<const float> x,
                                  const Feedback& feedback);

/// Null where `text` names no format.
std::shared_ptr<const Codec> make_quant_codec(const CodecText& text);

}  // namespace fedcomm
