#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "base/isa.h"
#include "check.h"
#include "wire/bytes.h"
#include "wire/crc32c.h"
#include "wire/frame.h"

namespace fedcomm {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::vector<std::byte> random_bytes(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::byte> bytes(n);
  for (auto& each : bytes)
    each = static_cast<std::byte>(generator());
  return bytes;
}

FrameHeader sample_header() {
  FrameHeader header;
  header.kind = FrameKind::data;
  header.operation = Operation::all_reduce;
  header.algorithm = Algorithm::ring;
  header.reduce = ReduceOp::mean;
  header.sealer = 7;
  header.session = 0x0123456789abcdefu;
  header.epoch = 3;
  header.source = 11;
  header.destination = kEveryone;
  header.round = 1ull << 40;
  header.bucket = 5;
  header.sequence = 6;
  header.phase = 8;
  header.chunk = 9;
  header.segment = 10;
  header.codec = 0xdeadbeefu;
  header.n_elems = (1ull << 33) + 3;
  header.weight = 0.1;
  header.payload_bytes = 1234;
  return header;
}

std::vector<std::byte> sealed_frame(std::size_t payload_bytes) {
  FrameHeader header = sample_header();
  header.payload_bytes = payload_bytes;
  const CrcSealer sealer;
  std::vector<std::byte> frame = random_bytes(kHeaderBytes + payload_bytes + 4, 3);
  write_header(header, frame);
  sealer.seal(frame);
  return frame;
}

}  // namespace

TEST(crc32c_known_answers) {
  // RFC 3720, appendix B.4, and the usual check value.
  CHECK_EQUAL(crc32c(bytes_of("123456789")), 0xe3069283u);
  CHECK_EQUAL(crc32c(std::vector<std::byte>(32)), 0x8a9136aau);
  CHECK_EQUAL(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
  CHECK_EQUAL(crc32c({}), 0u);
}

TEST(crc32c_fast_equals_portable_at_every_length) {
  const auto data = random_bytes(40000, 1);
  std::vector<std::size_t> lengths{4095, 12287, 12288, 12289, 24576, 39999};
  for (std::size_t n = 0; n < 800; ++n)
    lengths.push_back(n);
  const Isa usual = current_isa();
  for (const Isa isa : available_isas()) {
    use_isa(name_of(isa));
    for (const std::size_t n : lengths) {
      for (const std::size_t skip : {0u, 1u}) {
        const auto part = std::span<const std::byte>(data).subspan(skip, n);
        CHECK_EQUAL(crc32c(part), detail::crc32c_portable(part));
        const std::size_t half = n / 2;
        CHECK_EQUAL(crc32c(part.subspan(half), crc32c(part.first(half))), crc32c(part));
      }
    }
  }
  use_isa(name_of(usual));
}

TEST(header_round_trip) {
  const FrameHeader header = sample_header();
  std::vector<std::byte> bytes(kHeaderBytes);
  write_header(header, bytes);
  const FrameHeader back = parse_header(bytes);
  std::vector<std::byte> again(kHeaderBytes);
  write_header(back, again);
  CHECK(bytes == again);
  CHECK_EQUAL(back.session, header.session);
  CHECK_EQUAL(back.round, header.round);
  CHECK_EQUAL(back.n_elems, header.n_elems);
  CHECK_EQUAL(back.weight, header.weight);
  CHECK_EQUAL(back.payload_bytes, header.payload_bytes);
  CHECK_EQUAL(back.destination, header.destination);
}

TEST(header_rejects_every_flipped_bit) {
  std::vector<std::byte> bytes(kHeaderBytes);
  write_header(sample_header(), bytes);
  for (std::size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    auto damaged = bytes;
    damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    const bool in_version = bit / 8 == 4;
    CHECK_THROWS(in_version ? ErrorKind::config : ErrorKind::corrupt_frame, parse_header(damaged));
  }
}

TEST(header_rejects_short_and_foreign_input) {
  const auto frame = sealed_frame(10);
  for (std::size_t n = 0; n < kHeaderBytes; ++n) {
    CHECK_THROWS(ErrorKind::corrupt_frame, parse_header(std::span(frame).first(n)));
  }
  CHECK_THROWS(ErrorKind::corrupt_frame, parse_header(random_bytes(200, 9)));
}

TEST(header_with_unknown_enum_is_refused_though_its_checksum_fits) {
  FrameHeader header = sample_header();
  header.operation = static_cast<Operation>(77);
  std::vector<std::byte> bytes(kHeaderBytes);
  write_header(header, bytes);
  CHECK_THROWS(ErrorKind::corrupt_frame, parse_header(bytes));
}

TEST(seal_detects_every_flipped_bit_of_a_frame) {
  const auto frame = sealed_frame(33);
  const CrcSealer sealer;
  std::vector<std::byte> plain(33);
  sealer.open(frame, plain);
  CHECK(std::memcmp(plain.data(), frame.data() + kHeaderBytes, 33) == 0);
  for (std::size_t bit = 0; bit < 8 * frame.size(); ++bit) {
    auto damaged = frame;
    damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    CHECK_THROWS(ErrorKind::corrupt_frame, sealer.open(damaged, plain));
  }
  CHECK_THROWS(ErrorKind::corrupt_frame, sealer.open(std::span(frame).first(50), plain));
}

TEST(abort_notice_round_trip_and_truncation) {
  std::vector<std::byte> room(200);
  const std::size_t n = write_abort({5, -42, "disk full"}, room);
  const AbortNotice back = parse_abort(std::span(room).first(n));
  CHECK_EQUAL(static_cast<int>(back.error_kind), 5);
  CHECK_EQUAL(back.detail, -42);
  CHECK_EQUAL(back.message, "disk full");
  for (std::size_t short_by = 1; short_by <= n; ++short_by) {
    CHECK_THROWS(ErrorKind::corrupt_frame, parse_abort(std::span(room).first(n - short_by)));
  }
  const std::size_t cut = write_abort({5, 0, std::string(1000, 'x')}, room);
  CHECK_EQUAL(cut, room.size());
  CHECK(parse_abort(room).message.size() < 1000);
}

TEST(abort_notice_keeps_control_characters_from_the_terminal) {
  std::vector<std::byte> room(200);
  // Escape, delete, and U+009B, which begins an escape sequence, too; then plain text in UTF-8.
  const std::string hostile =
      "a\x1b[2J\x7f\xc2\x9b"
      "2J \xc3\xa4\xc2\xa0\xe2\x82\xac";
  const std::size_t n = write_abort({1, 0, hostile}, room);
  const std::string shown = parse_abort(std::span(room).first(n)).message;
  CHECK_EQUAL(shown, "a [2J \xc2 2J \xc3\xa4\xc2\xa0\xe2\x82\xac");
}

}  // namespace fedcomm
