// Payloads of topk and chunk_topk: count, values, indices. Each is taken apart once more, by the
// references of index coding: the codec accepts exactly what these accept, puts the same values at
// the same places, leaves all others alone, and what it accepts is the one payload of these
// entries.
#include "codec/codec.h"
#include "codec/parse.h"
#include "codec/quant_codec.h"
#include "coding_reference.h"
#include "fuzz.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

struct Choice {
  const char* codec;
  const char* values;
  std::uint32_t chunk;  // 0: of the whole tensor
  std::uint32_t k;
  bool packed;
};

constexpr Choice kChoices[] = {
    {"topk(0.01, fp32)", "fp32", 0, 0, false},
    {"topk(0.3, int8)", "int8", 0, 0, false},
    {"topk(k=17, bf16)", "bf16", 0, 0, false},
    {"topk(0.05, int4(block=32, stochastic))", "int4(block=32)", 0, 0, false},
    {"topk(0.9, sign)", "sign", 0, 0, false},
    {"topk(1, fp8_e4m3)", "fp8_e4m3", 0, 0, false},
    {"chunk_topk(256, 3, fp32)", "fp32", 256, 3, false},
    {"chunk_topk(4096, 64, int2, beta=0.95)", "int2", 4096, 64, false},
    {"chunk_topk(1000, 40, sign, index=packed)", "sign", 1000, 40, true},
    {"chunk_topk(257, 257, int8(scale=bf16), index=packed)", "int8(scale=bf16)", 257, 257, true},
    {"chunk_topk(65536, 9, e3m0, index=packed)", "e3m0", 65536, 9, true},
    {"chunk_topk(300, 1, bf16, index=packed)", "bf16", 300, 1, true},
};

struct Entries {
  Indices indices;
  std::vector<float> values;
};

std::optional<Entries> reference_entries(const Choice& choice, std::span<const std::byte> payload,
                                         std::size_t n) {
  std::uint32_t k = 0;
  if (payload.size() < sizeof k) return std::nullopt;
  std::memcpy(&k, payload.data(), sizeof k);
  const Chunking chunking{n, choice.chunk, choice.k};
  if (k > n || (choice.chunk != 0 && k != packed_count(chunking))) return std::nullopt;
  const QuantSpec spec = value_codec(parse_codec(choice.values)).spec;
  const std::size_t n_bytes = quant_bytes(spec, k);
  payload = payload.subspan(sizeof k);
  if (payload.size() < n_bytes) return std::nullopt;
  const auto coded = payload.subspan(n_bytes);
  const Bytes tail(coded.begin(), coded.end());
  const auto indices =
      choice.packed ? reference_packed_decode(tail, chunking) : reference_rice_decode(tail, n, k);
  if (!indices) return std::nullopt;
  CHECK(tail ==
        (choice.packed ? reference_packed(*indices, chunking) : reference_rice(*indices, n)));
  Entries entries{*indices, std::vector<float>(k)};
  cpu::decode(spec, payload.first(n_bytes), entries.values);  // fuzz_quant looks at this one
  return entries;
}

/// Returns whether it is a payload of n elements.
bool check_payload(const Choice& choice, const Codec& codec, std::span<const std::byte> payload,
                   std::size_t n) {
  const auto entries = reference_entries(choice, payload, n);
  const float weight = 0.3f;
  std::vector<float> truth(n), start(n, 7.5f), sum = start;
  for (std::size_t i = 0; entries && i < entries->indices.size(); ++i) {
    const std::uint32_t index = entries->indices[i];
    truth[index] = entries->values[i];
    sum[index] += weight * entries->values[i];
  }
  on_every_isa([&] {
    std::vector<float> out(n, -1.0f), accumulator = start;
    const bool decoded =
        fuzz::accepts(ErrorKind::corrupt_frame, [&] { codec.decode(payload, out); });
    const bool added = fuzz::accepts(ErrorKind::corrupt_frame,
                                     [&] { codec.decode_add(payload, weight, accumulator); });
    CHECK(decoded == entries.has_value() && added == decoded);
    CHECK(!decoded || fuzz::same_bits(out, truth));
    for (std::size_t i = 0; i < n; ++i)
      CHECK(fuzz::same_sum(accumulator[i], sum[i]));
  });
  return entries.has_value();
}

/// What the codec itself writes, in one piece or, where it chooses from the whole, in two.
std::vector<Bytes> own_payloads(const Codec& codec, std::span<const float> x, std::size_t cut) {
  const EncodeOptions options{.feedback = {}, .draw = {}, .policy = NonFinitePolicy::propagate};
  std::vector<Bytes> payloads;
  const auto whole = codec.begin(x, options);
  const auto add = [&](std::size_t begin, std::size_t end) {
    const auto part = x.subspan(begin, end - begin);
    Bytes payload(whole ? codec.segment_bytes(part.size(), x.size()) : codec.wire_bytes(x.size()));
    payload.resize(whole ? whole->encode(begin, end, payload)
                         : codec.encode(part, options, payload));
    payloads.push_back(payload);
  };
  add(0, whole ? cut : x.size());
  add(whole ? cut : 0, x.size());
  return payloads;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const Choice& choice = kChoices[input.below(std::size(kChoices))];
  const std::size_t n = input.size();
  const std::size_t skip = input.below(8);
  const std::size_t damaged_bit = input.number<std::uint32_t>();
  const auto rest = input.rest();
  const auto codec = make_codec(choice.codec);

  check_payload(choice, *codec, fuzz::Exact(rest, skip).bytes(), n);
  // Honest payloads of these very floats, and the same with a wrong bit.
  std::vector<float> x(n);
  const auto bytes = fuzz::repeated(rest, n * sizeof(float));
  if (n > 0) std::memcpy(x.data(), bytes.data(), bytes.size());
  const std::size_t cut = n / 2 / 8 * 8;
  const auto payloads = own_payloads(*codec, x, cut);
  for (std::size_t i = 0; i < payloads.size(); ++i) {
    const std::size_t n_here = choice.chunk != 0 ? n : (i == 0 ? cut : n - cut);
    const fuzz::Exact exact(payloads[i], skip);
    CHECK(check_payload(choice, *codec, exact.bytes(), n_here));
    exact.bytes()[damaged_bit / 8 % payloads[i].size()] ^= std::byte{1} << (damaged_bit % 8);
    check_payload(choice, *codec, exact.bytes(), n_here);
  }
  return 0;
}
