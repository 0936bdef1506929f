// Errors of libfedcomm: one exception type with a kind, mapped one to one onto Python's classes.
// Messages say where, what and, where known, the remedy: "[mpi] cloud 2: no progress for 30 s".
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace fedcomm {

/// The values travel in abort frames: append only.
enum class ErrorKind : std::uint8_t {
  invalid_argument = 1,
  timeout = 2,
  peer_lost = 3,
  corrupt_frame = 4,
  authentication = 5,
  non_finite = 6,
  cuda = 7,
  config = 8,
  group_broken = 9,
  internal = 10,
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::int64_t detail = -1)
      : std::runtime_error(message), kind_(kind), detail_(detail) {}

  ErrorKind kind() const noexcept { return kind_; }
  /// The member for peer_lost, the element's index for non_finite, else -1.
  std::int64_t detail() const noexcept { return detail_; }

 private:
  ErrorKind kind_;
  std::int64_t detail_;
};

[[noreturn]] inline void fail(ErrorKind kind, const std::string& message,
                              std::int64_t detail = -1) {
  throw Error(kind, message, detail);
}

/// For conditions that only a bug in this library can break.
inline void expect(bool condition, const char* what) {
  if (!condition) fail(ErrorKind::internal, std::string("bug in libfedcomm: ") + what);
}

}  // namespace fedcomm
