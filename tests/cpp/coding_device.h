// What the tests of index coding on a GPU share: arrays at odd addresses between guards, and
// decoding of many codes at once. Only for builds with CUDA.
#pragma once

#include "coding_reference.h"
#include "device.h"

namespace fedcomm::testing {

/// Throws with the words of what the case was.
#define CHECK_CASE(condition, text) \
  if (!(condition)) fedcomm::testing::report(__FILE__, __LINE__, #condition " not true: " + (text))

inline constexpr std::size_t kGuardBytes = 64;

/// n elements, `offset` of them from an aligned address, between guards.
template <typename T>
class Guarded {
 public:
  explicit Guarded(std::size_t n, std::size_t offset = 0)
      : n_(n), begin_(kGuardBytes / sizeof(T) + offset), array_(begin_ + n + kGuardBytes) {
    array_.fill_bytes(0x5a);
  }
  Guarded(const std::vector<T>& values, std::size_t offset) : Guarded(values.size(), offset) {
    array_.put(begin_, std::span<const T>(values));
  }
  std::span<T> span() const { return {array_.data() + begin_, n_}; }
  void put(const std::vector<T>& values) { array_.put(begin_, std::span<const T>(values)); }
  std::vector<T> get(std::size_t n) const { return array_.get(begin_, n); }
  std::vector<T> get() const { return get(n_); }
  /// Whether all but the first n_used elements is as it was made.
  bool intact(std::size_t n_used) const {
    std::vector<T> rest = array_.get(0, begin_);
    const std::vector<T> behind = array_.get(begin_ + n_used, n_ - n_used + kGuardBytes);
    rest.insert(rest.end(), behind.begin(), behind.end());
    const auto* bytes = reinterpret_cast<const unsigned char*>(rest.data());
    return std::all_of(bytes, bytes + rest.size() * sizeof(T),
                       [](unsigned char byte) { return byte == 0x5a; });
  }
  bool intact() const { return intact(n_); }

 private:
  std::size_t n_, begin_;
  DeviceArray<T> array_;
};

/// One value on the device.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(T value) : array_(std::vector<T>{value}) {}
  T* data() const { return array_.data(); }
  T get() const { return array_.get()[0]; }

 private:
  DeviceArray<T> array_;
};

inline std::string size_text(std::uint64_t n, std::size_t k) {
  return std::to_string(k) + " of " + std::to_string(n);
}

/// Byte strings that are to be decoded to k indices each, with one transfer each way for all.
/// verdict(i) is what came of one; decode(bytes, indices, corrupt) starts the work on one.
class DecodeBatch {
 public:
  explicit DecodeBatch(std::size_t k) : k_(k) {}

  void add(const Bytes& bytes) {
    offsets_.push_back(all_.size() + offsets_.size() % 5);  // at any address
    all_.resize(offsets_.back());
    all_.insert(all_.end(), bytes.begin(), bytes.end());
    sizes_.push_back(bytes.size());
  }
  std::size_t size() const { return sizes_.size(); }

  template <typename Decode>
  void run(Decode decode) {
    const std::size_t stride = k_ + kBetween;
    const DeviceArray<std::byte> bytes{std::span<const std::byte>(all_)};
    Guarded<std::uint32_t> indices(size() * stride);
    const DeviceArray<std::int32_t> corrupt{
        std::span<const std::int32_t>(std::vector<std::int32_t>(size(), 0))};
    for (std::size_t i = 0; i < size(); ++i) {
      decode(std::span<const std::byte>(bytes.data() + offsets_[i], sizes_[i]),
             indices.span().subspan(i * stride, k_), corrupt.data() + i);
    }
    check_cuda(cudaDeviceSynchronize());
    indices_ = indices.get();
    corrupt_ = corrupt.get();
    CHECK(indices.intact());
  }

  Bytes bytes(std::size_t i) const {
    const auto begin = all_.begin() + static_cast<std::ptrdiff_t>(offsets_[i]);
    return Bytes(begin, begin + static_cast<std::ptrdiff_t>(sizes_[i]));
  }
  std::optional<Indices> verdict(std::size_t i) const {
    const auto begin = indices_.begin() + static_cast<std::ptrdiff_t>(i * (k_ + kBetween));
    const auto end = begin + static_cast<std::ptrdiff_t>(k_);
    CHECK(std::all_of(end, end + kBetween, [](std::uint32_t v) { return v == 0x5a5a5a5au; }));
    CHECK(corrupt_[i] == 0 || corrupt_[i] == 1);
    return corrupt_[i] == 0 ? std::optional(Indices(begin, end)) : std::nullopt;
  }

 private:
  static constexpr std::ptrdiff_t kBetween = 3;

  std::size_t k_;
  Bytes all_;
  std::vector<std::size_t> offsets_, sizes_;
  Indices indices_;
  std::vector<std::int32_t> corrupt_;
};

}  // namespace fedcomm::testing
