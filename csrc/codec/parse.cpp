#include "codec/parse.h"

#include <cctype>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace fedcomm {
namespace {

constexpr std::size_t kMaxText = 256;  // of a name; they are also keys in error messages

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  CodecText all() {
    CodecText codec = one(0);
    space();
    if (at_ != text_.size()) wrong("expected the end");
    return codec;
  }

 private:
  CodecText one(int depth) {
    if (depth > 4) wrong("brackets are nested too deep");
    CodecText codec{.keyword = {}, .word = word(), .arguments = {}};
    if (!take('(')) return codec;
    do {
      CodecText argument = one(depth + 1);
      if (argument.arguments.empty() && take('=')) {
        const std::string keyword = argument.word;
        argument = one(depth + 1);
        argument.keyword = keyword;
      }
      codec.arguments.push_back(std::move(argument));
    } while (take(','));
    if (!take(')')) wrong("expected ',' or ')'");
    return codec;
  }

  std::string word() {
    space();
    const std::size_t begin = at_;
    while (at_ < text_.size() && in_word(text_[at_]))
      ++at_;
    if (at_ == begin) wrong("expected a name or a number");
    return std::string(text_.substr(begin, at_ - begin));
  }

  static bool in_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.' || c == '-' ||
           c == '+';
  }

  bool take(char c) {
    space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void space() {
    while (at_ < text_.size() && text_[at_] == ' ')
      ++at_;
  }

  [[noreturn]] void wrong(const std::string& what) const {
    fail(ErrorKind::invalid_argument, "codec '" + std::string(text_) + "': " + what + " at '" +
                                          std::string(text_.substr(at_)) + "'");
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

std::string CodecText::text() const {
  return keyword.empty() ? value() : keyword + "=" + value();
}

std::string CodecText::value() const {
  std::string all = word;
  for (std::size_t i = 0; i < arguments.size(); ++i)
    all += (i == 0 ? "(" : ", ") + arguments[i].text();
  return arguments.empty() ? all : all + ")";
}

CodecText parse_codec(std::string_view text) {
  if (text.size() > kMaxText) {
    fail(ErrorKind::invalid_argument, "a codec's name may have " + std::to_string(kMaxText) +
                                          " characters, not " + std::to_string(text.size()));
  }
  return Parser(text).all();
}

CodecArguments::CodecArguments(const CodecText& text)
    : text_(text), taken_(text.arguments.size(), false) {}

const CodecText* CodecArguments::positional() {
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    if (taken_[i] || !text_.arguments[i].keyword.empty()) continue;
    taken_[i] = true;
    return &text_.arguments[i];
  }
  return nullptr;
}

bool CodecArguments::flag(std::string_view word) {
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    const CodecText& argument = text_.arguments[i];
    if (taken_[i] || !argument.keyword.empty() || argument.text() != word) continue;
    taken_[i] = true;
    return true;
  }
  return false;
}

const CodecText* CodecArguments::keyword(std::string_view keyword) {
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    if (taken_[i] || text_.arguments[i].keyword != keyword) continue;
    taken_[i] = true;
    return &text_.arguments[i];
  }
  return nullptr;
}

std::optional<double> CodecArguments::number(std::string_view name) {
  const CodecText* found = keyword(name);
  if (found == nullptr) return std::nullopt;
  return number_of(*found, name);
}

void CodecArguments::finish(std::string_view usage) const {
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    if (taken_[i]) continue;
    fail(ErrorKind::invalid_argument, "codec '" + text_.text() + "' does not take '" +
                                          text_.arguments[i].text() + "'; it is " +
                                          std::string(usage));
  }
}

double number_of(const CodecText& text, std::string_view what) {
  double number = 0;
  const char* end = text.word.data() + text.word.size();
  const auto [stop, error] = std::from_chars(text.word.data(), end, number);
  if (error != std::errc() || stop != end || !text.arguments.empty() || !std::isfinite(number)) {
    fail(ErrorKind::invalid_argument,
         std::string(what) + " is '" + text.text() + "'; it must be a number");
  }
  return number;
}

std::size_t count_of(const CodecText& text, std::string_view what) {
  std::size_t count = 0;
  const char* end = text.word.data() + text.word.size();
  const auto [stop, error] = std::from_chars(text.word.data(), end, count);
  if (error != std::errc() || stop != end || !text.arguments.empty()) {
    fail(ErrorKind::invalid_argument,
         std::string(what) + " is '" + text.text() + "'; it must be a whole number");
  }
  return count;
}

std::string text_of(double number) {
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, number);
  static_cast<void>(error);  // 32 characters hold any double
  return std::string(buffer, end);
}

}  // namespace fedcomm
