// Whole codecs on a GPU against the CPU's: the same payloads, residuals, verdicts and sums for
// random codecs, tensors and pieces, and nothing written beside them. Empty without CUDA.
#ifdef FEDCOMM_HAS_CUDA
#include <algorithm>
#include <memory>

#include "codec_cases.h"
#include "codec_device.h"

using namespace fedcomm;
using namespace fedcomm::testing;

namespace {

/// Elements of the tensor that make one payload.
struct Piece {
  std::size_t begin, end;

  std::size_t size() const { return end - begin; }
};

/// Multiples of 8, some of them equal, so that there are empty pieces, too.
std::vector<Piece> random_pieces(std::size_t n, Random& random) {
  std::vector<std::size_t> cuts = {0, n};
  for (std::size_t i = random() % 5; i > 0; --i)
    cuts.push_back(random() % (n + 1) / 8 * 8);
  std::sort(cuts.begin(), cuts.end());
  std::vector<Piece> pieces;
  for (std::size_t i = 1; i < cuts.size(); ++i)
    pieces.push_back({cuts[i - 1], cuts[i]});
  return pieces;
}

struct Answer {
  std::vector<Bytes> payloads;
  Floats after;
  bool finite = true;
};

EncodeOptions options_of(const CodecCase& one, Floats& before, Floats& after,
                         NonFinitePolicy policy) {
  EncodeOptions options{.feedback = {}, .draw = one.draw, .policy = policy};
  if (one.residual == Residual::in_place) options.feedback = {before, before};
  if (one.residual == Residual::apart) options.feedback = {before, after};
  return options;
}

/// The CPU's payloads, of a codec that lets what is not finite through.
Answer on_cpu(const CodecCase& one, const std::vector<Piece>& pieces, NonFinitePolicy policy) {
  Answer answer;
  Floats before = one.before;
  answer.after.resize(before.size());
  const EncodeOptions options = options_of(one, before, answer.after, policy);
  const auto whole = pieces.empty() ? nullptr : one.codec->begin(one.x, options);
  const std::size_t n = one.x.size();
  for (const Piece& piece : whole ? pieces : std::vector<Piece>{{0, n}}) {
    Bytes payload(one.codec->segment_bytes(piece.size(), n));
    payload.resize(whole ? whole->encode(piece.begin, piece.end, payload)
                         : one.codec->encode(one.x, options, payload));
    answer.payloads.push_back(payload);
  }
  if (one.residual == Residual::in_place) answer.after = before;
  return answer;
}

Answer truth(const CodecCase& one, const std::vector<Piece>& pieces) {
  Answer answer = on_cpu(one, pieces, NonFinitePolicy::propagate);
  try {
    on_cpu(one, pieces, NonFinitePolicy::error);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::non_finite);
    answer.finite = false;
  }
  return answer;
}

