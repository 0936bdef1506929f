// Tests of the collective benchmarks' own judgement, part of fedcomm-tests: right sums are
// accepted, whatever the codec and the algorithm; wrong ones are not; arguments are read right.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "check.h"
#include "codec/codec.h"
#include "ranks/options.h"
#include "ranks/truth.h"
#include "transport/memory.h"

namespace {

using namespace fedcomm;
using namespace fedcomm::bench;

constexpr std::size_t kSegment = 8192;

/// A sum over ranks in this thread, by the library.
std::vector<std::byte> reduced(const Truth::Setting& setting) {
  const auto hub = std::make_shared<MemoryHub>(setting.n_ranks);
  std::vector<std::shared_ptr<Fabric>> fabrics;
  for (int rank = 0; rank < setting.n_ranks; ++rank)
    fabrics.push_back(hub->fabric(rank));
  GroupOptions options;
  options.segment_elems = setting.segment_elems;
  const auto groups = Group::open_all(fabrics, options);
  const std::size_t n_bytes = setting.n_elems * size_of(setting.dtype);
  std::vector<std::vector<std::byte>> tensors(groups.size(), std::vector<std::byte>(n_bytes));
  std::vector<std::shared_ptr<Work>> works;
  for (std::size_t rank = 0; rank < groups.size(); ++rank) {
    const TensorView view{tensors[rank].data(), setting.n_elems, setting.dtype};
    std::vector<float> x(setting.n_elems);
    input_values(static_cast<int>(rank), 0, setting.dtype, x);
    store_floats(x, view, 0);
    ReduceOptions reduce;
    reduce.codec = setting.codec;
    reduce.algorithm = setting.algorithm;
    works.push_back(groups[rank]->all_reduce(view, view, reduce));
  }
  for (const auto& work : works)
    work->wait();
  for (const auto& group : groups)
    group->close();
  return tensors.front();
}

std::string judge(const Truth::Setting& setting, std::vector<std::byte>& output) {
  const Truth truth(setting);
  for (std::size_t i = 0; i < truth.n_segments(); ++i) {
    const std::string found = truth.check(i, {output.data(), setting.n_elems, setting.dtype});
    if (!found.empty()) return found;
  }
  return "";
}

float& element(std::vector<std::byte>& output, std::size_t i) {
  return reinterpret_cast<float*>(output.data())[i];
}

template <typename Parse>
bool rejected(const Parse& parse, std::vector<const char*> arguments, std::string_view part) {
  arguments.insert(arguments.begin(), "program");
  try {
    parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const BadArgument& error) {
    return std::string_view(error.what()).find(part) != std::string_view::npos;
  }
  return false;
}

AllReduceOptions parsed(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "program");
  return parse_all_reduce(static_cast<int>(arguments.size()), arguments.data());
}

TEST(ranks_right_sums_are_accepted) {
  std::vector<std::string> codecs = codec_names();
  for (const char* more : {"int8(stochastic)", "int4(block=32, scale=fp32)", "fp8_e4m3(stochastic)",
                           "e3m0(stochastic)", "int2(stochastic)", "bf16(stochastic)",
                           "topk(k=77, int4)", "topk(1, bf16)", "chunk_topk(1000, 10, int8)"})
    codecs.push_back(make_codec(more)->name());
  for (const std::string& codec : codecs) {
    for (const Algorithm algorithm :
         {Algorithm::direct, Algorithm::ring, Algorithm::all_gather, Algorithm::sparse}) {
      const bool from_whole = make_codec(codec)->chooses_from_whole();
      if (algorithm != Algorithm::all_gather && from_whole != (algorithm == Algorithm::sparse))
        continue;
      for (const int n_ranks : {1, 2, 5}) {
        for (const std::size_t n_elems : {std::size_t{1}, std::size_t{4097}, 5 * kSegment + 123}) {
          const Truth::Setting setting{codec, algorithm, n_elems, kSegment, n_ranks, DType::f32};
          std::vector<std::byte> output = reduced(setting);
          const std::string found = judge(setting, output);
          if (!found.empty()) {
            fedcomm::testing::report(__FILE__, __LINE__,
                                     codec + ", algorithm " +
                                         std::to_string(static_cast<int>(algorithm)) + ", " +
                                         std::to_string(n_ranks) + " ranks: " + found);
          }
        }
      }
    }
  }
}

