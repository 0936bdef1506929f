#include "transport/tcp_wire.h"

#include "base/error.h"
#include "wire/bytes.h"
#include "wire/crc32c.h"

namespace fedcomm::tcp {
namespace {

constexpr std::uint32_t kHelloMagic = 0x4c434446u;  // "FDCL"
constexpr std::uint16_t kRecordMagic = 0x4446u;     // "FD"
constexpr std::size_t kCrcBytes = sizeof(std::uint32_t);

std::uint32_t crc_before_end(std::span<const std::byte> bytes) {
  return crc32c(bytes.first(bytes.size() - kCrcBytes));
}

bool matches_crc(std::span<const std::byte> bytes) {
  return ByteReader(bytes.last(kCrcBytes)).get<std::uint32_t>() == crc_before_end(bytes);
}

}  // namespace

std::array<std::byte, kHelloBytes> write_hello(const Hello& hello) {
  std::array<std::byte, kHelloBytes> bytes;
  ByteWriter writer(bytes);
  writer.put(kHelloMagic);
  writer.put(kVersion);
  writer.put(static_cast<std::uint8_t>(hello.status));
  writer.put(hello.stream);
  writer.put(hello.n_streams);
  writer.put(std::uint16_t{0});  // reserved
  writer.put(hello.from);
  writer.put(hello.to);
  writer.put(hello.session);
  writer.put_bytes(hello.token);
  writer.put(hello.incarnation);
  expect(writer.used() == kHelloBytes - kCrcBytes, "hello layout");
  writer.put(crc_before_end(bytes));
  return bytes;
}

Hello parse_hello(std::span<const std::byte, kHelloBytes> bytes) {
  ByteReader reader(bytes);
  if (reader.get<std::uint32_t>() != kHelloMagic) {
    fail(ErrorKind::corrupt_frame, "does not speak pyfedcomm's protocol");
  }
  const auto version = reader.get<std::uint8_t>();
  if (version != kVersion) {
    fail(ErrorKind::config,
         "speaks version " + std::to_string(version) + " of the TCP transport, this one speaks " +
             std::to_string(kVersion) + "; install the same pyfedcomm on all clouds");
  }
  if (!matches_crc(bytes)) fail(ErrorKind::corrupt_frame, "sent a damaged hello");
  Hello hello;
  const auto status = reader.get<std::uint8_t>();
  if (status < 1 || status > static_cast<std::uint8_t>(HelloStatus::restarted)) {
    fail(ErrorKind::corrupt_frame, "sent a hello of unknown kind");
  }
  hello.status = static_cast<HelloStatus>(status);
  hello.stream = reader.get<std::uint16_t>();
  hello.n_streams = reader.get<std::uint16_t>();
  reader.get<std::uint16_t>();
  hello.from = reader.get<std::uint32_t>();
  hello.to = reader.get<std::uint32_t>();
  hello.session = reader.get<std::uint64_t>();
  const auto token = reader.take(hello.token.size());
  std::copy(token.begin(), token.end(), hello.token.begin());
  hello.incarnation = reader.get<std::uint64_t>();
  if (hello.stream >= kMaxStreams)
    fail(ErrorKind::corrupt_frame, "sent a hello of a stream " + std::to_string(hello.stream));
  return hello;
}

bool same(const Token& a, const Token& b) {
  std::byte difference{0};
  for (std::size_t i = 0; i < a.size(); ++i)
    difference |= a[i] ^ b[i];
  return difference == std::byte{0};
}

void write_record(const Record& record, std::span<std::byte, kRecordBytes> out) {
  ByteWriter writer(out);
  writer.put(kRecordMagic);
  writer.put(static_cast<std::uint8_t>(record.kind));
  writer.put(static_cast<std::uint8_t>(record.ordered ? 1 : 0));
  writer.put(record.n_bytes);
  writer.put(record.number);
  writer.put(record.frame);
  writer.put(record.group);
  writer.put(record.epoch);
  writer.put(record.tag.operation);
  writer.put(record.tag.slot);
  writer.put(record.frame_bytes);
  writer.put(record.offset);
  expect(writer.used() == kRecordBytes - kCrcBytes, "record layout");
  writer.put(crc_before_end(out));
}

Record parse_record(std::span<const std::byte, kRecordBytes> bytes) {
  ByteReader reader(bytes);
  if (reader.get<std::uint16_t>() != kRecordMagic || !matches_crc(bytes)) {
    fail(ErrorKind::corrupt_frame, "sent something that is no record");
  }
  const auto kind = reader.get<std::uint8_t>();
  if (kind < 1 || kind > static_cast<std::uint8_t>(RecordKind::ack)) {
    fail(ErrorKind::corrupt_frame, "sent a record of unknown kind");
  }
  Record record;
  record.kind = static_cast<RecordKind>(kind);
  record.ordered = (reader.get<std::uint8_t>() & 1u) != 0;
  record.n_bytes = reader.get<std::uint32_t>();
  record.number = reader.get<std::uint64_t>();
  record.frame = reader.get<std::uint64_t>();
  record.group = reader.get<std::uint32_t>();
  record.epoch = reader.get<std::uint32_t>();
  record.tag.operation = reader.get<std::uint32_t>();
  record.tag.slot = reader.get<std::uint32_t>();
  record.frame_bytes = reader.get<std::uint32_t>();
  record.offset = reader.get<std::uint32_t>();
  const bool is_piece = record.kind == RecordKind::piece;
  const std::uint64_t end = std::uint64_t{record.offset} + record.n_bytes;
  if (is_piece ? record.frame_bytes > kMaxFrameBytes || end > record.frame_bytes ||
                     record.frame > record.number || (record.n_bytes == 0 && record.frame_bytes > 0)
               : record.n_bytes != 0) {
    fail(ErrorKind::corrupt_frame, "sent a record with impossible lengths");
  }
  return record;
}

}  // namespace fedcomm::tcp
