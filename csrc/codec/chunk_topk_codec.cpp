// chunk_topk: the k largest magnitudes of each chunk of elements, ties to the lowest index.
#include <algorithm>

#include "base/error.h"
#include "codec/sparse_codec.h"
#include "coding/coding.h"

namespace fedcomm {
namespace {

constexpr std::string_view kUsage =
    "chunk_topk(CHUNK, K, FORMAT, beta=X, index=rice|packed), e.g. "
    "chunk_topk(4096, 64, int2, beta=0.95)";

enum class IndexCode : std::uint8_t { rice, packed };

struct Choice {
  std::size_t chunk = 4096;
  std::size_t k = 64;
  IndexCode index = IndexCode::rice;
};

class ChunkTopKCodec final : public SparseCodec {
 public:
  ChunkTopKCodec(const Choice& choice, const ValueCodec& values, float beta)
      : SparseCodec(name_of(choice, values, beta), values, beta), choice_(choice) {}

  std::size_t block() const override { return choice_.chunk; }

  std::size_t segment_bytes(std::size_t n_elems, std::size_t) const override {
    const std::size_t k = count(n_elems);
    const std::size_t index_bytes = choice_.index == IndexCode::rice
                                        ? rice_max_bytes(n_elems, k)
                                        : packed_bytes(chunking(n_elems));
    return kCountBytes + value_bytes(k) + index_bytes;
  }

 protected:
  std::size_t count(std::size_t n_elems) const override {
    return chunk_top_k_count(n_elems, choice_.chunk, choice_.k);
  }
  bool count_can_be(std::size_t count_, std::size_t n_elems) const override {
    return count_ == count(n_elems);
  }
  bool select(const TopKInput& input, const TopKOutput& out,
              TopKWorkspace& workspace) const override {
    return cpu::chunk_top_k(input, choice_.chunk, choice_.k, out, workspace);
  }
  std::size_t encode_indices(std::span<const std::uint32_t> indices, std::size_t n_elems,
                             std::span<std::byte> out) const override {
    return choice_.index == IndexCode::rice ? rice_encode(indices, n_elems, out)
                                            : packed_encode(indices, chunking(n_elems), out);
  }
  void decode_indices(std::span<const std::byte> bytes, std::size_t n_elems,
                      std::span<std::uint32_t> indices) const override {
    if (choice_.index == IndexCode::rice) {
      rice_decode(bytes, n_elems, indices);
    } else {
      packed_decode(bytes, chunking(n_elems), indices);
    }
  }
  std::size_t most(std::size_t n_elems, std::size_t) const override { return count(n_elems); }

  void reserve(std::size_t, cuda::TopKWorkspace&) const override {}
  void select(const TopKInput& input, const TopKOutput& out, std::int32_t* non_finite,
              cuda::TopKWorkspace&, void* stream) const override {
    cuda::chunk_top_k(input, {choice_.chunk, choice_.k}, out, non_finite, stream);
  }
  std::optional<std::size_t> encode_indices(const cuda::IndexSet& set, const cuda::CodeOutput& out,
                                            cuda::RiceWorkspace& workspace,
                                            void* stream) const override {
    if (choice_.index == IndexCode::rice) {
      cuda::rice_encode(set, out, workspace, stream);
      return std::nullopt;
    }
    expect(set.range == nullptr, "packed indices of a piece");
    const std::size_t offset = kCountBytes + value_bytes(set.indices.size());
    return offset + cuda::packed_encode(set.indices, chunking(set.n), set.base,
                                        out.bytes.subspan(offset), stream);
  }
  void decode_indices(std::span<const std::byte> bytes, std::size_t n_elems,
                      std::span<std::uint32_t> indices, std::int32_t* corrupt,
                      cuda::RiceWorkspace& workspace, void* stream) const override {
    if (choice_.index == IndexCode::rice) {
      cuda::rice_decode(bytes, n_elems, indices, corrupt, workspace, stream);
    } else {
      cuda::packed_decode(bytes, chunking(n_elems), indices, corrupt, stream);
    }
  }

 private:
  static std::string name_of(const Choice& choice, const ValueCodec& values, float beta) {
    std::string name = "chunk_topk(" + std::to_string(choice.chunk) + ", " +
                       std::to_string(choice.k) + ", " + values.text();
    if (beta != 1.0f) name += ", " + beta_text(beta);
    if (choice.index == IndexCode::packed) name += ", index=packed";
    return name + ")";
  }
  Chunking chunking(std::size_t n_elems) const {
    return {n_elems, static_cast<std::uint32_t>(choice_.chunk),
            static_cast<std::uint32_t>(choice_.k)};
  }

  Choice choice_;
};

}  // namespace

std::shared_ptr<const Codec> make_chunk_topk_codec(const CodecText& text) {
  if (text.word != "chunk_topk") return nullptr;
  CodecArguments arguments(text);
  Choice choice;
  if (const CodecText* chunk = arguments.positional())
    choice.chunk = count_of(*chunk, "chunk_topk: the chunk");
  if (const CodecText* k = arguments.positional()) choice.k = count_of(*k, "chunk_topk: k");
  if (choice.chunk < kMinTopKChunk || choice.chunk > kMaxTopKChunk) {
    fail(ErrorKind::invalid_argument, "chunk_topk: the chunk is " + std::to_string(choice.chunk) +
                                          "; it must be from " + std::to_string(kMinTopKChunk) +
                                          " to " + std::to_string(kMaxTopKChunk));
  }
  if (choice.k < 1 || choice.k > choice.chunk) {
    fail(ErrorKind::invalid_argument, "chunk_topk: k is " + std::to_string(choice.k) +
                                          "; it must be from 1 to the chunk's " +
                                          std::to_string(choice.chunk) + " elements");
  }
  ValueCodec values{.spec = default_spec(Format::Fp32)};
  if (const CodecText* format = arguments.positional()) values = value_codec(*format);
  if (const CodecText* index = arguments.keyword("index")) {
    const std::string code = index->value();
    if (code != "rice" && code != "packed") {
      fail(ErrorKind::invalid_argument,
           "chunk_topk: index is '" + code + "'; it must be rice or packed");
    }
    if (code == "packed") choice.index = IndexCode::packed;
  }
  const float beta = beta_of(arguments);
  arguments.finish(kUsage);
  return std::make_shared<ChunkTopKCodec>(choice, values, beta);
}

}  // namespace fedcomm
