// Index decoders on a GPU, on hostile bytes: the same verdict and the same indices as the CPU's.
// Run it under compute-sanitizer: the last test's buffers are of exact size. Empty without CUDA.
#ifdef FEDCOMM_HAS_CUDA
#include "coding_device.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

/// Mutations of a code, decoded at once; truth(bytes) is the CPU's verdict. Counts both verdicts.
struct Tally {
  std::size_t n_accepted = 0, n_rejected = 0;

  template <typename Decode, typename Truth>
  void compare(DecodeBatch& batch, Decode decode, Truth truth) {
    batch.run(decode);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const Bytes bytes = batch.bytes(i);
      const std::optional<Indices> expected = truth(bytes);
      CHECK_CASE(batch.verdict(i) == expected, shown(bytes).substr(0, 400));
      ++(expected ? n_accepted : n_rejected);
    }
  }
};

struct RiceDecoder {
  std::uint64_t n;
  cuda::RiceWorkspace& workspace;

  void operator()(std::span<const std::byte> bytes, std::span<std::uint32_t> indices,
                  std::int32_t* corrupt) const {
    cuda::rice_decode(bytes, n, indices, corrupt, workspace, nullptr);
  }
};

struct PackedDecoder {
  Chunking chunking;

  void operator()(std::span<const std::byte> bytes, std::span<std::uint32_t> indices,
                  std::int32_t* corrupt) const {
    cuda::packed_decode(bytes, chunking, indices, corrupt, nullptr);
  }
};

void flip(Random& random, Bytes& bytes) {
  const std::size_t bit = random() % (8 * bytes.size());
  bytes[bit / 8] ^= std::byte{1} << (bit % 8);
}

}  // namespace

TEST(cuda_rice_has_the_verdict_of_the_cpu) {
  need_device();
  Random random(8);
  cuda::RiceWorkspace workspace;
  Tally tally;
  for (const std::size_t k : {0u, 1u, 2u, 3u, 8u, 9u, 33u, 130u, 700u}) {
    if (k > testing::cases_of(1000)) continue;  // as many mutations as bits
    for (const std::uint64_t n : {std::uint64_t{k}, std::uint64_t{k + 1}, std::uint64_t{2 * k + 1},
                                  std::uint64_t{5 * k + 3}, std::uint64_t{200 * k + 11}}) {
      const Bytes bytes = rice(random_set_of(random, n, k), n);
      DecodeBatch batch(k);
      check_mutations(random, bytes, [&](const Bytes& hostile) { batch.add(hostile); });
      tally.compare(batch, RiceDecoder{n, workspace},
                    [&](const Bytes& hostile) { return rice_back(hostile, n, k); });
    }
  }
  const std::size_t enough = testing::cases_of(1000);
  CHECK(tally.n_accepted > enough && tally.n_rejected > enough);
}

TEST(cuda_rice_rejects_sums_that_wrap) {
  need_device();
  Random random(9);
  cuda::RiceWorkspace workspace;
  for (const std::uint64_t n : {kMaxIndexRange, kMaxIndexRange - 1, kMaxIndexRange / 2 + 1}) {
    for (const std::size_t k : {1u, 2u, 3u, 5u, 16u, 100u}) {
      if (k > testing::cases_of(1000)) continue;
      Indices indices(k);
      std::iota(indices.begin(), indices.end(), 0u);
      indices.back() = static_cast<std::uint32_t>(n - 1);  // the most zero bits
      const Bytes bytes = rice(indices, n);
      Bytes large = bytes;  // low bits all ones: each sum is as large as it gets
      for (std::size_t bit = 0; bit < k * rice_shift(n, k); ++bit)
        large[bit / 8] |= std::byte{1} << (bit % 8);
      DecodeBatch batch(k);
      batch.add(large);
      check_mutations(random, bytes, [&](const Bytes& hostile) { batch.add(hostile); });
      Tally().compare(batch, RiceDecoder{n, workspace},
                      [&](const Bytes& hostile) { return rice_back(hostile, n, k); });
    }
  }
}

