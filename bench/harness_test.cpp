// Tests of the benchmark's own judgement, part of fedcomm-tests: a wrong outcome is noticed, is
// told, and makes the process fail; the ceilings move what they say; arguments are read right.
#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "check.h"
#include "checks.h"
#include "rows.h"
#include "topk/topk.h"

namespace {

using namespace fedcomm;
using namespace fedcomm::bench;

std::string read_all(std::FILE* file) {
  std::rewind(file);
  std::string text(1u << 16, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  return text;
}

Row row_that_finds(const std::string& failure) {
  Row row;
  row.kernel = "half";
  row.codec = "int\"1";
  row.prepare = [] { return Traffic{.n = 1024, .n_read = 1}; };
  row.run = [] {};
  row.verify = [failure] { return failure; };
  return row;
}

bool rejected(std::vector<const char*> arguments, std::string_view part) {
  arguments.insert(arguments.begin(), "fedcomm-bench-kernels");
  try {
    parse_arguments(static_cast<int>(arguments.size()), arguments.data());
  } catch (const BadArgument& error) {
    return std::string_view(error.what()).find(part) != std::string_view::npos;
  }
  return false;
}

Options parsed(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "fedcomm-bench-kernels");
  return parse_arguments(static_cast<int>(arguments.size()), arguments.data());
}

TEST(bench_failed_row_fails_the_process) {
  Streams streams;
  const Options options = parsed({"-n", "2", "-w", "0"});
  for (const bool wrong : {false, true}) {
    std::FILE* json = std::tmpfile();
    std::FILE* table = std::tmpfile();
    std::FILE* errors = std::tmpfile();
    CHECK(json != nullptr && table != nullptr && errors != nullptr);
    Report report(facts_here("abc"), table, json);
    Result result = measure(row_that_finds(wrong ? "7 is not 8" : ""), streams, options);
    result.n_elems = 1024;
    report.add(result);
    CHECK_EQUAL(report.finish(errors), wrong ? 1 : 0);
    const std::string told = read_all(errors), row = read_all(json);
    CHECK_EQUAL(told.find("7 is not 8") != std::string::npos, wrong);
    CHECK_EQUAL(read_all(table).find(" NO") != std::string::npos, wrong);
    CHECK(row.find(wrong ? "\"verified\": false" : "\"verified\": true") != std::string::npos);
    CHECK(row.find(R"("codec": "int\"1")") != std::string::npos);
    for (std::FILE* file : {json, table, errors})
      std::fclose(file);
  }
}

TEST(bench_unverified_is_not_verified) {
  Streams streams;
  const Result result =
      measure(row_that_finds("wrong"), streams, parsed({"-n", "1", "-w", "0", "-c", "0"}));
  CHECK(result.verified == Verified::not_asked);
}

TEST(bench_times) {
  const Times odd = times_of({5, 1, 3}), even = times_of({4, 1, 3, 2});
  CHECK_EQUAL(odd.median_ms, 3);
  CHECK_EQUAL(odd.min_ms, 1);
  CHECK_EQUAL(odd.max_ms, 5);
  CHECK_EQUAL(even.median_ms, 2.5);
}

TEST(bench_arguments) {
  const Options options = parsed({"-b", "4K", "--maxbytes", "1G", "-f", "16", "-t", "1,2",
                                  "--kernels", "topk(1,2),int8", "--alloc"});
  CHECK_EQUAL(options.min_bytes, 4096u);
  CHECK_EQUAL(options.max_bytes, std::size_t{1} << 30);
  CHECK_EQUAL(sizes_of(options).size(), 5u);  // 4K, 64K, 1M, 16M, 256M
  CHECK(options.threads == (std::vector<std::size_t>{1, 2}));
  CHECK(options.kernels == (std::vector<std::string>{"topk(1,2)", "int8"}));
  CHECK(options.fresh_outputs);
  CHECK(is_selected(options, "encode int8(stochastic)"));
  CHECK(!is_selected(options, "encode int4"));
  CHECK_EQUAL(sizes_of(parsed({"-b", "4", "-e", "64G", "-f", "9999999999"})).size(), 2u);
  CHECK(rejected({"-b", "4X"}, "-b: '4X'"));
  CHECK(rejected({"-b", "99999999999999999999G"}, "64G"));
  CHECK(rejected({"-b", "3"}, "-b: '3'"));
  CHECK(rejected({"-n", "0"}, "-n: '0'"));
  CHECK(rejected({"-t", "1,,2"}, "-t"));
  CHECK(rejected({"-t", "0"}, "--threads 1,2"));
  CHECK(rejected({"-c", "2"}, "-c: '2'"));
  CHECK(rejected({"-w"}, "missing"));
  CHECK(rejected({"--kernels", "topk(1"}, "bracket"));
  CHECK(rejected({"--frobnicate"}, "no such argument"));
  CHECK(rejected({"-b", "8M", "-e", "4M"}, "--maxbytes"));
}

TEST(bench_streams_move_everything) {
  constexpr std::size_t kElems = 5 * Streams::kStrip;
  const auto all = [](std::span<const float> values, auto expected) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != expected(i)) return false;
    }
    return true;
  };
  for (const Stores stores : {Stores::ordinary, Stores::streaming}) {
    Streams streams;
    const std::span<float> a = streams.read_array(0, kElems), b = streams.read_array(1, kElems);
    const std::span<float> target = streams.target(kElems);
    std::iota(a.begin(), a.end(), 0.0f);
    std::iota(b.begin(), b.end(), 1.0f);
    streams.run({.n = kElems, .n_read = 1, .written = true}, stores);
    CHECK(all(target, [](std::size_t i) { return static_cast<float>(i); }));
    streams.run({.n = kElems, .n_read = 2, .written = true}, stores);
    CHECK(all(target, [](std::size_t i) { return static_cast<float>(2 * i + 1); }));
    streams.run({.n = kElems, .n_read = 1, .in_place = true}, stores);
    CHECK(all(target, [](std::size_t i) { return static_cast<float>(3 * i + 1); }));
    const std::span<std::byte> codes = streams.codes_written(kElems);
    std::ranges::fill(codes, std::byte{0x77});
    streams.run({.n = kElems, .n_read = 1, .code_bytes_written = kElems}, stores);
    CHECK(std::ranges::find(codes, std::byte{0x77}) == codes.end());
  }
  const Traffic odd{.n = 1000000, .n_read = 1, .code_bytes_written = 515625};
  const double moved = static_cast<double>(Streams::rounded(odd).bytes());
  CHECK(std::abs(moved / static_cast<double>(odd.bytes()) - 1) < 0.02);
}

