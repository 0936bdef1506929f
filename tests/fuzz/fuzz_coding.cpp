// libFuzzer target: hostile bytes into the index decoders. What decodes must be a set that encodes
// to the same bytes. Build: clang++ -std=c++20 -fsanitize=fuzzer,address,undefined -Icsrc
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "base/error.h"
#include "coding/coding.h"

namespace {

using namespace fedcomm;

void require(bool condition) {
  if (!condition) std::abort();
}

/// Indices of what decode accepts, else false. Any error but corrupt_frame is a finding.
template <typename Decode>
bool decodes(Decode decode) {
  try {
    decode();
  } catch (const Error& error) {
    require(error.kind() == ErrorKind::corrupt_frame);
    return false;
  }
  return true;
}

void require_set(std::span<const std::uint32_t> indices, std::uint64_t n) {
  for (std::size_t i = 1; i < indices.size(); ++i)
    require(indices[i - 1] < indices[i]);
  require(indices.empty() || indices.back() < n);
}

void try_rice(std::span<const std::byte> payload, std::uint64_t n, std::size_t k) {
  std::vector<std::uint32_t> indices(k);
  if (!decodes([&] { rice_decode(payload, n, indices); })) return;
  require_set(indices, n);
  std::vector<std::byte> again(rice_max_bytes(n, k));
  const std::size_t n_bytes = rice_encode(indices, n, again);
  require(n_bytes == payload.size());
  require(n_bytes == 0 || std::memcmp(again.data(), payload.data(), n_bytes) == 0);
}

void try_packed(std::span<const std::byte> payload, const Chunking& chunking) {
  std::vector<std::uint32_t> indices(packed_count(chunking));
  if (!decodes([&] { packed_decode(payload, chunking, indices); })) return;
  require_set(indices, chunking.n);
  std::vector<std::byte> again(packed_bytes(chunking));
  packed_encode(indices, chunking, again);
  require(again.empty() || std::memcmp(again.data(), payload.data(), again.size()) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  struct Header {
    std::uint32_t n;
    std::uint16_t k, chunk;
  } header;
  if (size < sizeof(header)) return 0;
  std::memcpy(&header, data, sizeof(header));
  const auto payload = std::as_bytes(std::span(data, size)).subspan(sizeof(header));

  const std::uint64_t n = std::uint64_t{header.n} + 1;
  try_rice(payload, n, header.k % 4096 <= n ? header.k % 4096 : static_cast<std::size_t>(n));
  // At most 4,096 chunks: an input is to take microseconds.
  const std::uint32_t chunk = std::uint32_t{header.chunk} + 1;
  try_packed(payload, {n % (std::uint64_t{4096} * chunk), chunk, header.k % 16u});
  return 0;
}