TEST(cuda_rice_notices_damage_in_any_block) {
  testing::need_time();
  need_device();
  Random random(10);
  cuda::RiceWorkspace workspace;
  Tally tally;
  for (const auto& [n, density] : {std::pair(std::uint64_t{1} << 28, 0.003),
                                   {20000000, 0.03},
                                   {2000003, 0.6},
                                   {200003, 0.01}}) {
    const Indices indices = random_set(random, n, density);
    const std::size_t k = indices.size();
    const Bytes bytes = rice(indices, n);
    DecodeBatch batch(k);
    batch.add(bytes);
    for (std::uint64_t repeat = 0; repeat < testing::cases_of(40); ++repeat) {
      Bytes hostile = bytes;
      if (repeat % 8 == 6) hostile.resize(1 + random() % (bytes.size() - 1));
      if (repeat % 8 == 7) hostile.insert(hostile.end(), 1 + random() % 9, std::byte{1});
      flip(random, hostile);
      if (repeat % 2 == 0) flip(random, hostile);
      batch.add(hostile);
    }
    // Garbage: half of all bits are ones, far from k. And all the ones there may be, in one place.
    Bytes garbage = bytes;
    for (std::byte& b : garbage)
      b = static_cast<std::byte>(random());
    batch.add(garbage);
    const std::size_t low_bytes = (k * rice_shift(n, k) + 7) / 8;
    Bytes dense(rice_max_bytes(n, k), std::byte{0});
    std::fill(dense.end() - static_cast<std::ptrdiff_t>(k / 8), dense.end(), std::byte{255});
    batch.add(dense);
    for (std::size_t bit = 0; bit < k % 8; ++bit)  // exactly k: accepted if these may be the last
      dense[low_bytes] |= std::byte{1} << bit;
    batch.add(dense);
    tally.compare(batch, RiceDecoder{n, workspace},
                  [&](const Bytes& hostile) { return rice_back(hostile, n, k); });
  }
  CHECK(tally.n_accepted > 4 && tally.n_rejected > 40);
}

TEST(cuda_packed_has_the_verdict_of_the_cpu) {
  need_device();
  Random random(11);
  Tally tally;
  for (const Chunking& c : chunkings()) {
    if (packed_count(c) > 700) continue;
    Bytes bytes(packed_bytes(c));
    packed_encode(random_chunked(random, c), c, bytes);
    DecodeBatch batch(packed_count(c));
    check_mutations(random, bytes, [&](const Bytes& hostile) { batch.add(hostile); });
    tally.compare(batch, PackedDecoder{c},
                  [&](const Bytes& hostile) { return packed_back(hostile, c); });
  }
  for (const Chunking& c : {Chunking{70001, 1000, 100}, Chunking{9000000, 4096, 64},
                            Chunking{kMaxIndexRange, 65535, 1}}) {
    const std::size_t k = packed_count(c);
    Indices indices(k);
    for (std::size_t i = 0; i < k; ++i)
      indices[i] = static_cast<std::uint32_t>(i / c.k_per_chunk * c.chunk + i % c.k_per_chunk);
    Bytes bytes(packed_bytes(c));
    packed_encode(indices, c, bytes);
    DecodeBatch batch(k);
    for (int repeat = 0; repeat < 60; ++repeat) {
      Bytes hostile = bytes;
      const std::size_t from_end = 8 * bytes.size() - 1 - static_cast<std::size_t>(repeat);
      if (repeat < 20) hostile[from_end / 8] ^= std::byte{1} << (from_end % 8);
      if (repeat >= 20) flip(random, hostile);
      batch.add(hostile);
    }
    tally.compare(batch, PackedDecoder{c},
                  [&](const Bytes& hostile) { return packed_back(hostile, c); });
  }
  CHECK(tally.n_accepted > 100 && tally.n_rejected > 1000);
}

TEST(cuda_index_decoders_touch_nothing_beside) {
  // Codes that end where their memory does, and indices too.
  need_device();
  Random random(12);
  cuda::RiceWorkspace workspace;
  const Chunking c{5003, 300, 5};
  for (std::uint64_t repeat = 0; repeat < testing::cases_of(60); ++repeat) {
    const std::uint64_t n = 1 + random() % 20000;
    Indices indices = random_set(random, n, repeat % 2 == 0 ? 0.02 : 0.5);
    Bytes bytes = rice(indices, n);
    if (repeat % 3 == 0) {
      indices = random_chunked(random, c);
      bytes.resize(packed_bytes(c));
      packed_encode(indices, c, bytes);
    }
    if (bytes.empty()) continue;
    if (repeat % 4 > 0) flip(random, bytes);
    if (repeat % 4 > 1) flip(random, bytes);
    const std::size_t offset = random() % 4, k = indices.size();
    DeviceArray<std::byte> code(offset + bytes.size());
    code.put(offset, bytes);
    const DeviceArray<std::uint32_t> back(k);
    const OnDevice<std::int32_t> corrupt(0);
    const std::span<const std::byte> there(code.data() + offset, bytes.size());
    if (repeat % 3 == 0) {
      PackedDecoder{c}(there, {back.data(), k}, corrupt.data());
    } else {
      RiceDecoder{n, workspace}(there, {back.data(), k}, corrupt.data());
    }
    check_cuda(cudaDeviceSynchronize());
    const std::optional<Indices> truth =
        repeat % 3 == 0 ? packed_back(bytes, c) : rice_back(bytes, n, k);
    CHECK_EQUAL(corrupt.get(), truth ? 0 : 1);
    if (truth) CHECK(back.get() == *truth);
  }
}
#endif
