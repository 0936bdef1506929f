// topk: the k largest magnitudes of a whole tensor, ties to the lowest index.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "codec/sparse_codec.h"
#include "coding/coding.h"

namespace fedcomm {
namespace {

constexpr std::string_view kUsage =
    "topk(DENSITY or k=COUNT, FORMAT, beta=X), e.g. topk(0.01, int8, beta=0.95)";

/// How many: a share of the elements, or a number of them.
struct Amount {
  double density = 0;
  std::size_t k = 0;  // 0: by density

  std::string text() const { return k > 0 ? "k=" + std::to_string(k) : text_of(density); }
  /// Of n elements: the nearest to the share, at least one.
  std::size_t of(std::size_t n) const {
    if (k > 0) return std::min(n, k);
    const double all = static_cast<double>(n), share = std::round(density * all);
    if (share >= all) return n;  // before the cast, which 2^64 would not survive
    return std::min(n, std::max<std::size_t>(1, static_cast<std::size_t>(share)));
  }
};

class TopKCodec final : public SparseCodec {
 public:
  TopKCodec(Amount amount, const ValueCodec& values, float beta)
      : SparseCodec(name_of(amount, values, beta), values, beta), amount_(amount) {}

  std::size_t block() const override { return 1; }
  bool chooses_from_whole() const override { return true; }
  std::shared_ptr<const Codec> for_part(std::size_t n_part, std::size_t n_total) const override {
    if (amount_.k == 0 || n_total == 0) return shared_from_this();
    const double share = static_cast<double>(n_part) / static_cast<double>(n_total);
    const double k = std::ceil(share * static_cast<double>(amount_.of(n_total)));
    return std::make_shared<TopKCodec>(
        Amount{.k = std::max<std::size_t>(1, static_cast<std::size_t>(k))}, values_, beta_);
  }

  std::size_t segment_bytes(std::size_t n_elems, std::size_t n_total) const override {
    if (n_elems == n_total) {
      const std::size_t k = amount_.of(n_elems);
      return kCountBytes + value_bytes(k) + rice_max_bytes(n_elems, k);
    }
    // Anything from none to all that is chosen of the whole may lie in these. The code's length
    // grows with the number of entries, except that all of them take no bytes.
    const std::size_t k = most(n_elems, n_total);
    const std::size_t index_bytes =
        n_elems == 0 ? 0 : rice_max_bytes(n_elems, std::min(k, n_elems - 1));
    return kCountBytes + value_bytes(k) + index_bytes;
  }

  std::unique_ptr<WholeEncoding> begin(std::span<const float> x,
                                       const EncodeOptions& options) const override;

 protected:
  std::size_t count(std::size_t n_elems) const override { return amount_.of(n_elems); }
  bool count_can_be(std::size_t, std::size_t) const override { return true; }
  bool select(const TopKInput& input, const TopKOutput& out,
              TopKWorkspace& workspace) const override {
    return cpu::top_k(input, out, workspace);
  }
  std::size_t encode_indices(std::span<const std::uint32_t> indices, std::size_t n_elems,
                             std::span<std::byte> out) const override {
    return rice_encode(indices, n_elems, out);
  }
  void decode_indices(std::span<const std::byte> bytes, std::size_t n_elems,
                      std::span<std::uint32_t> indices) const override {
    rice_decode(bytes, n_elems, indices);
  }
  std::size_t most(std::size_t n_elems, std::size_t n_total) const override {
    return std::min(n_elems, amount_.of(n_total));
  }

  void reserve(std::size_t n_elems, cuda::TopKWorkspace& workspace) const override {
    workspace.reserve(n_elems, count(n_elems));
  }
  void select(const TopKInput& input, const TopKOutput& out, std::int32_t* non_finite,
              cuda::TopKWorkspace& workspace, void* stream) const override {
    cuda::top_k(input, out, non_finite, workspace, stream);
  }
  std::optional<std::size_t> encode_indices(const cuda::IndexSet& set, const cuda::CodeOutput& out,
                                            cuda::RiceWorkspace& workspace,
                                            void* stream) const override {
    cuda::rice_encode(set, out, workspace, stream);
    return std::nullopt;
  }
  void decode_indices(std::span<const std::byte> bytes, std::size_t n_elems,
                      std::span<std::uint32_t> indices, std::int32_t* corrupt,
                      cuda::RiceWorkspace& workspace, void* stream) const override {
    cuda::rice_decode(bytes, n_elems, indices, corrupt, workspace, stream);
  }

 private:
  friend class WholeTopK;

  static std::string name_of(Amount amount, const ValueCodec& values, float beta) {
    const std::string last = beta_text(beta);
    return "topk(" + amount.text() + ", " + values.text() + (last.empty() ? "" : ", " + last) + ")";
  }

  Amount amount_;
};

/// The entries of the whole tensor, handed out piece by piece.
class WholeTopK final : public WholeEncoding {
 public:
  WholeTopK(const TopKCodec& codec, std::span<const float> x, const EncodeOptions& options)
      : codec_(codec),
        options_(options),
        workspace_(take_sparse_workspace()),
        entries_(codec.choose(x, options, *workspace_)) {}

  std::size_t encode(std::size_t begin, std::size_t end, std::span<std::byte> payload) override {
    return codec_.encode_entries(entries_, {begin, end}, options_, *workspace_, payload);
  }

 private:
  const TopKCodec& codec_;
  EncodeOptions options_;
  SparseWorkspacePtr workspace_;
  TopKOutput entries_;
};

std::unique_ptr<WholeEncoding> TopKCodec::begin(std::span<const float> x,
                                                const EncodeOptions& options) const {
  return std::make_unique<WholeTopK>(*this, x, options);
}

}  // namespace

std::shared_ptr<const Codec> make_topk_codec(const CodecText& text) {
  if (text.word != "topk") return nullptr;
  CodecArguments arguments(text);
  Amount amount{.density = 0.01};
  if (const CodecText* k = arguments.keyword("k")) {
    amount.k = count_of(*k, "topk: k");
    if (amount.k == 0) fail(ErrorKind::invalid_argument, "topk: k is 0; it must be at least 1");
  } else if (const CodecText* density = arguments.positional()) {
    amount.density = number_of(*density, "topk: the density");
    if (!(amount.density > 0.0 && amount.density <= 1.0)) {
      fail(ErrorKind::invalid_argument, "topk: the density is " + text_of(amount.density) +
                                            "; it must be above 0 and at most 1");
    }
  }
  ValueCodec values{.spec = default_spec(Format::Fp32)};
  if (const CodecText* format = arguments.positional()) values = value_codec(*format);
  const float beta = beta_of(arguments);
  arguments.finish(kUsage);
  return std::make_shared<TopKCodec>(amount, values, beta);
}

}  // namespace fedcomm
