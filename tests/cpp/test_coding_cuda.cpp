// Index coding on a GPU against the CPU: the same bytes in random cases, and nothing written beside
// them. What the bytes mean is for test_coding.cpp, hostile ones are in
// test_coding_cuda_hostile.cpp. Empty without CUDA.
#ifdef FEDCOMM_HAS_CUDA
#include "coding_device.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

struct Rig {
  Stream stream;
  cuda::RiceWorkspace workspace;
};

/// Encodes indices + base, and decodes what the CPU made of the indices.
void compare_rice(const Indices& indices, std::uint64_t n, Random& random, Rig& rig) {
  const std::size_t k = indices.size();
  const std::string text = size_text(n, k);
  const Bytes expected = rice(indices, n);
  const auto base =
      static_cast<std::uint32_t>(random() % 2 == 0 ? 0 : random() % (kMaxIndexRange - n + 1));
  Indices shifted = indices;
  for (std::uint32_t& index : shifted)
    index += base;

  const Guarded<std::uint32_t> indices_there(shifted, random() % 4);
  const Guarded<std::byte> code(rice_max_bytes(n, k), random() % 8);
  const OnDevice<std::uint64_t> n_bytes(~std::uint64_t{0});
  cuda::rice_encode({.indices = indices_there.span(), .n = n, .base = base},
                    {.bytes = code.span(), .n_bytes = n_bytes.data()}, rig.workspace,
                    rig.stream.get());

  const Guarded<std::byte> bytes_there(expected, random() % 8);
  const Guarded<std::uint32_t> back(k, random() % 4);
  const auto before = static_cast<std::int32_t>(random() % 3);
  const OnDevice<std::int32_t> corrupt(before);
  cuda::rice_decode(bytes_there.span(), n, back.span(), corrupt.data(), rig.workspace,
                    rig.stream.get());
  rig.stream.wait();

  CHECK_CASE(n_bytes.get() == expected.size(), text);
  CHECK_CASE(code.get(expected.size()) == expected, text);
  CHECK_CASE(code.intact(expected.size()), text);
  CHECK_CASE(corrupt.get() == before, text);
  CHECK_CASE(back.get() == indices, text);
  CHECK_CASE(back.intact() && indices_there.intact() && bytes_there.intact(), text);
}

void compare_packed(const Indices& indices, const Chunking& c, Random& random, Rig& rig) {
  const std::string text = size_text(c.n, c.k_per_chunk) + " by " + std::to_string(c.chunk);
  Bytes expected(packed_bytes(c));
  packed_encode(indices, c, expected);
  const auto base =
      static_cast<std::uint32_t>(random() % 2 == 0 ? 0 : random() % (kMaxIndexRange - c.n + 1));
  Indices shifted = indices;
  for (std::uint32_t& index : shifted)
    index += base;

  const Guarded<std::uint32_t> indices_there(shifted, random() % 4);
  const Guarded<std::byte> code(expected.size(), random() % 8);
  const std::size_t n_bytes =
      cuda::packed_encode(indices_there.span(), c, base, code.span(), rig.stream.get());
  const Guarded<std::byte> bytes_there(expected, random() % 8);
  const Guarded<std::uint32_t> back(indices.size(), random() % 4);
  const OnDevice<std::int32_t> corrupt(0);
  cuda::packed_decode(bytes_there.span(), c, back.span(), corrupt.data(), rig.stream.get());
  rig.stream.wait();

  CHECK_CASE(n_bytes == expected.size(), text);
  CHECK_CASE(code.get() == expected, text);
  CHECK_CASE(corrupt.get() == 0, text);
  CHECK_CASE(back.get() == indices, text);
  CHECK_CASE(code.intact() && back.intact() && indices_there.intact(), text);
}

Indices all_but(std::uint64_t n, std::uint64_t missing) {
  Indices indices(n);
  std::iota(indices.begin(), indices.end(), 0u);
  if (missing < n) indices.erase(indices.begin() + static_cast<std::ptrdiff_t>(missing));
  return indices;
}

/// Sets of all sizes and sorts, most of them small.
Indices random_case(Random& random, std::uint64_t& n) {
  const std::uint64_t limits[] = {10, 300, 5000, 70000, 400000};
  n = 1 + random() % limits[random() % 5];
  const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
  switch (random() % 8) {
    case 0: return all_but(n, random() % (n + 1));
    case 1: return clusters(random, n, 1 + random() % 3000, 1 + random() % n);
    case 2: return random_set(random, n, 0.2 + 0.8 * uniform);
    case 3: {  // all of them at the end
      Indices indices(1 + random() % n);
      std::iota(indices.begin(), indices.end(), static_cast<std::uint32_t>(n - indices.size()));
      return indices;
    }
    case 4: n = n << (random() % 14); break;
    default: break;
  }
  return random_set_of(random, std::min<std::uint64_t>(n, 500000),
                       static_cast<std::size_t>(uniform * uniform * 60000));
}

}  // namespace

