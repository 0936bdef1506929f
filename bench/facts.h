// What all benchmarks here tell in one way: times of many runs, the machine and the date they were
// measured on, rows of JSON, and where those go. What is measured is none of its business.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace fedcomm::bench {

struct Times {
  double median_ms = 0, min_ms = 0, max_ms = 0;
};

/// Of at least one sample; the median of an even number is the mean of the middle two.
Times times_of(std::vector<double> samples_ms);

template <typename F>
double milliseconds(const F& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

enum class Verified : std::uint8_t { not_asked, yes, no };

/// As JSON has it.
const char* json_verified(Verified verified);
/// For a table: "-", "yes", "NO".
const char* word_for(Verified verified);

/// What a number was measured on.
struct Facts {
  std::string cpu, kernel, compiler, huge_pages, date, commit;
  std::string device;  // the GPU's name, if one was measured
  std::size_t n_cores = 0;

  /// "AMD EPYC, 2 cores"
  std::string machine() const;
};

Facts facts_here(std::string commit);

/// `text` with quotation marks, escaped.
std::string json_text(std::string_view text);

/// A number as JSON has it; null where it is not finite.
std::string json_number(double x);

/// One JSON object, without line breaks, field by field.
class JsonRow {
 public:
  /// `value` is JSON already.
  void field(std::string_view name, std::string_view value);
  void text(std::string_view name, std::string_view value) { field(name, json_text(value)); }
  /// null where it is empty.
  void text_or_null(std::string_view name, std::string_view value) {
    field(name, value.empty() ? "null" : json_text(value));
  }
  void number(std::string_view name, double value) { field(name, json_number(value)); }
  void count(std::string_view name, std::size_t value) { field(name, std::to_string(value)); }
  void times(const Times& times);
  void facts(const Facts& facts);

  std::string str() const { return out_ + "}"; }

 private:
  std::string out_ = "{";
};

/// Where JSON lines go: a file, standard output for "-", or nowhere for "". Throws BadArgument.
class OutputFile {
 public:
  explicit OutputFile(const std::string& name);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  std::FILE* get() const { return file_; }
  bool is_stdout() const { return file_ == stdout; }

 private:
  std::FILE* file_ = nullptr;
};

}  // namespace fedcomm::bench
