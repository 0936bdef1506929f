// Rows of quant/: every format, rounding both ways where it can, with and without error feedback.
#include <string>

#include "checks.h"
#include "quant/quant.h"
#include "rows.h"

namespace fedcomm::bench {
namespace {

constexpr Draw kDraw{.seed = 1, .round = 2, .bucket = 3};
constexpr float kBeta = 0.95f, kWeight = 0.5f;

bool rounds_stochastically(Format format) {
  return visit_format(format, []<typename F>(F) { return kStochastic<F>; });
}

std::string name_of(const QuantSpec& spec) {
  const std::string name = format_name(spec.format);
  return spec.rounding == Rounding::stochastic ? name + "(stochastic)" : name;
}

Row encode_row(Arena& arena, const QuantSpec& spec) {
  const std::size_t n = arena.x.size(), n_payload = quant_bytes(spec, n);
  Row row;
  row.kernel = "encode";
  row.codec = name_of(spec);
  row.allocates = arena.fresh;
  row.prepare = [n, n_payload] {
    return Traffic{.n = n, .n_read = 1, .code_bytes_written = n_payload};
  };
  row.run = [&arena, spec, n_payload] {
    cpu::encode(spec, arena.x, {}, kDraw, arena.payload.take<std::byte>(n_payload));
  };
  row.verify = [&arena, spec, n_payload, run = row.run] {
    run();
    return check_encoding(spec, arena.x, arena.payload.last<std::byte>(n_payload), {});
  };
  return row;
}

/// The residual is replaced in place, or, with fresh outputs, written to new memory.
Row feedback_row(Arena& arena, const QuantSpec& spec) {
  const std::size_t n = arena.x.size(), n_payload = quant_bytes(spec, n);
  Row row;
  row.kernel = "encode+feedback";
  row.codec = name_of(spec);
  row.allocates = arena.fresh;
  row.prepare = [&arena, n, n_payload] {
    arena.fresh_residual();
    return Traffic{.n = n,
                   .n_read = arena.fresh ? 2u : 1u,
                   .in_place = !arena.fresh,
                   .written = arena.fresh,
                   .code_bytes_written = n_payload};
  };
  row.run = [&arena, spec, n, n_payload] {
    const std::span<float> before = arena.residual.last<float>(n);
    const std::span<float> after = arena.fresh ? arena.decoded.take<float>(n) : before;
    cpu::encode(spec, arena.x, {.before = before, .after = after, .beta = kBeta}, kDraw,
                arena.payload.take<std::byte>(n_payload));
  };
  row.verify = [&arena, spec, n, n_payload, run = row.run] {
    const std::vector<float> sum = slow_sum(arena.x, arena.fresh_residual(), kBeta);
    run();
    return check_encoding(spec, sum, arena.payload.last<std::byte>(n_payload),
                          (arena.fresh ? arena.decoded : arena.residual).last<float>(n));
  };
  return row;
}

/// A payload that stays where it is, whatever is fresh.
std::span<const std::byte> encode_once(Arena& arena, const QuantSpec& spec) {
  const std::span<std::byte> payload =
      arena.payload.last<std::byte>(quant_bytes(spec, arena.x.size()));
  cpu::encode(spec, arena.x, {}, kDraw, payload);
  return payload;
}

Row decode_row(Arena& arena, const QuantSpec& spec) {
  const std::size_t n = arena.x.size(), n_payload = quant_bytes(spec, n);
  Row row;
  row.kernel = "decode";
  row.codec = name_of(spec);
  row.allocates = arena.fresh;
  row.prepare = [&arena, spec, n, n_payload] {
    encode_once(arena, spec);
    return Traffic{.n = n, .written = true, .code_bytes_read = n_payload};
  };
  row.run = [&arena, spec, n, n_payload] {
    cpu::decode(spec, arena.payload.last<std::byte>(n_payload), arena.decoded.take<float>(n));
  };
  row.verify = [&arena, spec, n, run = row.run] {
    const std::vector<float> expected = slow_decode(spec, encode_once(arena, spec), n);
    run();
    return check_same(expected, arena.decoded.last<float>(n));
  };
  return row;
}

Row decode_add_row(Arena& arena, const QuantSpec& spec) {
  const std::size_t n = arena.x.size(), n_payload = quant_bytes(spec, n);
  Row row;
  row.kernel = "decode_add";
  row.codec = name_of(spec);
  row.prepare = [&arena, spec, n, n_payload] {
    arena.fresh_residual();
    encode_once(arena, spec);
    return Traffic{.n = n, .in_place = true, .code_bytes_read = n_payload};
  };
  row.run = [&arena, spec, n, n_payload] {
    cpu::decode_add(spec, arena.payload.last<std::byte>(n_payload), kWeight,
                    arena.residual.last<float>(n));
  };
  row.verify = [&arena, spec, n, run = row.run] {
    const std::vector<float> decoded = slow_decode(spec, encode_once(arena, spec), n);
    const std::vector<float> expected = slow_sum(arena.fresh_residual(), decoded, kWeight);
    run();
    return check_same(expected, arena.residual.last<float>(n));
  };
  return row;
}

}  // namespace

std::vector<Row> quant_rows(Arena& arena) {
  std::vector<Row> rows;
  for (std::size_t i = 0; i < kNumFormats; ++i) {
    QuantSpec spec = default_spec(static_cast<Format>(i));
    const QuantSpec nearest = spec;
    rows.push_back(encode_row(arena, spec));
    rows.push_back(feedback_row(arena, spec));
    if (rounds_stochastically(spec.format)) {
      spec.rounding = Rounding::stochastic;
      rows.push_back(encode_row(arena, spec));
      rows.push_back(feedback_row(arena, spec));
    }
    rows.push_back(decode_row(arena, nearest));
    rows.push_back(decode_add_row(arena, nearest));
  }
  return rows;
}

}  // namespace fedcomm::bench
