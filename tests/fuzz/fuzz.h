// What the fuzz targets share. A target reads a few choices from the front of its input and takes
// the rest as what a peer has sent, in memory of exact size, so that AddressSanitizer sees each
// byte read or written beside it. A failed CHECK leaves the target as an exception, which libFuzzer
// reports as a crash; any error but the one that the decoder promises does so, too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "check.h"

namespace fedcomm::fuzz {

/// The input from front to back. Past its end there are zeros.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : left_(std::as_bytes(std::span(data, size))) {}

  template <typename T>
  T number() {
    static_assert(std::is_unsigned_v<T>);
    T value = 0;
    const std::size_t n = std::min(sizeof(T), left_.size());
    if (n > 0) std::memcpy(&value, left_.data(), n);
    left_ = left_.subspan(n);
    return value;
  }
  /// A number below `end`, which is not 0; from as few bytes as will do.
  std::size_t below(std::size_t end) {
    if (end <= 256) return number<std::uint8_t>() % end;
    return end <= 65536 ? number<std::uint16_t>() % end : number<std::uint32_t>() % end;
  }
  /// How many elements: few most of the time. An input is to take a millisecond, so there are never
  /// so many that threads would share them.
  std::size_t size() { return number<std::uint8_t>() < 224 ? below(600) : below(6'000); }
  std::span<const std::byte> rest() { return left_; }

 private:
  std::span<const std::byte> left_;
};

/// A copy of bytes that ends where its memory ends and begins `skip` bytes from alignment.
class Exact {
 public:
  Exact(std::span<const std::byte> bytes, std::size_t skip)
      : skip_(skip), n_(bytes.size()), memory_(new std::byte[skip + bytes.size()]) {
    if (!bytes.empty()) std::memcpy(memory_.get() + skip, bytes.data(), n_);
  }
  std::span<std::byte> bytes() const { return {memory_.get() + skip_, n_}; }

 private:
  std::size_t skip_, n_;
  std::unique_ptr<std::byte[]> memory_;
};

/// The bytes over and over, up to n of them.
inline std::vector<std::byte> repeated(std::span<const std::byte> bytes, std::size_t n) {
  std::vector<std::byte> all(n);
  for (std::size_t i = 0; i < n && !bytes.empty(); ++i)
    all[i] = bytes[i % bytes.size()];
  return all;
}

/// Whether the call is through without an error; any but those of `kind` are findings.
template <typename Call>
bool accepts(ErrorKind kind, Call call) {
  try {
    call();
  } catch (const Error& error) {
    if (error.kind() != kind) throw;
    return false;
  }
  return true;
}

/// Equal bits. Two NaN are equal where arithmetic made them: which operand's bits a sum of two NaN
/// takes is the compiler's choice.
inline bool same_sum(float a, float b) {
  const bool both_nan = a != a && b != b;
  return both_nan || float_bits(a) == float_bits(b);
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace fedcomm::fuzz
