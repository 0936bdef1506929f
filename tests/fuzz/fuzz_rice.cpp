// rice_decode against a reference that goes bit by bit: the same verdict and the same indices on
// every instruction set, and what is accepted is the one code of its set.
#include "coding_reference.h"
#include "fuzz.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

void check_verdict(const Bytes& bytes, std::uint64_t n, std::size_t k) {
  const std::optional<Indices> truth = reference_rice_decode(bytes, n, k);
  on_every_isa([&] {
    const std::optional<Indices> indices = rice_back(bytes, n, k);
    CHECK(indices == truth);
    if (indices) CHECK(rice(*indices, n) == bytes);
  });
}

/// The input as gaps between indices below n.
Indices indices_of(std::span<const std::byte> bytes, std::uint64_t n, unsigned spread) {
  Indices indices;
  std::uint64_t next = 0;
  for (const std::byte b : bytes) {
    const std::uint64_t index = next + (std::to_integer<std::uint64_t>(b) << spread);
    if (index >= n) continue;
    indices.push_back(static_cast<std::uint32_t>(index));
    next = index + 1;
  }
  return indices;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const std::uint64_t n = std::uint64_t{input.number<std::uint32_t>()} + 1;
  const std::size_t k =
      static_cast<std::size_t>(std::min<std::uint64_t>(input.number<std::uint16_t>() % 4096u, n));
  const auto spread = static_cast<unsigned>(input.below(25));
  const std::size_t damaged_bit = input.number<std::uint32_t>();
  const auto rest = input.rest();

  check_verdict(Bytes(rest.begin(), rest.end()), n, k);
  // A good code, and one with a wrong bit.
  const Indices indices = indices_of(rest, n, spread);
  check_rice(indices, n);
  Bytes bytes = reference_rice(indices, n);
  if (bytes.empty()) return 0;
  bytes[damaged_bit / 8 % bytes.size()] ^= std::byte{1} << (damaged_bit % 8);
  check_verdict(bytes, n, indices.size());
  return 0;
}