/// Encodes on the device and compares; `pieces` are empty where the whole is one payload.
void compare_encoding(const CodecCase& one, const std::vector<Piece>& pieces,
                      const Answer& expected, Rig& rig) {
  const std::size_t n = one.x.size();
  const Guarded<float> x(one.x, one.x_offset), before(one.before, one.x_offset);
  const Guarded<float> after(one.before.size(), one.after_offset);
  EncodeOptions options{.feedback = {}, .draw = one.draw, .policy = NonFinitePolicy::error};
  const bool in_place = one.residual == Residual::in_place;
  if (one.residual != Residual::none) {
    options.feedback = {before.span(), in_place ? before.span() : after.span()};
  }
  const OnDevice<std::int32_t> non_finite(0);
  const auto device = one.codec->on_device();
  if (!pieces.empty()) device->begin(x.span(), options, non_finite.data(), rig.stream.get());
  for (std::size_t i = 0; i < expected.payloads.size(); ++i) {
    const Piece piece = pieces.empty() ? Piece{0, n} : pieces[i];
    const Guarded<std::byte> payload(one.codec->segment_bytes(piece.size(), n));
    const OnDevice<std::uint64_t> n_bytes(77);
    const DeviceOutput out{payload.span(), n_bytes.data(), non_finite.data()};
    const auto known = pieces.empty()
                           ? device->encode(x.span(), options, out, rig.stream.get())
                           : device->encode_piece(piece.begin, piece.end, out, rig.stream.get());
    rig.stream.wait();
    CHECK_CASE(!known || n_bytes.get() == 77, one.text());
    CHECK_CASE(known.value_or(n_bytes.get()) == expected.payloads[i].size(), one.text());
    CHECK_CASE(
        one.nan_bits_are_open || payload.get(expected.payloads[i].size()) == expected.payloads[i],
        one.text());
    CHECK_CASE(payload.intact(expected.payloads[i].size()), one.text());
    // A group decodes what comes in while it encodes: that must not touch what has been chosen.
    const Bytes& bytes = expected.payloads[i];
    const Guarded<float> decoded(piece.size(), 0);
    const OnDevice<std::int32_t> corrupt(0);
    const DevicePayload given{
        payload.span().first(bytes.size()),
        std::span(bytes).first(std::min<std::size_t>(DevicePayload::kHeadBytes, bytes.size()))};
    device->decode(given, decoded.span(), corrupt.data(), rig.stream.get());
    rig.stream.wait();
  }
  CHECK_CASE(non_finite.get() == (expected.finite ? 0 : 1), one.text());
  CHECK_CASE(one.residual == Residual::none ||
                 same_floats((in_place ? before : after).get(), expected.after),
             one.text());
  CHECK_CASE(x.intact() && before.intact() && after.intact(), one.text());
}

/// Both decoders of a payload of n elements, which may be anything, against the CPU's.
void compare_decoding(const Codec& codec, const Bytes& payload, std::size_t n, Random& random,
                      const std::string& text, Rig& rig) {
  const Floats start = random_floats(n, Special::none, random);
  const float weight = random() % 4 == 0 ? 1.0f : 0.37f;
  Floats decoded(n), sum = start;
  bool good = true;
  try {
    codec.decode(payload, decoded);
    codec.decode_add(payload, weight, sum);
  } catch (const Error& error) {
    CHECK_CASE(error.kind() == ErrorKind::corrupt_frame, text);
    good = false;
  }
  const Guarded<std::byte> there(payload, 0);
  const Guarded<float> out(n, random() % 4), accumulator(start, random() % 4);
  const DevicePayload given{there.span(), std::span(payload).first(std::min<std::size_t>(
                                              DevicePayload::kHeadBytes, payload.size()))};
  bool accepted = true;
  const auto device = codec.on_device();
  for (const bool add : {false, true}) {
    const OnDevice<std::int32_t> corrupt(0);
    try {
      if (add) {
        device->decode_add(given, weight, accumulator.span(), corrupt.data(), rig.stream.get());
      } else {
        device->decode(given, out.span(), corrupt.data(), rig.stream.get());
      }
      rig.stream.wait();
      accepted = accepted && corrupt.get() == 0;
    } catch (const Error& error) {
      CHECK_CASE(error.kind() == ErrorKind::corrupt_frame, text);
      accepted = false;
    }
  }
  CHECK_CASE(accepted == good, text);
  CHECK_CASE(!good || same_floats(out.get(), decoded), text);
  CHECK_CASE(same_floats(accumulator.get(), good ? sum : start), text);
  CHECK_CASE(out.intact() && accumulator.intact() && there.intact(), text);
}

void compare_codec(const CodecCase& one, Random& random, Rig& rig) {
  const Answer expected = truth(one, {});
  compare_encoding(one, {}, expected, rig);
  compare_decoding(*one.codec, expected.payloads[0], one.x.size(), random, one.text(), rig);
  if (!one.codec->chooses_from_whole()) return;
  const std::vector<Piece> pieces = random_pieces(one.x.size(), random);
  const Answer in_pieces = truth(one, pieces);
  compare_encoding(one, pieces, in_pieces, rig);
  for (std::size_t i = 0; i < pieces.size(); ++i)
    compare_decoding(*one.codec, in_pieces.payloads[i], pieces[i].size(), random, one.text(), rig);
}

