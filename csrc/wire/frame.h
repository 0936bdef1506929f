// The frame: the only thing on the wire. A fixed little-endian header of 96 bytes that says exactly
// which bytes of which operation follow, then the payload, then what the sealer appends.
//
// A header is hostile until parse_header has returned: it checks magic, version, its own CRC and
// every enum; the collective then checks that the frame is the one it expects.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace fedcomm {

constexpr std::uint32_t kMagic = 0x4d434446u;  // "FDCM"
constexpr std::uint8_t kWireVersion = 1;
constexpr std::size_t kHeaderBytes = 96;
constexpr std::uint16_t kEveryone = 0xffff;  // destination of a frame that all members get alike

enum class FrameKind : std::uint8_t { data = 1, abort = 2, goodbye = 3 };
enum class Operation : std::uint8_t { all_reduce = 1, all_gather = 2, broadcast = 3, probe = 4 };
enum class Algorithm : std::uint8_t { direct = 1, ring = 2, all_gather = 3, sparse = 4 };
enum class ReduceOp : std::uint8_t { sum = 1, mean = 2 };

struct FrameHeader {
  FrameKind kind = FrameKind::data;
  Operation operation = Operation::all_reduce;
  Algorithm algorithm = Algorithm::direct;
  ReduceOp reduce = ReduceOp::sum;
  std::uint8_t sealer = 0;        // FrameSealer::id
  std::uint8_t dtype = 0;         // DType of the result: members of another would hold other bits
  std::uint64_t session = 0;      // agreed when the group was opened
  std::uint32_t epoch = 0;        // membership, counted by rebuilds
  std::uint16_t source = 0;       // member that made the payload (not the one that forwards it)
  std::uint16_t destination = 0;  // member, or kEveryone
  std::uint64_t round = 0;
  std::uint32_t bucket = 0;
  // Operations of a group are numbered from 1. Of an abort frame: the one that failed, or 0 if all
  // shall end at once; of a goodbye: the last that the member has ended.
  std::uint32_t sequence = 0;
  std::uint32_t phase = 0;  // of the plan
  std::uint32_t chunk = 0;
  std::uint32_t segment = 0;
  std::uint32_t codec = 0;    // Codec::id, 0 for plain bytes
  std::uint64_t n_elems = 0;  // of the whole bucket (bytes for plain bytes)
  double weight = 1.0;        // of what the payload sums up
  std::uint64_t payload_bytes = 0;
};

/// Writes exactly kHeaderBytes, the header's CRC included.
void write_header(const FrameHeader& header, std::span<std::byte> out);

/// Throws corrupt_frame, or config for a peer of another wire version.
FrameHeader parse_header(std::span<const std::byte> frame);

/// Protects a frame between its encoder and its decoder. The stage where AES-256-GCM belongs.
class FrameSealer {
 public:
  virtual ~FrameSealer() = default;
  virtual std::uint8_t id() const = 0;
  /// Bytes appended to the payload.
  virtual std::size_t overhead_bytes() const = 0;
  /// Whether a sealed payload differs from the plain one.
  virtual bool changes_payload() const = 0;
  /// `frame` = header, plain payload, room for the overhead; sealed in place.
  virtual void seal(std::span<std::byte> frame) const = 0;
  /// Throws corrupt_frame or authentication. Writes the payload to `plain`, which is the frame's
  /// own payload where changes_payload() is false; the frame itself stays as it came, so that it
  /// can be forwarded.
  virtual void open(std::span<const std::byte> frame, std::span<std::byte> plain) const = 0;
};

/// Appends the CRC-32C of header and payload: the default.
class CrcSealer final : public FrameSealer {
 public:
  std::uint8_t id() const override { return 1; }
  std::size_t overhead_bytes() const override { return 4; }
  bool changes_payload() const override { return false; }
  void seal(std::span<std::byte> frame) const override;
  void open(std::span<const std::byte> frame, std::span<std::byte> plain) const override;
};

/// Changes a payload after its encoder and before its sealer, and back: the stage where a secure
/// aggregation masks integers. `header` identifies the payload, so that both ends can key a stream.
class PayloadMask {
 public:
  virtual ~PayloadMask() = default;
  virtual void outgoing(const FrameHeader& header, std::span<std::byte> payload) const = 0;
  virtual void incoming(const FrameHeader& header, std::span<std::byte> payload) const = 0;
};

/// Why a member broke the group, as the payload of an abort frame.
struct AbortNotice {
  std::uint8_t error_kind = 0;
  std::int64_t detail = -1;
  std::string message;
};

constexpr std::size_t kControlFrameBytes = 2048;  // of an abort or goodbye frame, header included

std::size_t write_abort(const AbortNotice& notice, std::span<std::byte> out);
AbortNotice parse_abort(std::span<const std::byte> payload);

}  // namespace fedcomm
