#include "codec/codec.h"

#include "base/error.h"
#include "codec/parse.h"
#include "codec/quant_codec.h"
#include "codec/sparse_codec.h"

namespace fedcomm {

std::uint32_t Codec::id() const {
  std::uint32_t hash = 2166136261u;  // FNV-1a
  for (const char c : name())
    hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash == 0 ? 1 : hash;
}

std::shared_ptr<const Codec> make_codec(std::string_view name) {
  const CodecText text = parse_codec(name);
  for (const auto make : {make_quant_codec, make_topk_codec, make_chunk_topk_codec}) {
    if (auto codec = make(text)) return codec;
  }
  std::string known;
  for (const std::string& each : codec_names())
    known += (known.empty() ? "" : ", ") + each;
  fail(ErrorKind::invalid_argument,
       "there is no codec '" + std::string(name) + "'; there are, for example: " + known);
}

std::vector<std::string> codec_names() {
  std::vector<std::string> names;
#define FEDCOMM_NAME(F) names.emplace_back(F::kName);
  FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_NAME)
#undef FEDCOMM_NAME
  names.emplace_back("topk(0.01, int8)");
  names.emplace_back("chunk_topk(4096, 64, int2, beta=0.95)");
  return names;
}

}  // namespace fedcomm
