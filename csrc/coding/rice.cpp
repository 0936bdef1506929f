// Rice coding of gaps. Works on blocks of indices, between scratch arrays that stay in L1.
#include <bit>
#include <numeric>
#include <string>

#include "coding/blocks.h"
#include "coding/coding.h"

namespace fedcomm {
namespace {

void check_range(std::uint64_t n, std::size_t k) {
  if (n > kMaxIndexRange || k > n) {
    fail(ErrorKind::invalid_argument, "[rice] " + std::to_string(k) + " indices of " +
                                          std::to_string(n) + ": the range holds at most 2^32");
  }
}

[[noreturn]] void reject(std::uint64_t n, std::size_t k, const std::string& what) {
  fail(ErrorKind::corrupt_frame,
       "[rice] " + std::to_string(k) + " indices of " + std::to_string(n) + ": " + what);
}

/// The stream of quotients. Every write is bounds-checked, one check a block.
class UnaryWriter {
 public:
  UnaryWriter(const CodingKernels& kernels, std::span<std::byte> out)
      : kernels_(kernels), out_(out) {}

  /// Appends gaps[i] >> shift for at most kCodingBlock gaps.
  void put(const std::uint32_t* gaps, std::size_t n, unsigned shift) {
    std::byte scratch[kCodingBlock / kCodingGroup * kMaxGroupBits / 8 + 8];
    for (std::size_t i = 0; i < n;) {
      std::byte* end = scratch;
      i += kCodingGroup * kernels_.put_unary(gaps + i, (n - i) / kCodingGroup, shift, tail_, end);
      put_bytes({scratch, end});
      // One by one where the kernel stopped: at a long group, or at the end.
      for (const std::size_t stop = std::min(i + kCodingGroup, n); i < stop; ++i)
        put_one(gaps[i] >> shift);
    }
  }

  std::size_t finish() {
    const auto last = static_cast<std::byte>(tail_.bits);
    if (tail_.fill > 0) put_bytes({&last, 1});
    return used_;
  }

 private:
  void put_bytes(std::span<const std::byte> bytes) {
    expect(bytes.size() <= out_.size() - used_, "the bound on a Rice code is wrong");
    if (!bytes.empty()) std::memcpy(out_.data() + used_, bytes.data(), bytes.size());
    used_ += bytes.size();
  }

  void put_one(std::uint32_t quotient) {
    const std::uint64_t one_at = std::uint64_t{tail_.fill} + quotient;
    if (one_at >= 8) {
      const auto first = static_cast<std::byte>(tail_.bits);
      const auto n_zeros = static_cast<std::size_t>(one_at / 8 - 1);
      put_bytes({&first, 1});
      expect(n_zeros <= out_.size() - used_, "the bound on a Rice code is wrong");
      std::memset(out_.data() + used_, 0, n_zeros);
      used_ += n_zeros;
      tail_.bits = 0;
    }
    tail_.bits |= std::uint64_t{1} << (one_at % 8);
    tail_.fill = static_cast<unsigned>(one_at % 8 + 1);
    if (tail_.fill == 8) {
      finish();
      tail_ = {};
    }
  }

  const CodingKernels& kernels_;
  std::span<std::byte> out_;
  std::size_t used_ = 0;
  BitTail tail_;
};

/// The stream of quotients, as the positions of its one bits, a block at a time.
class UnaryReader {
 public:
  UnaryReader(const CodingKernels& kernels, std::span<const std::byte> in)
      : kernels_(kernels), in_(in) {}

  /// Makes positions() hold at least n (<= kCodingBlock) more; false if there are not so many.
  bool fill(std::size_t n) {
    while (n_held_ < n && used_ < in_.size()) {
      const std::size_t n_bytes = std::min(kSlice, in_.size() - used_);
      n_held_ += kernels_.take_unary(in_.data() + used_, n_bytes,
                                     static_cast<std::uint32_t>(8 * used_), positions_ + n_held_);
      used_ += n_bytes;
    }
    return n_held_ >= n;
  }
  const std::uint32_t* positions() const { return positions_; }
  void drop(std::size_t n) {
    n_held_ -= n;
    std::memmove(positions_, positions_ + n, n_held_ * sizeof(positions_[0]));
  }
  bool at_end() const { return n_held_ == 0 && used_ == in_.size(); }

 private:
  static constexpr std::size_t kSlice = 32;  // bytes read at a time: few are left to move

