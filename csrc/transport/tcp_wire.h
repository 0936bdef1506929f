// What TCP streams carry: a hello in each direction, then records. A record is a fixed header, and
// for a piece of a frame its bytes. All of it is hostile until parsed; lengths are checked here,
// before anything is allocated.
//
// Everything but an acknowledgement has a number, counted for the link and not for the stream: so
// the pieces of a lost stream can go to another one, and what arrives twice is recognised.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "transport/transport.h"

namespace fedcomm::tcp {

constexpr std::uint8_t kVersion = 1;
constexpr std::size_t kHelloBytes = 56;
constexpr std::size_t kRecordBytes = 52;
constexpr std::size_t kMaxFrameBytes = 1u << 30;
constexpr int kMaxStreams = 64;

using Token = std::array<std::byte, 16>;

enum class HelloStatus : std::uint8_t {
  asking = 1,
  welcome = 2,
  restarted = 3,  // the rank is known as another process
};

/// The first words on a stream, from who connected; the answer has the same form.
struct Hello {
  HelloStatus status = HelloStatus::asking;
  std::uint16_t stream = 0;
  std::uint16_t n_streams = 0;
  std::uint32_t from = 0;  // rank
  std::uint32_t to = 0;
  std::uint64_t session = 0;
  Token token{};
  std::uint64_t incarnation = 0;  // of the process that sends it
};

std::array<std::byte, kHelloBytes> write_hello(const Hello& hello);
/// Throws corrupt_frame, or config for another version.
Hello parse_hello(std::span<const std::byte, kHelloBytes> bytes);
/// Takes the same time wherever they differ.
bool same(const Token& a, const Token& b);

enum class RecordKind : std::uint8_t {
  piece = 1,    // bytes of a frame follow
  taken = 2,    // a frame has reached the buffer that was posted for it
  goodbye = 3,  // nothing more will come
  ack = 4,      // all records below `number` have arrived; has no number of its own
};

struct Record {
  RecordKind kind = RecordKind::piece;
  bool ordered = false;       // a frame of equal tag is under way: not to be matched before it
  std::uint32_t n_bytes = 0;  // that follow
  std::uint64_t number = 0;
  std::uint64_t frame = 0;  // number of the frame's first piece; for `taken`, the receiver's frame
  std::uint32_t group = 0;
  std::uint32_t epoch = 0;
  Tag tag;
  std::uint32_t frame_bytes = 0;
  std::uint32_t offset = 0;  // of the piece in the frame
};

void write_record(const Record& record, std::span<std::byte, kRecordBytes> out);
/// Throws corrupt_frame.
Record parse_record(std::span<const std::byte, kRecordBytes> bytes);

}  // namespace fedcomm::tcp
