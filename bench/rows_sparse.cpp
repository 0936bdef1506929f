// Rows of topk/ and coding/: choosing the largest entries, and coding where they were.
#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include "checks.h"
#include "coding/coding.h"
#include "rows.h"
#include "topk/topk.h"

namespace fedcomm::bench {
namespace {

constexpr float kBeta = 0.95f;
constexpr std::size_t kChunk = 4096, kPerChunk = 64;

struct Density {
  const char* name;
  double value;

  std::size_t of(std::size_t n) const {
    return std::clamp<std::size_t>(static_cast<std::size_t>(value * static_cast<double>(n)), 1, n);
  }
};
constexpr std::array kDensities = {Density{"0.1%", 0.001}, Density{"1%", 0.01},
                                   Density{"10%", 0.1}};

/// Which entries, of all or of each chunk, and what they are chosen from.
struct Selection {
  std::size_t k;
  bool chunked;
  bool feedback;
};

TopKInput input_of(Arena& arena, bool feedback, bool fresh) {
  if (!feedback) return {.x = arena.x, .before = {}, .after = {}};
  const std::size_t n = arena.x.size();
  const std::span<float> before = arena.residual.last<float>(n);
  return {.x = arena.x,
          .before = before,
          .after = fresh ? arena.decoded.take<float>(n) : before,
          .beta = kBeta};
}

Row select_row(Arena& arena, const Selection& selection) {
  const std::size_t n = arena.x.size(), k = selection.k;
  const auto workspace = std::make_shared<TopKWorkspace>();
  Row row;
  row.kernel = selection.chunked ? "chunk_top_k" : "top_k";
  if (selection.feedback) row.kernel += "+feedback";
  row.n_entries = k;
  row.allocates = arena.fresh;
  row.prepare = [&arena, selection, n] {
    if (selection.feedback) arena.fresh_residual();
    return Traffic{.n = n,
                   .n_read = selection.feedback && arena.fresh ? 2u : 1u,
                   .in_place = selection.feedback && !arena.fresh,
                   .written = selection.feedback && arena.fresh,
                   .code_bytes_written = selection.k * (sizeof(std::uint32_t) + sizeof(float))};
  };
  row.run = [&arena, selection, workspace] {
    const TopKInput input = input_of(arena, selection.feedback, arena.fresh);
    const TopKOutput out{.indices = arena.indices.take<std::uint32_t>(selection.k),
                         .values = arena.values.take<float>(selection.k)};
    if (selection.chunked) {
      cpu::chunk_top_k(input, kChunk, kPerChunk, out, *workspace);
    } else {
      cpu::top_k(input, out, *workspace);
    }
  };
  row.verify = [&arena, selection, n, k, run = row.run]() -> std::string {
    std::vector<float> sum(arena.x.begin(), arena.x.end());
    if (selection.feedback) sum = slow_sum(arena.x, arena.fresh_residual(), kBeta);
    run();
    if (selection.feedback) {
      const std::string wrong =
          check_same(sum, (arena.fresh ? arena.decoded : arena.residual).last<float>(n));
      if (!wrong.empty()) return "residual: " + wrong;
    }
    const std::span<const std::uint32_t> indices = arena.indices.last<std::uint32_t>(k);
    const std::span<const float> values = arena.values.last<float>(k);
    return selection.chunked ? check_chunks(sum, kChunk, kPerChunk, indices, values)
                             : check_largest(sum, indices, values);
  };
  return row;
}

/// An index set that selection has made, and how it is coded.
struct Coding {
  std::uint64_t n;
  bool packed;  // else rice
  Chunking chunking;
  std::vector<std::uint32_t> indices;
  std::size_t n_bytes = 0;  // of the code