Bytes damaged(Bytes payload, Random& random) {
  const auto a_byte = [&] { return static_cast<std::byte>(random() % 256); };
  switch (random() % 6) {
    case 0: payload.resize(random() % (payload.size() + 1)); break;
    case 1: payload.resize(payload.size() + 1 + random() % 9, a_byte()); break;
    case 2:
      for (std::size_t i = 0; i < 4 && i < payload.size(); ++i)
        payload[i] = random() % 2 == 0 ? a_byte() : std::byte{0};
      break;
    case 3:
      if (!payload.empty()) payload[0] ^= static_cast<std::byte>(1u << random() % 4);
      break;
    case 4:
      for (std::byte& each : payload)
        if (random() % 16 == 0) each = a_byte();
      break;
    default:
      if (!payload.empty())
        payload[random() % payload.size()] ^= static_cast<std::byte>(1u << random() % 8);
  }
  return payload;
}

}  // namespace

TEST(cuda_codecs_give_the_bits_of_the_cpu) {
  need_device();
  Rig rig;
  for (std::uint64_t seed = 0; seed < testing::cases_of(2000); ++seed) {
    Random random(seed);
    compare_codec(random_codec_case(random, random_n(random)), random, rig);
  }
}

TEST(cuda_codecs_of_small_tensors) {
  need_device();
  Rig rig;
  for (std::uint64_t seed = 0; seed < testing::cases_of(200); ++seed) {
    Random random(2'000'000 + seed);
    compare_codec(random_codec_case(random, random() % 700), random, rig);
  }
}

