// The few words that the C++ tests need: TEST(name) { CHECK(...); CHECK_THROWS(kind, ...); }
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"

namespace fedcomm::testing {

struct Case {
  const char* name;
  std::function<void()> run;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registration {
  Registration(const char* name, std::function<void()> run) {
    cases().push_back({name, std::move(run)});
  }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Thrown by a test that cannot run here; what() says why.
struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void report(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
void check_equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  std::ostringstream out;
  out << text << ": " << a << " != " << b;
  report(file, line, out.str());
}

/// How many random cases of `n` to go through: all, or one in $FEDCOMM_TEST_SHARE, for tools under
/// which everything takes a hundred times as long.
inline std::uint64_t cases_of(std::uint64_t n) {
  const char* share = std::getenv("FEDCOMM_TEST_SHARE");
  const std::uint64_t divisor = share == nullptr ? 1 : std::strtoull(share, nullptr, 10);
  return divisor <= 1 ? n : (n + divisor - 1) / divisor;
}

/// For a test that is nothing without its many elements.
inline void need_time() {
  if (cases_of(1u << 20) < 1u << 20) throw Skipped("FEDCOMM_TEST_SHARE is set");
}

}  // namespace fedcomm::testing

#define TEST(name)                                                                     \
  static void test_##name();                                                           \
  static const fedcomm::testing::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition) \
  if (!(condition)) fedcomm::testing::report(__FILE__, __LINE__, "not true: " #condition)

#define CHECK_EQUAL(a, b) fedcomm::testing::check_equal(a, b, #a " == " #b, __FILE__, __LINE__)

#define CHECK_THROWS(expected_kind, expression)                                               \
  do {                                                                                        \
    bool thrown = false;                                                                      \
    try {                                                                                     \
      expression;                                                                             \
    } catch (const fedcomm::Error& error) {                                                   \
      thrown = true;                                                                          \
      CHECK_EQUAL(static_cast<int>(error.kind()), static_cast<int>(expected_kind));           \
    }                                                                                         \
    if (!thrown) fedcomm::testing::report(__FILE__, __LINE__, "did not throw: " #expression); \
  } while (false)
