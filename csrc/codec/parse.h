// The grammar of codec names: a name, or a name with arguments in brackets, which may be codecs.
//
//   codec    = word [ "(" argument { "," argument } ")" ]
//   argument = [ word "=" ] codec
//
// e.g. `int8`, `int4(block=64, stochastic)`, `topk(0.01, int8)`,
// `chunk_topk(4096, 64, int2, beta=0.95, index=packed)`. Numbers are words here. What the arguments
// mean is said where the codecs are made.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fedcomm {

/// A parsed name. `keyword` is empty where the argument is not of the form word=...
struct CodecText {
  std::string keyword;
  std::string word;
  std::vector<CodecText> arguments;

  /// As it would be written.
  std::string text() const;
  /// The same without the keyword.
  std::string value() const;
};

/// Throws invalid_argument that says where the text stops making sense.
CodecText parse_codec(std::string_view text);

/// Takes the arguments of a codec one after the other; whoever is left over is an error.
class CodecArguments {
 public:
  explicit CodecArguments(const CodecText& text);

  /// The next argument that is neither a keyword nor one of `flags`, or null.
  const CodecText* positional();
  /// Whether the bare word is among the arguments.
  bool flag(std::string_view word);
  const CodecText* keyword(std::string_view keyword);
  /// A number given as a keyword.
  std::optional<double> number(std::string_view keyword);
  /// Throws invalid_argument where something was not taken; `usage` says what the codec takes.
  void finish(std::string_view usage) const;

 private:
  const CodecText& text_;
  std::vector<bool> taken_;
};

/// Throws invalid_argument, with `what` in the message.
double number_of(const CodecText& text, std::string_view what);
std::size_t count_of(const CodecText& text, std::string_view what);
/// The shortest text that reads as this number.
std::string text_of(double number);

}  // namespace fedcomm
