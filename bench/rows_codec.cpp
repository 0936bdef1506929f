// Rows of whole codecs that choose: from values and residual to the payload and the new residual.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "checks.h"
#include "codec/codec.h"
#include "rows.h"

namespace fedcomm::bench {
namespace {

constexpr float kBeta = 0.95f;

/// A codec, and what its name says.
struct Sparse {
  const char* name;
  Format format;
  double density;  // of the whole
  std::size_t chunk = 0, k_per_chunk = 0;

  std::string check_choice(std::span<const float> sum, std::span<const std::uint32_t> indices,
                           std::span<const float> values) const {
    if (chunk != 0) return check_chunks(sum, chunk, k_per_chunk, indices, values);
    const double share = std::round(density * static_cast<double>(sum.size()));
    if (static_cast<double>(indices.size()) != std::max(1.0, share)) return "wrong number";
    return check_largest(sum, indices, values);
  }
};

/// Takes the payload apart. `after` is the new residual.
std::string check_payload(const Sparse& sparse, std::span<const float> sum,
                          std::span<const std::byte> payload, std::span<const float> after) {
  std::uint32_t k = 0;
  std::memcpy(&k, payload.data(), sizeof k);
  const QuantSpec spec = default_spec(sparse.format);
  const auto coded = payload.subspan(sizeof k, quant_bytes(spec, k));
  const std::vector<std::uint32_t> indices =
      slow_rice_decode(payload.subspan(sizeof k + coded.size()), sum.size(), k);
  std::vector<float> values, rest, others(sum.begin(), sum.end());
  for (const std::uint32_t index : indices) {
    values.push_back(sum[index]);
    rest.push_back(after[index]);
    others[index] = after[index];
  }
  std::string wrong = sparse.check_choice(sum, indices, values);
  if (wrong.empty()) wrong = check_encoding(spec, values, coded, rest);
  if (wrong.empty()) wrong = check_same(others, after);
  return wrong;
}

Row codec_row(Arena& arena, const Sparse& sparse) {
  const std::shared_ptr<const Codec> codec = make_codec(sparse.name);
  const std::size_t n = arena.x.size();
  const auto n_payload = std::make_shared<std::size_t>();
  Row row;
  row.kernel = "encode+feedback";
  row.codec = codec->name();
  row.allocates = arena.fresh;
  row.run = [&arena, codec, n, n_payload] {
    const std::span<float> before = arena.residual.last<float>(n);
    const std::span<float> after = arena.fresh ? arena.decoded.take<float>(n) : before;
    EncodeOptions options;
    options.feedback = {.before = before, .after = after};
    *n_payload =
        codec->encode(arena.x, options, arena.payload.take<std::byte>(codec->wire_bytes(n)));
  };
  row.prepare = [&arena, n, n_payload, run = row.run] {
    arena.fresh_residual();
    run();  // says how long the payload is
    arena.fresh_residual();
    return Traffic{.n = n,
                   .n_read = arena.fresh ? 2u : 1u,
                   .in_place = !arena.fresh,
                   .written = arena.fresh,
                   .code_bytes_written = *n_payload};
  };
  row.verify = [&arena, codec, sparse, n, n_payload, run = row.run] {
    const std::vector<float> sum = slow_sum(arena.x, arena.fresh_residual(), kBeta);
    run();
    const auto payload = arena.payload.last<std::byte>(codec->wire_bytes(n)).first(*n_payload);
    Memory& after = arena.fresh ? arena.decoded : arena.residual;
    return check_payload(sparse, sum, payload, after.last<float>(n));
  };
  return row;
}

}  // namespace

std::vector<Row> codec_rows(Arena& arena) {
  constexpr Sparse kCodecs[] = {
      {"topk(0.001, int8, beta=0.95)", Format::Int8, 0.001},
      {"topk(0.01, int8, beta=0.95)", Format::Int8, 0.01},
      {"chunk_topk(4096, 64, int2, beta=0.95)", Format::Int2, 0, 4096, 64},
  };
  std::vector<Row> rows;
  for (const Sparse& sparse : kCodecs)
    rows.push_back(codec_row(arena, sparse));
  return rows;
}

}  // namespace fedcomm::bench