TEST(cuda_rice_gives_the_bytes_of_the_cpu) {
  need_device();
  Rig rig;
  for (std::uint64_t seed = 0; seed < testing::cases_of(1500); ++seed) {
    Random random(seed);
    std::uint64_t n = 0;
    const Indices indices = random_case(random, n);
    compare_rice(indices, n, random, rig);
  }
}

TEST(cuda_rice_of_every_small_size) {
  need_device();
  Rig rig;
  Random random(1);
  for (std::size_t k = 0; k <= 40; ++k) {
    for (const std::uint64_t n : {k, k + 1, 2 * k + 1, 10 * k + 7, 1000 * k + 1})
      compare_rice(random_set_of(random, n, k), n, random, rig);
  }
  for (const std::size_t tile : {std::size_t{1024}, std::size_t{2048}, std::size_t{8192}}) {
    for (std::size_t k = tile - 2; k <= tile + 2; ++k)
      compare_rice(random_set_of(random, 4 * k, k), 4 * k, random, rig);
  }
}

TEST(cuda_rice_of_millions) {
  testing::need_time();
  need_device();
  Rig rig;
  Random random(2);
  for (const double density : {0.001, 0.01})
    compare_rice(random_set(random, 1u << 28, density), 1u << 28, random, rig);
  for (const double density : {0.3, 0.5, 0.98})
    compare_rice(random_set(random, 9000001, density), 9000001, random, rig);
  compare_rice(clusters(random, 1u << 28, 2000, 100000), 1u << 28, random, rig);
  compare_rice(all_but(5000003, 4), 5000003, random, rig);
  compare_rice(all_but(5000003, 5000003), 5000003, random, rig);
  Indices last(3000000);  // one huge gap, and then none
  std::iota(last.begin(), last.end(), (1u << 28) - 3000000u);
  compare_rice(last, 1u << 28, random, rig);
}

TEST(cuda_rice_reaches_the_end_of_32_bits) {
  need_device();
  Rig rig;
  Random random(3);
  const std::uint64_t n = kMaxIndexRange;
  const auto end = static_cast<std::uint32_t>(n - 1);
  for (const Indices& indices : {Indices{}, Indices{0}, Indices{end}, Indices{0, end},
                                 Indices{end - 2, end - 1, end}, Indices{1u << 31, end}})
    compare_rice(indices, n, random, rig);
  for (const double density : {1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3})
    compare_rice(random_set(random, n, density), n, random, rig);
}

TEST(cuda_rice_codes_pieces_whose_size_only_the_device_knows) {
  need_device();
  Rig rig;
  for (std::uint64_t seed = 0; seed < testing::cases_of(150); ++seed) {
    Random random(seed);
    const std::uint64_t n = 1 + random() % (seed % 2 == 0 ? 500 : 300000);
    const Indices indices = seed % 3 == 0 ? clusters(random, n, 1 + random() % 300, 400)
                                          : random_set(random, n, seed % 5 == 0 ? 0.5 : 0.02);
    const Guarded<std::uint32_t> indices_there(indices, random() % 4);
    std::vector<std::uint64_t> cuts = {0, n};
    for (int i = 0; i < 6; ++i)
      cuts.push_back(random() % (n + 1));
    if (!indices.empty()) cuts.insert(cuts.end(), {indices[0], indices[0] + 1ull});
    std::sort(cuts.begin(), cuts.end());
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const std::uint64_t begin = cuts[i], length = cuts[i + 1] - begin;
      const std::string text = size_text(length, indices.size()) + " from " + std::to_string(begin);
      const auto first = std::lower_bound(indices.begin(), indices.end(), begin);
      Indices local(first, std::lower_bound(first, indices.end(), cuts[i + 1]));
      for (std::uint32_t& index : local)
        index -= static_cast<std::uint32_t>(begin);
      const Bytes expected = rice(local, length);

      const Guarded<std::uint32_t> range(2);
      const std::uint64_t at = random() % 40;
      const OnDevice<std::uint64_t> offset(at), n_bytes(~std::uint64_t{0});
      // As much room as this set may take: memory behind it may be somebody else's.
      const Guarded<std::byte> code(at + rice_max_bytes(length, local.size()), random() % 4);
      cuda::find_range(indices_there.span(), begin, cuts[i + 1], range.span().data(),
                       rig.stream.get());
      cuda::rice_encode({.indices = indices_there.span(),
                         .n = length,
                         .base = static_cast<std::uint32_t>(begin),
                         .range = range.span().data()},
                        {.bytes = code.span(), .offset = offset.data(), .n_bytes = n_bytes.data()},
                        rig.workspace, rig.stream.get());
      rig.stream.wait();
      const auto n_before = static_cast<std::uint32_t>(first - indices.begin());
      CHECK_CASE(
          (range.get() == Indices{n_before, n_before + static_cast<std::uint32_t>(local.size())}),
          text);
      CHECK_CASE(n_bytes.get() == expected.size(), text);
      Bytes whole(at, std::byte{0x5a});
      whole.insert(whole.end(), expected.begin(), expected.end());
      CHECK_CASE(code.get(whole.size()) == whole, text);
      CHECK_CASE(code.intact(whole.size()) && range.intact(), text);
    }
  }
}

