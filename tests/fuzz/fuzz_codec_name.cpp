// Names of codecs: the parser fails with invalid_argument or gives a codec, whose name is
// canonical, makes an equal codec, and carries a few values there and back within the size that was
// announced.
#include <string>

#include "codec/codec.h"
#include "codec/parse.h"
#include "fuzz.h"

using namespace fedcomm;

namespace {

void check_codec(const Codec& codec) {
  const auto same = make_codec(codec.name());
  CHECK_EQUAL(same->name(), codec.name());
  CHECK(same->id() == codec.id() && codec.id() != 0);
  CHECK(codec.block() > 0);
  for (const std::size_t n : {0u, 1u, 40u, 300u}) {
    std::vector<float> x(n), out(n), sum(n, 1.0f), residual(n);
    for (std::size_t i = 0; i < n; ++i)
      x[i] = static_cast<float>(i * 37 % 19) - 9.0f;
    EncodeOptions options;
    options.feedback = {residual, residual};
    std::vector<std::byte> payload(codec.wire_bytes(n));
    payload.resize(codec.encode(x, options, payload));
    std::vector<std::byte> again(same->wire_bytes(n));
    again.resize(same->encode(x, {}, again));
    CHECK(payload == again);
    codec.decode(payload, out);
    codec.decode_add(payload, 1.0f, sum);
    for (std::size_t i = 0; i < n; ++i) {
      CHECK(x[i] - out[i] == residual[i]);
      CHECK(sum[i] == 1.0f + out[i]);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string name(reinterpret_cast<const char*>(data), size);
  const auto parses = [&] {
    const CodecText text = parse_codec(name);
    CHECK_EQUAL(parse_codec(text.text()).text(), text.text());
  };
  const bool grammatical = fuzz::accepts(ErrorKind::invalid_argument, parses);
  std::shared_ptr<const Codec> codec;
  if (!fuzz::accepts(ErrorKind::invalid_argument, [&] { codec = make_codec(name); })) return 0;
  CHECK(grammatical);
  check_codec(*codec);
  return 0;
}