TEST(ranks_half_precision_sums_are_accepted) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const char* codec : {"fp32", "int8"}) {
      const Truth::Setting setting{codec, Algorithm::direct, 20001, kSegment, 3, dtype};
      std::vector<std::byte> output = reduced(setting);
      CHECK_EQUAL(judge(setting, output), "");
      output[2 * 12345 + 1] ^= std::byte{0x80};  // its sign
      CHECK(judge(setting, output).find("element 12345 is") != std::string::npos);
    }
  }
}

TEST(ranks_sums_of_fp32_are_known_to_the_last_bit) {
  for (const Algorithm algorithm : {Algorithm::direct, Algorithm::ring, Algorithm::all_gather}) {
    const Truth::Setting setting{"fp32", algorithm, 30000, kSegment, 4, DType::f32};
    std::vector<std::byte> output = reduced(setting);
    CHECK_EQUAL(judge(setting, output), "");
    element(output, 23456) = std::nextafter(element(output, 23456), 100.0f);
    CHECK(judge(setting, output).find("element 23456 is") != std::string::npos);
  }
}

TEST(ranks_a_sum_is_that_of_its_ring_and_of_no_other) {
  Truth::Setting setting{
      "chunk_topk(1000, 10, int8)", Algorithm::ring, 30000, kSegment, 4, DType::f32};
  std::vector<std::byte> output = reduced(setting);
  setting.ring = {2, 3, 0, 1};
  CHECK_EQUAL(judge(setting, output), "");
  setting.ring = {0, 2, 1, 3};
  CHECK(judge(setting, output).find("element ") != std::string::npos);
}

TEST(ranks_wrong_sums_are_noticed) {
  for (const std::string& codec : codec_names()) {
    const bool whole = make_codec(codec)->chooses_from_whole();
    const Algorithm algorithm = whole ? Algorithm::all_gather : Algorithm::direct;
    const Truth::Setting setting{codec, algorithm, 30000, kSegment, 3, DType::f32};
    const std::vector<std::byte> right = reduced(setting);
    std::vector<std::byte> output = right;
    element(output, 0) = std::nanf("");
    CHECK(judge(setting, output).find("element 0 is") != std::string::npos);
    output = right;
    element(output, 29999) += 20.0f;
    CHECK(judge(setting, output).find("element 29999 is") != std::string::npos);
    if (codec == "sign") continue;  // of one bit a value, anything small is likely
    output.assign(output.size(), std::byte{0});
    CHECK(!judge(setting, output).empty());
    if (codec == "int2") continue;
    Truth::Setting fewer = setting;  // one rank is left out
    fewer.n_ranks = 2;
    output = reduced(fewer);
    CHECK(!judge(setting, output).empty());
  }
}

TEST(ranks_bounds_are_the_format_s_gaps) {
  // A block whose largest magnitude is 1, summed by nobody: one coding.
  for (const std::string& codec : codec_names()) {
    const Coding coding = coding_of(codec);
    Intervals v(64);
    v.low[0] = v.high[0] = -1;
    v.code(coding);
    if (coding.choice == Coding::Choice::none) CHECK(std::abs(v.high[0] + 1 - coding.loss) < 1e-15);
  }
  CHECK_EQUAL(coding_of("fp32").loss, 0);
  CHECK(std::abs(coding_of("int8").loss - 0.5 / 127) < 1e-6);
  CHECK(std::abs(coding_of("int8(stochastic)").loss - 1.0 / 127) < 1e-6);
  CHECK_EQUAL(coding_of("int4").block, 128u);
  CHECK_EQUAL(coding_of("topk(k=9,int8)").k, 9u);
  CHECK_EQUAL(coding_of("chunk_topk(4096,64,int8)").chunk, 4096u);
}

TEST(ranks_choices_are_certain_where_they_can_be) {
  Intervals v(6);
  const double values[] = {1, -5, 4, 0.5, -3, 2};
  for (std::size_t i = 0; i < 6; ++i)
    v.low[i] = v.high[i] = values[i];
  v.low[2] = 2.5;  // 2.5 to 4: perhaps less than 3
  v.code({.loss = 0.01, .choice = Coding::Choice::of_chunks, .chunk = 6, .k = 2});
  CHECK(v.low[1] < -5 && v.high[1] < -4.9);  // surely kept
  CHECK(v.low[2] == 0 && v.high[2] > 4);     // kept or not
  CHECK(v.low[4] < -3 && v.high[4] == 0);    // the same
  for (const std::size_t dropped : {0u, 3u, 5u})
    CHECK(v.low[dropped] == 0 && v.high[dropped] == 0);  // surely dropped
}

