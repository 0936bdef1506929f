// IP packets as a TUN device with IFF_VNET_HDR hands them over: a virtio header, then one packet,
// or one that stands for many (segmentation offload). What is counted and lost on a wire are
// the many; this file finds them and cuts packets between them. It computes no checksum of
// payloads: the kernel leaves those to the device, and takes them back as it gave them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace fedcomm::wanlab {

using Bytes = std::span<const std::byte>;

/// struct virtio_net_hdr, whose header file C++ cannot read (a field is called `class`).
struct VirtioHeader {
  static constexpr std::uint8_t kSingle = 0, kTcp4 = 1, kTcp6 = 4, kUdp = 5;  // gso_type
  std::uint8_t flags = 0;
  std::uint8_t gso_type = kSingle;
  std::uint16_t header_bytes = 0;
  std::uint16_t segment_bytes = 0;  // payload of each segment; 0 for a single packet
  std::uint16_t checksum_begin = 0, checksum_offset = 0;
};
static_assert(sizeof(VirtioHeader) == 10);

enum class Transport : std::uint8_t { not_read, tcp, udp };

/// Where the parts of a packet are. Headers are those of virtio, IP and, where it has many
/// segments, TCP or UDP; each segment is sent with its own copy of the last two.
struct Layout {
  std::size_t header_bytes = 0;   // with virtio's
  std::size_t payload_bytes = 0;  // of all segments
  std::size_t segment_bytes = 0;  // payload of each segment but the last
  std::size_t n_segments = 1;
  std::uint16_t destination = 0;  // the last 16 bits of the address
  bool ipv6 = false;
  Transport transport = Transport::not_read;

  /// Bytes of segment `i` on the wire, from its IP header on.
  std::size_t wire_bytes(std::size_t i) const;
};

/// Nothing if it is no unicast packet of the laboratory's networks (10/8 and fd00::/8), or is
/// broken.
std::optional<Layout> parse(Bytes packet);

/// Segments [first, first + n) of `packet` as a packet of its own, virtio header included.
std::vector<std::byte> cut(Bytes packet, const Layout& layout, std::size_t first, std::size_t n);

}  // namespace fedcomm::wanlab
