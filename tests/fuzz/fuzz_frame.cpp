// Frames as the collectives take them: header, seal, and the notice in an abort frame. Checksums
// are put right on request, or nothing behind them would ever be reached. An accepted header says
// what its bytes say; a sealed frame opens to its payload, and not with a wrong bit in it.
#include <optional>

#include "fuzz.h"
#include "wire/crc32c.h"
#include "wire/frame.h"

using namespace fedcomm;

namespace {

constexpr std::size_t kCrcBytes = sizeof(std::uint32_t);

void put_crc(std::span<std::byte> covered_and_crc) {
  const std::size_t covered = covered_and_crc.size() - kCrcBytes;
  const std::uint32_t crc = crc32c(covered_and_crc.first(covered));
  std::memcpy(covered_and_crc.data() + covered, &crc, kCrcBytes);
}

std::optional<FrameHeader> header_of(std::span<const std::byte> frame) {
  try {
    return parse_header(frame);
  } catch (const Error& error) {
    const bool other_version = error.kind() == ErrorKind::config;
    CHECK(other_version || error.kind() == ErrorKind::corrupt_frame);
    if (other_version) CHECK(frame[4] != std::byte{kWireVersion});
    return std::nullopt;
  }
}

/// The bytes of the header, but for those that are reserved: a reader does not look at these.
void check_header(const FrameHeader& header, std::span<const std::byte> frame) {
  std::vector<std::byte> written(kHeaderBytes);
  write_header(header, written);
  constexpr std::size_t kReserved[][2] = {{11, 1}, {60, 4}, {88, 4}};
  for (const auto& [begin, n] : kReserved)
    std::memcpy(written.data() + begin, frame.data() + begin, n);
  put_crc(written);
  CHECK(std::memcmp(written.data(), frame.data(), kHeaderBytes) == 0);
}

void check_seal(std::span<std::byte> frame, std::size_t damaged_bit) {
  const CrcSealer sealer;
  const std::size_t around = kHeaderBytes + sealer.overhead_bytes();
  std::vector<std::byte> plain(frame.size() < around ? 0 : frame.size() - around);
  const auto opens = [&](std::span<std::byte> to) {
    return fuzz::accepts(ErrorKind::corrupt_frame, [&] { sealer.open(frame, to); });
  };
  if (!opens(plain)) return;
  CHECK(std::equal(plain.begin(), plain.end(), frame.begin() + kHeaderBytes));
  CHECK(opens(frame.subspan(kHeaderBytes, plain.size())));
  std::byte& damaged = frame[damaged_bit / 8 % frame.size()];
  damaged ^= std::byte{1} << (damaged_bit % 8);
  CHECK(!opens(plain));
  damaged ^= std::byte{1} << (damaged_bit % 8);
}

bool equal(const AbortNotice& a, const AbortNotice& b) {
  return a.error_kind == b.error_kind && a.detail == b.detail && a.message == b.message;
}

void check_notice(std::span<const std::byte> payload) {
  AbortNotice notice;
  const auto parses = [&] { notice = parse_abort(payload); };
  if (!fuzz::accepts(ErrorKind::corrupt_frame, parses)) return;
  CHECK(notice.message.size() < payload.size());
  for (std::size_t i = 0; i < notice.message.size(); ++i) {
    const auto c = static_cast<unsigned char>(notice.message[i]);
    CHECK(c >= 0x20 && c != 0x7f);
    const auto before = i == 0 ? 0 : static_cast<unsigned char>(notice.message[i - 1]);
    CHECK(before != 0xc2 || c < 0x80 || c >= 0xa0);  // control characters of two bytes
  }
  std::vector<std::byte> written(payload.size());
  written.resize(write_abort(notice, written));
  CHECK(equal(parse_abort(written), notice));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const auto choices = input.number<std::uint8_t>();
  const std::size_t damaged_bit = input.number<std::uint32_t>();
  const bool right_start = (choices & 1) != 0, right_header = (choices & 2) != 0,
             right_seal = (choices & 4) != 0;
  const fuzz::Exact exact(input.rest(), choices >> 5);
  const auto frame = exact.bytes();
  if (right_start && frame.size() > sizeof kMagic) {
    std::memcpy(frame.data(), &kMagic, sizeof kMagic);
    frame[sizeof kMagic] = std::byte{kWireVersion};
  }
  if (right_header && frame.size() >= kHeaderBytes) put_crc(frame.first(kHeaderBytes));
  if (right_seal && frame.size() >= kHeaderBytes + kCrcBytes) put_crc(frame);

  if (const auto header = header_of(frame)) check_header(*header, frame);
  check_seal(frame, damaged_bit);
  check_notice(frame);
  if (frame.size() >= kHeaderBytes) check_notice(frame.subspan(kHeaderBytes));
  return 0;
}
