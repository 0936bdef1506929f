// Widths up to kMaxKernelWidth go through kernels. Wider ones, one value at a time: a Rice shift
// that large means at most 65,536 indices.
#include "coding/blocks.h"

namespace fedcomm {
namespace {

constexpr std::size_t kScratchBytes = kCodingBlock * kMaxWidth / 8 + kPackSlack;

void pack_wide(const std::uint32_t* values, std::size_t n, unsigned width, std::byte* out) {
  std::uint64_t bits = 0;
  unsigned fill = 0;
  for (std::size_t i = 0; i < n; ++i) {
    bits |= (values[i] & ((std::uint64_t{1} << width) - 1)) << fill;
    std::memcpy(out, &bits, sizeof(bits));
    fill += width;
    out += fill / 8;
    bits >>= fill & ~7u;
    fill %= 8;
  }
}

void unpack_wide(const std::byte* in, std::size_t n, unsigned width, std::uint32_t* values) {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint64_t bits;
    std::memcpy(&bits, in + i * width / 8, sizeof(bits));
    values[i] =
        static_cast<std::uint32_t>(bits >> (i * width % 8) & ((std::uint64_t{1} << width) - 1));
  }
}

}  // namespace

void write_block(const CodingKernels& kernels, std::uint32_t* values, std::size_t n, unsigned width,
                 std::byte* out) {
  std::byte scratch[kScratchBytes];
  const std::size_t n_groups = (n + kCodingGroup - 1) / kCodingGroup;
  std::fill(values + n, values + n_groups * kCodingGroup, 0u);
  if (width <= kMaxKernelWidth) {
    kernels.pack(values, n_groups, width, scratch);
  } else {
    pack_wide(values, n_groups * kCodingGroup, width, scratch);
  }
  if (width > 0) std::memcpy(out, scratch, bytes_of_bits(n * width));  // else it may be null
}

void read_block(const CodingKernels& kernels, const std::byte* in, std::size_t n, unsigned width,
                std::uint32_t* values) {
  std::byte scratch[kScratchBytes];
  const std::size_t n_groups = (n + kCodingGroup - 1) / kCodingGroup;
  const std::size_t n_bytes = bytes_of_bits(n * width);
  if (width > 0) std::memcpy(scratch, in, n_bytes);       // else it may be null
  std::memset(scratch + n_bytes, 0, width + kPackSlack);  // the rest of a group, and the slack
  if (width <= kMaxKernelWidth) {
    kernels.unpack(scratch, n_groups, width, values);
  } else {
    unpack_wide(scratch, n_groups * kCodingGroup, width, values);
  }
}

}  // namespace fedcomm
