// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78): detects damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fedcomm {

/// CRC-32C of `data`; pass an earlier result as `crc` to continue it.
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc = 0);

namespace detail {
/// The table version that crc32c falls back to; tests compare the two.
std::uint32_t crc32c_portable(std::span<const std::byte> data, std::uint32_t crc = 0);
}  // namespace detail

}  // namespace fedcomm