TEST(ranks_inputs_are_the_same_in_pieces) {
  std::vector<float> all(5000), part(1000);
  input_values(3, 0, DType::f32, all);
  input_values(3, 2345, DType::f32, part);
  CHECK(std::memcmp(part.data(), all.data() + 2345, part.size() * sizeof(float)) == 0);
  double squares = 0;
  for (const float x : all) {
    CHECK(std::abs(x) <= 2 && x * 65536 == std::round(x * 65536));
    squares += static_cast<double>(x) * static_cast<double>(x);
  }
  CHECK(std::abs(std::sqrt(squares / 5000) - 0.577) < 0.03);
  input_values(4, 0, DType::f32, part);
  CHECK(std::memcmp(part.data(), all.data(), part.size() * sizeof(float)) != 0);
}

TEST(ranks_arguments) {
  const AllReduceOptions options =
      parsed({"-b",          "4K",   "-e",        "1M",
              "-f",          "16",   "--codec",   "int8,topk(0.01,int8)",
              "--transport", "tcp",  "--streams", "8",
              "--interface", "lo",   "--segment", "8192",
              "--timeout",   "2.5",  "-t",        "2",
              "-d",          "bf16", "--json"});
  CHECK_EQUAL(sizes_of(options).size(), 3u);
  CHECK_EQUAL(options.codecs.size(), 2u);
  CHECK(options.carrier == Carrier::tcp && options.dtype == DType::bf16);
  CHECK_EQUAL(options.tcp.streams, 8);
  CHECK_EQUAL(options.tcp.interface, "lo");
  CHECK_EQUAL(options.group.segment_elems, 8192u);
  CHECK_EQUAL(options.group.timeout_s, 2.5);
  CHECK_EQUAL(options.n_threads, 2u);
  CHECK_EQUAL(options.json, "-");
  CHECK_EQUAL(parsed({"--json", "rows.jsonl"}).json, "rows.jsonl");
  CHECK_EQUAL(parsed({"--json", "-b", "1M"}).min_bytes, std::size_t{1} << 20);
  CHECK_EQUAL(parsed({"--transport", "memory"}).n_ranks, 2);

  const auto bad = [](std::vector<const char*> arguments, std::string_view part) {
    return rejected(parse_all_reduce, std::move(arguments), part);
  };
  CHECK(bad({"--codec", "int9"}, "--codec: there is no codec"));
  CHECK(bad({"--algorithm", "tree"}, "--algorithm: there is no algorithm"));
  CHECK(bad({"--algorithm", "ring", "--codec", "topk(0.1,int8)"}, "use sparse"));
  CHECK(bad({"--algorithm", "sparse", "--codec", "int8"}, "use direct"));
  CHECK(bad({"--transport", "pigeon"}, "--transport: 'pigeon'"));
  CHECK(bad({"--streams", "4"}, "--streams: only of --transport tcp"));
  CHECK(bad({"--transport", "tcp", "--streams", "65"}, "--streams: '65'"));
  CHECK(bad({"--ranks", "3"}, "--ranks: only of --transport memory"));
  CHECK(bad({"--segment", "5000"}, "a multiple of 4096"));
  CHECK(bad({"--timeout", "0"}, "--timeout: '0'"));
  CHECK(bad({"--timeout", "nan"}, "--timeout: 'nan'"));
  CHECK(bad({"-d", "fp64"}, "-d: 'fp64'"));
  CHECK(bad({"-b", "1G"}, "--minbytes"));
  CHECK(bad({"--spoil", "x"}, "--spoil: 'x'"));
  CHECK(bad({"-m", "3"}, "-m: no such argument"));
  CHECK(rejected(parse_pairs, {"-m", "0"}, "-m: '0'"));
  CHECK(rejected(parse_pairs, {"--codec", "int8"}, "--codec: no such argument"));
}

}  // namespace