  std::size_t max_bytes() const {
    return packed ? packed_bytes(chunking) : rice_max_bytes(n, indices.size());
  }
  std::size_t encode(std::span<std::byte> out) const {
    return packed ? packed_encode(indices, chunking, out) : rice_encode(indices, n, out);
  }
  void decode(std::span<const std::byte> bytes, std::span<std::uint32_t> out) const {
    packed ? packed_decode(bytes, chunking, out) : rice_decode(bytes, n, out);
  }
  std::vector<std::uint32_t> slow_decode(std::span<const std::byte> bytes) const {
    return packed ? slow_packed_decode(bytes, chunking)
                  : slow_rice_decode(bytes, n, indices.size());
  }
};

/// Chooses from the input, since indices at random are not what is coded in earnest, and codes
/// once.
void ready(Coding& coding, Arena& arena) {
  TopKWorkspace workspace;
  std::vector<float> values(coding.indices.size());
  const TopKInput input{.x = arena.x, .before = {}, .after = {}};
  const TopKOutput out{.indices = coding.indices, .values = values};
  if (coding.packed) {
    cpu::chunk_top_k(input, coding.chunking.chunk, coding.chunking.k_per_chunk, out, workspace);
  } else {
    cpu::top_k(input, out, workspace);
  }
  coding.n_bytes = coding.encode(arena.payload.last<std::byte>(coding.max_bytes()));
}

std::pair<Row, Row> coding_pair(Arena& arena, const std::shared_ptr<Coding>& coding) {
  const std::size_t k = coding->indices.size();
  Row encode;
  encode.kernel = coding->packed ? "packed_encode" : "rice_encode";
  encode.n_entries = k;
  encode.threaded = false;
  encode.allocates = arena.fresh;
  encode.prepare = [&arena, coding, k] {
    ready(*coding, arena);
    return Traffic{.n = k, .n_read = 1, .code_bytes_written = coding->n_bytes};
  };
  encode.run = [&arena, coding] {
    coding->encode(arena.payload.take<std::byte>(coding->max_bytes()));
  };
  encode.verify = [&arena, coding, run = encode.run] {
    run();
    return check_indices(coding->indices,
                         coding->slow_decode(arena.payload.last<std::byte>(coding->n_bytes)));
  };

  Row decode = encode;
  decode.kernel = coding->packed ? "packed_decode" : "rice_decode";
  decode.prepare = [&arena, coding, k] {
    ready(*coding, arena);
    return Traffic{.n = k, .written = true, .code_bytes_read = coding->n_bytes};
  };
  decode.run = [&arena, coding, k] {
    coding->decode(arena.payload.last<std::byte>(coding->n_bytes),
                   arena.indices.take<std::uint32_t>(k));
  };
  decode.verify = [&arena, coding, k, run = decode.run] {
    ready(*coding, arena);
    run();
    return check_indices(coding->indices, arena.indices.last<std::uint32_t>(k));
  };
  return {encode, decode};
}

}  // namespace

std::vector<Row> topk_rows(Arena& arena) {
  const std::size_t n = arena.x.size();
  std::vector<Row> rows;
  for (const bool feedback : {false, true}) {
    for (std::size_t i = 0; i < 2; ++i) {  // a tenth is more than anybody sends
      rows.push_back(
          select_row(arena, {.k = kDensities[i].of(n), .chunked = false, .feedback = feedback}));
      rows.back().codec = kDensities[i].name;
    }
  }
  rows.push_back(select_row(
      arena, {.k = chunk_top_k_count(n, kChunk, kPerChunk), .chunked = true, .feedback = true}));
  rows.back().codec = std::to_string(kPerChunk) + " of " + std::to_string(kChunk);
  return rows;
}

std::vector<Row> coding_rows(Arena& arena) {
  const std::size_t n = arena.x.size();
  std::vector<Row> rows;
  for (const bool packed : {false, true}) {
    for (const Density& density : kDensities) {
      const auto coding = std::make_shared<Coding>();
      coding->n = n;
      coding->packed = packed;
      coding->chunking = {
          .n = n, .chunk = kChunk, .k_per_chunk = static_cast<std::uint32_t>(density.of(kChunk))};
      coding->indices.resize(packed ? packed_count(coding->chunking) : density.of(n));
      const auto [encode, decode] = coding_pair(arena, coding);
      for (const Row& row : {encode, decode}) {
        rows.push_back(row);
        rows.back().codec = density.name;
      }
    }
  }
  return rows;
}

}  // namespace fedcomm::bench