  const CodingKernels& kernels_;
  std::span<const std::byte> in_;
  std::size_t used_ = 0, n_held_ = 0;
  std::uint32_t positions_[kCodingBlock + 8 * kSlice + kUnarySlack];
};

}  // namespace

unsigned rice_shift(std::uint64_t n, std::size_t k) {
  check_range(n, k);
  return shift_of(n, k);
}

std::size_t rice_max_bytes(std::uint64_t n, std::size_t k) {
  const unsigned shift = rice_shift(n, k);
  if (k == 0 || k == n) return 0;
  return bytes_of_bits(std::uint64_t{k} * shift) + bytes_of_bits(max_unary_bits(n, k, shift));
}

std::size_t rice_encode(std::span<const std::uint32_t> indices, std::uint64_t n,
                        std::span<std::byte> out) {
  const std::size_t k = indices.size();
  const unsigned shift = rice_shift(n, k);
  const std::size_t max_bytes = rice_max_bytes(n, k);
  if (out.size() < max_bytes) {
    fail(ErrorKind::invalid_argument, "[rice] the output holds " + std::to_string(out.size()) +
                                          " bytes; it may take " + std::to_string(max_bytes));
  }
  if (k == 0) return 0;
  const CodingKernels& kernels = coding_kernels();
  const std::size_t low_bytes = bytes_of_bits(std::uint64_t{k} * shift);
  // A bad set cannot make the stream longer than the bound: each block is checked first.
  const bool all = k == n;
  UnaryWriter unary(kernels, out.subspan(all ? 0 : low_bytes, max_bytes - (all ? 0 : low_bytes)));
  std::uint32_t gaps[kCodingBlock];
  for (std::size_t i = 0; i < k; i += kCodingBlock) {
    const std::size_t n_here = std::min(kCodingBlock, k - i);
    const std::uint32_t* here = indices.data() + i;
    bool good = true;
    if (i == 0) {
      gaps[0] = here[0];
      good = kernels.take_gaps(here + 1, n_here - 1, gaps + 1);
    } else {
      good = kernels.take_gaps(here, n_here, gaps);
    }
    // The later indices need room as well, which bounds what this block's quotients may add up to.
    if (!good || here[n_here - 1] >= n - (k - i - n_here)) {
      fail(ErrorKind::invalid_argument,
           "[rice] the indices are not strictly increasing below " + std::to_string(n));
    }
    if (all) continue;
    unary.put(gaps, n_here, shift);
    write_block(kernels, gaps, n_here, shift, out.data() + i / 8 * shift);
  }
  return all ? 0 : low_bytes + unary.finish();
}

void rice_decode(std::span<const std::byte> bytes, std::uint64_t n,
                 std::span<std::uint32_t> indices) {
  const std::size_t k = indices.size();
  const unsigned shift = rice_shift(n, k);
  if (bytes.size() > rice_max_bytes(n, k)) reject(n, k, "more bytes than any code takes");
  if (k == 0) return;
  if (k == n) {
    std::iota(indices.begin(), indices.end(), 0u);
    return;
  }
  const std::size_t low_bytes = bytes_of_bits(std::uint64_t{k} * shift);
  if (bytes.size() <= low_bytes) reject(n, k, "the bytes end inside the low bits");
  if (!padding_is_zero(bytes.data(), std::uint64_t{k} * shift))
    reject(n, k, "padding behind the low bits is not zero");
  // From here on the code is unique: the last one bit stands in the last byte, and all others are
  // counted.
  if (bytes.back() == std::byte{0}) reject(n, k, "zero bytes behind the last quotient");

  const CodingKernels& kernels = coding_kernels();
  UnaryReader unary(kernels, bytes.subspan(low_bytes));
  std::uint32_t lows[kCodingBlock];
  std::uint32_t carry = (1u << shift) - 1;
  for (std::size_t i = 0; i < k; i += kCodingBlock) {
    const std::size_t n_here = std::min(kCodingBlock, k - i);
    if (!unary.fill(n_here)) reject(n, k, "there are fewer quotients");
    read_block(kernels, bytes.data() + i / 8 * shift, n_here, shift, lows);
    const std::size_t n_groups = n_here / kCodingGroup, n_done = n_groups * kCodingGroup;
    kernels.join(unary.positions(), lows, n_groups, shift, carry, indices.data() + i);
    if (n_done < n_here) {
      std::uint32_t positions[kCodingGroup] = {}, joined[kCodingGroup];
      std::copy(unary.positions() + n_done, unary.positions() + n_here, positions);
      kernels.join(positions, lows + n_done, 1, shift, carry, joined);
      std::copy(joined, joined + (n_here - n_done), indices.data() + i + n_done);
    }
    unary.drop(n_here);
  }
  if (!unary.at_end()) reject(n, k, "there are more quotients");

  // All sums above are modulo 2^32. The last index in full: the quotients' sum is where the last
  // one bit stands, and the low bits' sum is below 2^32 (see rice_shift), so that its remainder is
  // all of it. Gaps are not negative: if the last index is below n, none of the sums wrapped.
  const std::uint64_t last_one = std::uint64_t{8} * (bytes.size() - low_bytes - 1) +
                                 std::bit_width(std::to_integer<unsigned>(bytes.back())) - 1;
  const std::uint64_t without_lows = ((last_one - (k - 1)) << shift) + (k - 1);
  const std::uint64_t last =
      without_lows + (indices.back() - static_cast<std::uint32_t>(without_lows));
  if (last >= n) reject(n, k, "the last index is " + std::to_string(last));
}

}  // namespace fedcomm