TEST(bench_notices_wrong_encodings) {
  constexpr std::size_t kElems = 5000;
  Arena arena(false);
  arena.fill_input(kElems);
  for (std::size_t i = 0; i < kNumFormats; ++i) {
    const QuantSpec spec = default_spec(static_cast<Format>(i));
    std::vector<std::byte> payload(quant_bytes(spec, kElems));
    std::vector<float> residual(kElems, 0.0f);
    cpu::encode(spec, arena.x, {.before = residual, .after = residual}, {}, payload);
    CHECK_EQUAL(check_encoding(spec, arena.x, payload, residual), "");
    std::vector<float> decoded(kElems);
    cpu::decode(spec, payload, decoded);
    CHECK_EQUAL(check_same(slow_decode(spec, payload, kElems), decoded), "");

    std::vector<float> other = residual;
    other[4321] = std::nextafter(other[4321] + 1e-20f, 10.0f);
    CHECK(!check_encoding(spec, arena.x, payload, other).empty());
    std::vector<std::byte> flipped = payload;
    flipped[flipped.size() - 2] ^= std::byte{0x80};
    CHECK(!check_encoding(spec, arena.x, flipped, {}).empty());
    if (spec.block > 1) {  // the first step, four times or a quarter of what it was
      flipped = payload;
      flipped[size_of(spec.scale) - 1] ^= std::byte{0x01};
      CHECK(!check_encoding(spec, arena.x, flipped, {}).empty());
    }
    decoded[77] = -decoded[77] + 1.0f;
    CHECK(!check_same(slow_decode(spec, payload, kElems), decoded).empty());
  }
}

TEST(bench_notices_biased_rounding) {
  constexpr std::size_t kElems = 1u << 16;
  std::vector<float> x(kElems, 0.4f);
  for (std::size_t i = 0; i < kElems; i += 256)
    x[i] = 127.0f;  // the step is 1
  QuantSpec spec = default_spec(Format::Int8);
  std::vector<std::byte> payload(quant_bytes(spec, kElems));
  cpu::encode(spec, x, {}, {}, payload);  // to nearest: always down
  spec.rounding = Rounding::stochastic;
  CHECK(check_encoding(spec, x, payload, {}).find("biased") != std::string::npos);
}

TEST(bench_notices_wrong_selections) {
  constexpr std::size_t kElems = 20000, k = 200;
  Arena arena(false);
  arena.fill_input(kElems);
  std::vector<float> x(arena.x.begin(), arena.x.end());
  for (float& value : x)
    value = std::round(value * 20) / 20;  // many ties
  std::vector<std::uint32_t> order(kElems);
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::nth_element(order, order.begin() + k, [&](std::uint32_t a, std::uint32_t b) {
    const float first = std::abs(x[a]), second = std::abs(x[b]);
    return first > second || (first == second && a < b);
  });
  std::vector<std::uint32_t> indices(order.begin(), order.begin() + k);
  std::ranges::sort(indices);
  std::vector<float> values;
  for (const std::uint32_t i : indices)
    values.push_back(x[i]);
  CHECK_EQUAL(check_largest(x, indices, values), "");

  for (std::size_t j = 0; j < k; j += 37) {  // a neighbour instead
    std::vector<std::uint32_t> other = indices;
    std::vector<float> others = values;
    other[j] += other[j] + 1 < (j + 1 < k ? indices[j + 1] : kElems) ? 1 : 0;
    if (other[j] == indices[j]) continue;
    others[j] = x[other[j]];
    CHECK(!check_largest(x, other, others).empty());
  }
  std::vector<float> others = values;
  others[5] = -others[5];
  CHECK(!check_largest(x, indices, others).empty());
  std::swap(indices[3], indices[4]);
  CHECK(!check_largest(x, indices, values).empty());
}

TEST(bench_slow_index_decoders) {
  const std::vector<std::uint32_t> indices = {0, 1, 7, 100, 101, 900, 999};
  std::vector<std::byte> bytes(rice_max_bytes(1000, indices.size()));
  bytes.resize(rice_encode(indices, 1000, bytes));
  CHECK_EQUAL(check_indices(indices, slow_rice_decode(bytes, 1000, indices.size())), "");
  const Chunking chunking{.n = 1000, .chunk = 300, .k_per_chunk = 2};
  const std::vector<std::uint32_t> chunked = {0, 299, 300, 301, 777, 898, 900, 999};
  bytes.assign(packed_bytes(chunking), std::byte{0});
  packed_encode(chunked, chunking, bytes);
  CHECK_EQUAL(check_indices(chunked, slow_packed_decode(bytes, chunking)), "");
  CHECK(!check_indices(chunked, indices).empty());
}

}  // namespace