TEST(cuda_range_of_millions) {
  testing::need_time();
  need_device();
  Rig rig;
  Random random(4);
  const Indices indices = random_set(random, kMaxIndexRange, 1e-3);
  const Guarded<std::uint32_t> indices_there(indices, 1), range(2);
  for (std::uint64_t repeat = 0; repeat < testing::cases_of(200); ++repeat) {
    const std::uint64_t bounds[] = {random() % (kMaxIndexRange + 1), kMaxIndexRange, 0,
                                    indices[random() % indices.size()]};
    const std::uint64_t begin = bounds[random() % 4], end = bounds[random() % 4];
    cuda::find_range(indices_there.span(), begin, end, range.span().data(), rig.stream.get());
    rig.stream.wait();
    const auto below = [&](std::uint64_t bound) {
      return static_cast<std::uint32_t>(std::lower_bound(indices.begin(), indices.end(), bound) -
                                        indices.begin());
    };
    CHECK((range.get() == Indices{below(begin), below(end)}));
  }
}

TEST(cuda_rice_encoder_stays_inside_its_bound_whatever_the_indices) {
  need_device();
  Rig rig;
  Random random(5);
  for (const std::uint64_t n : {std::uint64_t{70000}, kMaxIndexRange}) {
    for (const std::size_t k : {1u, 100u, 5000u, 60000u}) {
      Indices garbage(k);
      for (std::uint32_t& index : garbage)
        index = static_cast<std::uint32_t>(random());
      const std::size_t most = rice_max_bytes(n, k);
      const Guarded<std::uint32_t> indices_there(garbage, 0);
      const Guarded<std::byte> code(most, 3);
      const OnDevice<std::uint64_t> n_bytes(0);
      cuda::rice_encode({.indices = indices_there.span(), .n = n},
                        {.bytes = code.span(), .n_bytes = n_bytes.data()}, rig.workspace,
                        rig.stream.get());
      rig.stream.wait();
      CHECK(code.intact() && n_bytes.get() <= most);
    }
  }
}

TEST(cuda_packed_gives_the_bytes_of_the_cpu) {
  need_device();
  Rig rig;
  Random random(6);
  for (const Chunking& c : chunkings()) {
    for (int repeat = 0; repeat < 5; ++repeat)
      compare_packed(random_chunked(random, c), c, random, rig);
  }
  for (std::uint32_t k = 1; k < 40; ++k)
    compare_packed(random_chunked(random, {60001, 300, k}), {60001, 300, k}, random, rig);
  for (std::uint64_t repeat = 0; repeat < testing::cases_of(400); ++repeat) {
    const auto chunk = static_cast<std::uint32_t>(1 + random() % (random() % 2 == 0 ? 65536 : 50));
    const Chunking c{random() % 200000, chunk,
                     static_cast<std::uint32_t>(random() % (chunk / (1 + random() % 40) + 2))};
    compare_packed(random_chunked(random, c), c, random, rig);
  }
  const Chunking many{40000003, 4096, 64};
  compare_packed(random_chunked(random, many), many, random, rig);
  for (const std::uint32_t chunk : {65536u, 65535u, 40000u, 4096u}) {
    const Chunking c{kMaxIndexRange, chunk, 1};
    Indices indices;
    for (std::uint64_t begin = 0; begin < c.n; begin += chunk)
      indices.push_back(static_cast<std::uint32_t>(
          begin + random() % std::min<std::uint64_t>(chunk, c.n - begin)));
    compare_packed(indices, c, random, rig);
  }
}

