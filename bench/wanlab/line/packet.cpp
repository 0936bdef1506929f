#include "packet.h"

#include <algorithm>
#include <cstring>

namespace fedcomm::wanlab {
namespace {

constexpr std::size_t kVirtio = sizeof(VirtioHeader);
constexpr std::size_t kIpv6Header = 40;
constexpr std::uint8_t kFin = 0x01, kPush = 0x08, kCongestionReduced = 0x80;

std::uint32_t byte_at(Bytes bytes, std::size_t at) {
  return std::to_integer<std::uint32_t>(bytes[at]);
}

std::uint32_t load16(Bytes bytes, std::size_t at) {
  return byte_at(bytes, at) << 8 | byte_at(bytes, at + 1);
}

std::uint32_t load32(Bytes bytes, std::size_t at) {
  return load16(bytes, at) << 16 | load16(bytes, at + 2);
}

void store16(std::span<std::byte> bytes, std::size_t at, std::uint32_t value) {
  bytes[at] = static_cast<std::byte>(value >> 8 & 0xff);
  bytes[at + 1] = static_cast<std::byte>(value & 0xff);
}

void store32(std::span<std::byte> bytes, std::size_t at, std::uint32_t value) {
  store16(bytes, at, value >> 16);
  store16(bytes, at + 2, value & 0xffff);
}

/// One's complement sum, folded (RFC 1071). `bytes` has an even size.
std::uint32_t folded_sum(Bytes bytes, std::uint32_t sum) {
  for (std::size_t i = 0; i < bytes.size(); i += 2)
    sum += load16(bytes, i);
  while (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16);
  return sum;
}

}  // namespace

std::size_t Layout::wire_bytes(std::size_t i) const {
  const std::size_t begin = i * segment_bytes;
  return header_bytes - kVirtio + std::min(segment_bytes, payload_bytes - begin);
}

std::optional<Layout> parse(Bytes packet) {
  if (packet.size() < kVirtio + 20) return std::nullopt;
  VirtioHeader virtio;
  std::memcpy(&virtio, packet.data(), kVirtio);
  const Bytes ip = packet.subspan(kVirtio);
  Layout layout;
  std::size_t ip_header = 0;
  switch (byte_at(ip, 0) >> 4) {
    case 4:
      ip_header = (byte_at(ip, 0) & 0xf) * std::size_t{4};
      if (ip_header < 20 || byte_at(ip, 16) != 10) return std::nullopt;
      layout.destination = static_cast<std::uint16_t>(load16(ip, 18));
      break;
    case 6:
      ip_header = kIpv6Header;
      if (ip.size() < kIpv6Header || byte_at(ip, 24) != 0xfd) return std::nullopt;
      layout.destination = static_cast<std::uint16_t>(load16(ip, 38));
      layout.ipv6 = true;
      break;
    default: return std::nullopt;
  }
  layout.header_bytes = kVirtio + ip_header;
  if (virtio.gso_type != VirtioHeader::kSingle) {
    const std::size_t begin = virtio.checksum_begin;  // of the transport's header
    if (virtio.segment_bytes == 0 || begin < ip_header || begin + 20 > ip.size() ||
        virtio.checksum_offset > 16)
      return std::nullopt;
    std::size_t header = 8;
    switch (virtio.gso_type) {
      case VirtioHeader::kTcp4:
      case VirtioHeader::kTcp6:
        layout.transport = Transport::tcp;
        header = (byte_at(ip, begin + 12) >> 4) * std::size_t{4};
        if (header < 20) return std::nullopt;
        break;
      case VirtioHeader::kUdp: layout.transport = Transport::udp; break;
      default: return std::nullopt;  // nothing else was offered to the kernel
    }
    layout.header_bytes = kVirtio + begin + header;
    layout.segment_bytes = virtio.segment_bytes;
  }
  if (layout.header_bytes > packet.size()) return std::nullopt;
  layout.payload_bytes = packet.size() - layout.header_bytes;
  if (layout.segment_bytes == 0) {
    layout.segment_bytes = layout.payload_bytes;
  } else {
    layout.n_segments = std::max(
        std::size_t{1}, (layout.payload_bytes + layout.segment_bytes - 1) / layout.segment_bytes);
  }
  return layout;
}

std::vector<std::byte> cut(Bytes packet, const Layout& layout, std::size_t first, std::size_t n) {
  if (n == layout.n_segments) return {packet.begin(), packet.end()};
  const std::size_t begin = first * layout.segment_bytes;
  const std::size_t end = std::min(begin + n * layout.segment_bytes, layout.payload_bytes);
  const Bytes headers = packet.first(layout.header_bytes);
  const Bytes payload = packet.subspan(layout.header_bytes + begin, end - begin);
  std::vector<std::byte> piece;
  piece.reserve(headers.size() + payload.size());
  piece.insert(piece.end(), headers.begin(), headers.end());
  piece.insert(piece.end(), payload.begin(), payload.end());

  VirtioHeader virtio;
  std::memcpy(&virtio, piece.data(), kVirtio);
  if (n == 1) {
    virtio.gso_type = VirtioHeader::kSingle;
    virtio.segment_bytes = 0;
  }
  virtio.header_bytes = static_cast<std::uint16_t>(layout.header_bytes - kVirtio);
  std::memcpy(piece.data(), &virtio, kVirtio);

  const std::span<std::byte> ip = std::span(piece).subspan(kVirtio);
  if (layout.ipv6) {
    store16(ip, 4, static_cast<std::uint32_t>(ip.size() - kIpv6Header));
  } else {
    store16(ip, 2, static_cast<std::uint32_t>(ip.size()));
    store16(ip, 4, load16(ip, 4) + static_cast<std::uint32_t>(first));
    const std::size_t ip_header = (byte_at(ip, 0) & 0xf) * std::size_t{4};
    store16(ip, 10, 0);
    store16(ip, 10, ~folded_sum(ip.first(ip_header), 0));
  }
  const std::size_t transport = virtio.checksum_begin;
  const auto length = static_cast<std::uint32_t>(ip.size() - transport);
  std::uint32_t protocol = 0;
  switch (layout.transport) {
    case Transport::not_read: return piece;  // it has one segment
    case Transport::tcp:
      protocol = 6;
      store32(ip, transport + 4, load32(ip, transport + 4) + static_cast<std::uint32_t>(begin));
      if (end < layout.payload_bytes) ip[transport + 13] &= std::byte{0xff & ~(kFin | kPush)};
      if (first > 0) ip[transport + 13] &= std::byte{0xff & ~kCongestionReduced};
      break;
    case Transport::udp:
      protocol = 17;
      store16(ip, transport + 4, length);
      break;
  }
  // What the kernel has put where the checksum goes: the sum of the pseudo header (addresses,
  // length, protocol), which whoever completes the checksum builds upon.
  const std::size_t addresses = layout.ipv6 ? 8 : 12, n_addresses = layout.ipv6 ? 32 : 8;
  store16(ip, transport + virtio.checksum_offset,
          folded_sum(ip.subspan(addresses, n_addresses), length + protocol));
  return piece;
}

}  // namespace fedcomm::wanlab
