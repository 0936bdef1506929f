#include "wire/frame.h"

#include <algorithm>
#include <cstring>

#include "wire/bytes.h"
#include "wire/crc32c.h"

namespace fedcomm {
namespace {

constexpr std::size_t kCrcOffset = kHeaderBytes - sizeof(std::uint32_t);

template <typename E>
E checked_enum(std::uint8_t raw, E last, const char* what) {
  if (raw < 1 || raw > static_cast<std::uint8_t>(last)) {
    fail(ErrorKind::corrupt_frame,
         std::string("frame header has an unknown ") + what + " " + std::to_string(raw));
  }
  return static_cast<E>(raw);
}

/// A terminal will show it, and would obey them: U+0000 to U+001F, and U+007F to U+009F, which are
/// two bytes from 0x80 on.
void hide_control_characters(std::string& text) {
  unsigned char before = 0;
  for (char& c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool second = before == 0xc2 && byte >= 0x80 && byte < 0xa0;
    if (byte < 0x20 || byte == 0x7f || second) c = ' ';
    before = byte;
  }
}

}  // namespace

void write_header(const FrameHeader& header, std::span<std::byte> out) {
  ByteWriter writer(out.first(kHeaderBytes));
  writer.put(kMagic);
  writer.put(kWireVersion);
  writer.put(static_cast<std::uint8_t>(header.kind));
  writer.put(static_cast<std::uint8_t>(header.operation));
  writer.put(static_cast<std::uint8_t>(header.algorithm));
  writer.put(static_cast<std::uint8_t>(header.reduce));
  writer.put(header.sealer);
  writer.put(header.dtype);
  writer.put(std::uint8_t{0});  // reserved
  writer.put(header.epoch);
  writer.put(header.session);
  writer.put(header.round);
  writer.put(header.source);
  writer.put(header.destination);
  writer.put(header.bucket);
  writer.put(header.sequence);
  writer.put(header.phase);
  writer.put(header.chunk);
  writer.put(header.segment);
  writer.put(header.codec);
  writer.put(std::uint32_t{0});  // reserved
  writer.put(header.n_elems);
  writer.put(header.weight);
  writer.put(header.payload_bytes);
  writer.put(std::uint32_t{0});  // reserved
  expect(writer.used() == kCrcOffset, "header layout");
  writer.put(crc32c(out.first(kCrcOffset)));
}

FrameHeader parse_header(std::span<const std::byte> frame) {
  if (frame.size() < kHeaderBytes) {
    fail(ErrorKind::corrupt_frame,
         "frame of " + std::to_string(frame.size()) + " bytes is shorter than a header");
  }
  ByteReader reader(frame.first(kHeaderBytes));
  if (reader.get<std::uint32_t>() != kMagic) {
    fail(ErrorKind::corrupt_frame, "frame does not start with pyfedcomm's magic number");
  }
  const auto version = reader.get<std::uint8_t>();
  if (version != kWireVersion) {
    fail(ErrorKind::config, "peer speaks wire version " + std::to_string(version) +
                                ", this one speaks " + std::to_string(kWireVersion) +
                                "; install the same pyfedcomm on all clouds");
  }
  const std::uint32_t crc = ByteReader(frame.subspan(kCrcOffset)).get<std::uint32_t>();
  if (crc != crc32c(frame.first(kCrcOffset))) {
    fail(ErrorKind::corrupt_frame, "frame header does not match its checksum");
  }
  FrameHeader header;
  header.kind = checked_enum(reader.get<std::uint8_t>(), FrameKind::goodbye, "kind");
  header.operation = checked_enum(reader.get<std::uint8_t>(), Operation::probe, "operation");
  header.algorithm = checked_enum(reader.get<std::uint8_t>(), Algorithm::sparse, "algorithm");
  header.reduce = checked_enum(reader.get<std::uint8_t>(), ReduceOp::mean, "reduction");
  header.sealer = reader.get<std::uint8_t>();
  header.dtype = reader.get<std::uint8_t>();
  reader.get<std::uint8_t>();
  header.epoch = reader.get<std::uint32_t>();
  header.session = reader.get<std::uint64_t>();
  header.round = reader.get<std::uint64_t>();
  header.source = reader.get<std::uint16_t>();
  header.destination = reader.get<std::uint16_t>();
  header.bucket = reader.get<std::uint32_t>();
  header.sequence = reader.get<std::uint32_t>();
  header.phase = reader.get<std::uint32_t>();
  header.chunk = reader.get<std::uint32_t>();
  header.segment = reader.get<std::uint32_t>();
  header.codec = reader.get<std::uint32_t>();
  reader.get<std::uint32_t>();
  header.n_elems = reader.get<std::uint64_t>();
  header.weight = reader.get<double>();
  header.payload_bytes = reader.get<std::uint64_t>();
  return header;
}

void CrcSealer::seal(std::span<std::byte> frame) const {
  const std::size_t covered = frame.size() - overhead_bytes();
  ByteWriter(frame.subspan(covered)).put(crc32c(frame.first(covered)));
}

void CrcSealer::open(std::span<const std::byte> frame, std::span<std::byte> plain) const {
  if (frame.size() < kHeaderBytes + overhead_bytes()) {
    fail(ErrorKind::corrupt_frame, "frame is too short for its checksum");
  }
  const std::size_t covered = frame.size() - overhead_bytes();
  if (ByteReader(frame.subspan(covered)).get<std::uint32_t>() != crc32c(frame.first(covered))) {
    fail(ErrorKind::corrupt_frame, "frame does not match its checksum");
  }
  const auto payload = frame.subspan(kHeaderBytes, covered - kHeaderBytes);
  if (plain.data() != payload.data() && !payload.empty()) {
    std::memcpy(plain.data(), payload.data(), payload.size());
  }
}

std::size_t write_abort(const AbortNotice& notice, std::span<std::byte> out) {
  ByteWriter writer(out);
  writer.put(notice.error_kind);
  writer.put(notice.detail);
  const std::size_t room = out.size() - writer.used() - sizeof(std::uint32_t);
  const std::size_t n = std::min(notice.message.size(), room);
  writer.put(static_cast<std::uint32_t>(n));
  writer.put_bytes(std::as_bytes(std::span(notice.message.data(), n)));
  return writer.used();
}

AbortNotice parse_abort(std::span<const std::byte> payload) {
  ByteReader reader(payload);
  AbortNotice notice;
  notice.error_kind = reader.get<std::uint8_t>();
  notice.detail = reader.get<std::int64_t>();
  const auto text = reader.take(reader.get<std::uint32_t>());
  notice.message.assign(reinterpret_cast<const char*>(text.data()), text.size());
  hide_control_characters(notice.message);
  return notice;
}

}  // namespace fedcomm