TEST(cuda_index_coding_can_be_captured_in_a_graph) {
  need_device();
  Rig rig;
  Random random(7);
  const std::uint64_t n = 300000;
  const std::size_t k = 5000;
  const Chunking c{n, 4096, 64};
  const Indices first = random_set_of(random, n, k);
  const Bytes code_of_first = rice(first, n);
  Guarded<std::uint32_t> sparse(first, 1), chunked(packed_count(c), 0);
  Guarded<std::byte> received(code_of_first, 2);
  const Guarded<std::byte> code(rice_max_bytes(n, k)), packed(packed_bytes(c), 1);
  const Guarded<std::uint32_t> back(k), chunked_back(packed_count(c));
  const OnDevice<std::uint64_t> n_bytes(0);
  Guarded<std::int32_t> flags(2);
  rig.workspace.reserve(n, k);

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  check_cuda(cudaStreamBeginCapture(rig.stream.get(), cudaStreamCaptureModeGlobal));
  cuda::rice_encode({.indices = sparse.span(), .n = n},
                    {.bytes = code.span(), .n_bytes = n_bytes.data()}, rig.workspace,
                    rig.stream.get());
  cuda::rice_decode(received.span(), n, back.span(), flags.span().data(), rig.workspace,
                    rig.stream.get());
  cuda::packed_encode(chunked.span(), c, 0, packed.span(), rig.stream.get());
  cuda::packed_decode(packed.span(), c, chunked_back.span(), flags.span().data() + 1,
                      rig.stream.get());
  check_cuda(cudaStreamEndCapture(rig.stream.get(), &graph));
  check_cuda(cudaGraphInstantiate(&ready, graph, 0));
  for (int replay = 0; replay < 4; ++replay) {
    const Indices set = random_set_of(random, n, k), of_chunks = random_chunked(random, c);
    Bytes changed = code_of_first;
    if (replay % 2 == 1) changed[random() % changed.size()] ^= std::byte{4};
    sparse.put(set);
    chunked.put(of_chunks);
    received.put(changed);
    flags.put({0, 0});
    check_cuda(cudaGraphLaunch(ready, rig.stream.get()));
    rig.stream.wait();
    const Bytes expected = rice(set, n);
    CHECK_EQUAL(n_bytes.get(), expected.size());
    CHECK(code.get(expected.size()) == expected);
    const std::optional<Indices> truth = rice_back(changed, n, k);
    CHECK_EQUAL(flags.get()[0], truth ? 0 : 1);
    if (truth) CHECK(back.get() == *truth);
    CHECK(chunked_back.get() == of_chunks);
    CHECK_EQUAL(flags.get()[1], 0);
  }
  check_cuda(cudaGraphExecDestroy(ready));
  check_cuda(cudaGraphDestroy(graph));
}

TEST(cuda_index_coders_refuse_what_they_can_see) {
  need_device();
  Rig rig;
  const Guarded<std::uint32_t> indices(std::vector<std::uint32_t>{1, 2, 3}, 0);
  const Guarded<std::byte> out(16);
  const OnDevice<std::uint64_t> n_bytes(0);
  const OnDevice<std::int32_t> corrupt(0);
  const auto encode = [&](std::uint64_t n, std::size_t room) {
    cuda::rice_encode({.indices = indices.span(), .n = n},
                      {.bytes = out.span().first(room), .n_bytes = n_bytes.data()}, rig.workspace,
                      rig.stream.get());
  };
  encode(100, rice_max_bytes(100, 3));
  CHECK_THROWS(ErrorKind::invalid_argument, encode(2, 16));
  CHECK_THROWS(ErrorKind::invalid_argument, encode(kMaxIndexRange + 1, 16));
  CHECK_THROWS(ErrorKind::invalid_argument, encode(100, rice_max_bytes(100, 3) - 1));
  CHECK_THROWS(ErrorKind::invalid_argument,
               cuda::rice_decode(out.span(), 2, indices.span(), corrupt.data(), rig.workspace,
                                 rig.stream.get()));
  const Chunking c{30, 10, 1};
  for (const Chunking& bad : {Chunking{30, 0, 1}, Chunking{30, 65537, 1}, Chunking{30, 10, 2},
                              Chunking{kMaxIndexRange + 1, 256, 1}}) {
    CHECK_THROWS(ErrorKind::invalid_argument,
                 cuda::packed_encode(indices.span(), bad, 0, out.span(), rig.stream.get()));
    CHECK_THROWS(
        ErrorKind::invalid_argument,
        cuda::packed_decode(out.span(), bad, indices.span(), corrupt.data(), rig.stream.get()));
  }
  CHECK_THROWS(ErrorKind::invalid_argument,
               cuda::packed_encode(indices.span(), c, 0, out.span().first(packed_bytes(c) - 1),
                                   rig.stream.get()));
  rig.stream.wait();
  CHECK_EQUAL(corrupt.get(), 0);
}
#endif