TEST(cuda_codecs_of_damaged_payloads) {
  need_device();
  Rig rig;
  for (std::uint64_t seed = 0; seed < testing::cases_of(300); ++seed) {
    Random random(1'000'000 + seed);
    CodecCase one = random_codec_case(random, random() % 20'000);
    one.before.clear();
    one.residual = Residual::none;
    const Bytes payload = on_cpu(one, {}, NonFinitePolicy::propagate).payloads[0];
    for (int i = 0; i < 12; ++i)
      compare_decoding(*one.codec, damaged(payload, random), one.x.size(), random, one.text(), rig);
  }
}

TEST(cuda_codecs_check_the_room) {
  need_device();
  Rig rig;
  for (const char* name : {"int8", "topk(0.01, int8)", "chunk_topk(256, 3, int2)"}) {
    const auto codec = make_codec(name);
    const auto device = codec->on_device();
    const Guarded<float> x(Floats(10'000, 1.0f), 0);
    const Guarded<std::byte> payload(codec->wire_bytes(10'000) - 1);
    const OnDevice<std::int32_t> flag(0);
    const OnDevice<std::uint64_t> n_bytes(0);
    CHECK_THROWS(ErrorKind::invalid_argument,
                 device->encode(x.span(), {}, {payload.span(), n_bytes.data(), flag.data()},
                                rig.stream.get()));
    rig.stream.wait();
    CHECK(payload.intact(0));
  }
}

// What is launched is the same for any values: one graph, replayed with others. Captured after
// reserve_*(), which shows that nothing is allocated from then on.
TEST(cuda_codecs_in_a_graph) {
  need_device();
  Rig rig;
  constexpr std::size_t n = 300'007, kCut = 100'000;
  for (const char* name :
       {"int4(stochastic)", "topk(0.01, sign)", "chunk_topk(4096, 64, int2, beta=0.95)",
        "chunk_topk(1000, 10, e3m0, index=packed)"}) {
    Random random(31);
    CodecCase one{.codec = make_codec(name)};
    one.residual = Residual::apart;
    one.x = random_floats(n, Special::none, random);
    one.before = random_floats(n, Special::none, random);
    std::vector<Piece> pieces;
    if (one.codec->chooses_from_whole()) pieces = {{0, kCut}, {kCut, n}};
    const std::size_t n_payloads = std::max<std::size_t>(1, pieces.size());

    const Guarded<float> before(one.before, 0), after(n);
    Guarded<float> x(one.x, 0);
    const std::size_t room = (one.codec->segment_bytes(n, n) + 15) / 16 * 16;
    const Guarded<std::byte> payload(n_payloads * room);
    const Guarded<std::uint64_t> n_bytes(std::vector<std::uint64_t>(2, 0), 0);
    const OnDevice<std::int32_t> flag(0);
    const auto device = one.codec->on_device();
    device->reserve_encode(n);
    const EncodeOptions options{.feedback = {before.span(), after.span()}, .draw = {}};
    const auto out = [&](std::size_t i) {
      return DeviceOutput{payload.span().subspan(i * room, room), n_bytes.span().data() + i,
                          flag.data()};
    };
    std::optional<std::size_t> known;
    Graph graph(rig.stream, [&](cudaStream_t stream) {
      if (pieces.empty()) {
        known = device->encode(x.span(), options, out(0), stream);
        return;
      }
      device->begin(x.span(), options, flag.data(), stream);
      for (std::size_t i = 0; i < pieces.size(); ++i)
        device->encode_piece(pieces[i].begin, pieces[i].end, out(i), stream);
    });
    for (int replay = 0; replay < 3; ++replay) {
      one.x = random_floats(n, Special::none, random);
      x.put(one.x);
      graph.launch();
      rig.stream.wait();
      const Answer expected = truth(one, pieces);
      for (std::size_t i = 0; i < n_payloads; ++i) {
        const std::size_t size = known.value_or(n_bytes.get()[i]);
        CHECK_CASE(size == expected.payloads[i].size(), std::string(name));
        const auto* begin = out(i).payload.data();
        Bytes got(size);
        check_cuda(cudaMemcpy(got.data(), begin, size, cudaMemcpyDeviceToHost));
        CHECK_CASE(got == expected.payloads[i], std::string(name));
      }
      CHECK_CASE(same_floats(after.get(), expected.after), std::string(name));
    }
  }
}

TEST(cuda_decoding_of_codecs_in_a_graph) {
  need_device();
  Rig rig;
  constexpr std::size_t n = 300'007;
  for (const char* name : {"int2", "topk(0.01, int8)", "chunk_topk(512, 5, bf16, index=packed)"}) {
    Random random(32);
    CodecCase one{.codec = make_codec(name)};
    one.x = random_floats(n, Special::none, random);
    const Bytes payload = on_cpu(one, {}, NonFinitePolicy::error).payloads[0];
    Floats expected(n), sum(n, 1.0f);
    one.codec->decode(payload, expected);
    const Guarded<std::byte> there(payload, 0);
    const Guarded<float> out(n), accumulator(sum, 0);
    one.codec->decode_add(payload, 0.5f, sum);
    const OnDevice<std::int32_t> corrupt(0);
    const auto device = one.codec->on_device();
    device->reserve_decode(n, n);
    const DevicePayload given{there.span(), std::span(payload).first(DevicePayload::kHeadBytes)};
    Graph graph(rig.stream, [&](cudaStream_t stream) {
      device->decode(given, out.span(), corrupt.data(), stream);
      device->decode_add(given, 0.5f, accumulator.span(), corrupt.data(), stream);
    });
    graph.launch();
    rig.stream.wait();
    CHECK(corrupt.get() == 0);
    CHECK_CASE(same_floats(out.get(), expected), std::string(name));
    CHECK_CASE(same_floats(accumulator.get(), sum), std::string(name));
  }
}

#endif  // FEDCOMM_HAS_CUDA
