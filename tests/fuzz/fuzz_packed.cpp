// packed_decode against a reference that goes bit by bit: the same verdict and the same indices on
// every instruction set, and what is accepted is the one code of its set.
#include "coding_reference.h"
#include "fuzz.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

void check_verdict(const Bytes& bytes, const Chunking& chunking) {
  const std::optional<Indices> truth = reference_packed_decode(bytes, chunking);
  on_every_isa([&] {
    const std::optional<Indices> indices = packed_back(bytes, chunking);
    CHECK(indices == truth);
  });
  if (truth) check_packed(*truth, chunking);
}

/// A set with as many indices in each chunk as it takes, chosen by the input's bytes.
Indices indices_of(std::span<const std::byte> bytes, const Chunking& c) {
  Indices indices;
  std::size_t at = 0;
  for (std::uint64_t begin = 0; begin < c.n; begin += c.chunk) {
    const std::uint64_t length = std::min<std::uint64_t>(c.chunk, c.n - begin);
    const std::uint64_t k = std::min<std::uint64_t>(c.k_per_chunk, length);
    for (std::uint64_t i = 0, local = 0; i < k; ++i, ++local) {
      const std::uint64_t free = length - local - (k - i);
      const std::uint64_t gap =
          bytes.empty() ? 0 : std::to_integer<std::uint64_t>(bytes[at++ % bytes.size()]) * 7;
      local += free == 0 ? 0 : gap % (free + 1);
      indices.push_back(static_cast<std::uint32_t>(begin + local));
    }
  }
  return indices;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  // Few chunks and few indices in each: an input is to take microseconds.
  const std::uint32_t chunk = std::uint32_t{input.number<std::uint16_t>()} + 1;
  const std::uint32_t k = input.number<std::uint16_t>() % 40u;
  const Chunking chunking{input.below(std::size_t{32} * chunk), chunk, k};
  const std::size_t damaged_bit = input.number<std::uint32_t>();
  const auto rest = input.rest();

  check_verdict(Bytes(rest.begin(), rest.end()), chunking);
  // As many bytes as it takes, then a good code, and one with a wrong bit.
  check_verdict(fuzz::repeated(rest, packed_bytes(chunking)), chunking);
  const Indices indices = indices_of(rest, chunking);
  check_packed(indices, chunking);
  Bytes bytes = reference_packed(indices, chunking);
  if (bytes.empty()) return 0;
  bytes[damaged_bit / 8 % bytes.size()] ^= std::byte{1} << (damaged_bit % 8);
  check_verdict(bytes, chunking);
  return 0;
}
