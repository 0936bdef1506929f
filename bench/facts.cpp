#include "facts.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <utility>

#include "arguments.h"

namespace fedcomm::bench {
namespace {

std::string first_line(const char* file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  utsname names{};
  return uname(&names) == 0 ? names.machine : "unknown";
}

}  // namespace

Times times_of(std::vector<double> samples_ms) {
  std::ranges::sort(samples_ms);
  const std::size_t middle = samples_ms.size() / 2;
  const bool odd = samples_ms.size() % 2 == 1;
  return {.median_ms = odd ? samples_ms[middle] : (samples_ms[middle - 1] + samples_ms[middle]) / 2,
          .min_ms = samples_ms.front(),
          .max_ms = samples_ms.back()};
}

std::string json_number(double x) {
  if (!std::isfinite(x)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", x);
  return text;
}

const char* json_verified(Verified verified) {
  switch (verified) {
    case Verified::not_asked: return "null";
    case Verified::yes: return "true";
    case Verified::no: return "false";
  }
  return "null";
}

const char* word_for(Verified verified) {
  switch (verified) {
    case Verified::not_asked: return "-";
    case Verified::yes: return "yes";
    case Verified::no: return "NO";
  }
  return "";
}

std::string Facts::machine() const {
  return cpu + ", " + std::to_string(n_cores) + (n_cores == 1 ? " core" : " cores");
}

Facts facts_here(std::string commit) {
  Facts facts;
  facts.cpu = cpu_model();
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0)
    facts.n_cores = static_cast<std::size_t>(CPU_COUNT(&cores));
  utsname names{};
  if (uname(&names) == 0) facts.kernel = std::string(names.sysname) + " " + names.release;
#if defined(__clang__)
  facts.compiler = "clang " __clang_version__;
#else
  facts.compiler = "gcc " __VERSION__;
#endif
  facts.huge_pages = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
  facts.date = text;
  facts.commit = std::move(commit);
  return facts;
}

std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

void JsonRow::field(std::string_view name, std::string_view value) {
  if (out_.size() > 1) out_ += ", ";
  out_ += json_text(name);
  out_ += ": ";
  out_ += value;
}

void JsonRow::times(const Times& times) {
  number("median_ms", times.median_ms);
  number("min_ms", times.min_ms);
  number("max_ms", times.max_ms);
}

void JsonRow::facts(const Facts& facts) {
  text("machine", facts.machine());
  text_or_null("device", facts.device);
  text("date", facts.date);
  text_or_null("commit", facts.commit);
}

OutputFile::OutputFile(const std::string& name) {
  if (name.empty()) return;
  file_ = name == "-" ? stdout : std::fopen(name.c_str(), "w");
  if (file_ == nullptr)
    throw BadArgument("--json: cannot write '" + name + "'; does its folder exist?");
}

OutputFile::~OutputFile() {
  if (file_ != nullptr && file_ != stdout) std::fclose(file_);
}

}  // namespace fedcomm::bench
