#include "codec/sparse_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

namespace fedcomm {
namespace {

/// Workspaces that nobody uses at the moment. Never freed, as threads may outlive static objects.
struct IdleWorkspaces {
  std::mutex mutex;
  std::vector<std::unique_ptr<SparseWorkspace>> idle;
};

IdleWorkspaces& idle_workspaces() {
  static auto* all = new IdleWorkspaces;
  return *all;
}

constexpr std::size_t kFillPiece = 1u << 18, kEntriesPiece = 1u << 14;

/// change(target[indices[i]], i) for each entry; indices differ. Each element lies in a cache line
/// of its own, which is asked for some entries ahead.
template <typename Change>
void change_entries(std::span<const std::uint32_t> indices, std::span<float> target,
                    const Change& change) {
  constexpr std::size_t kAhead = 32;
  parallel_for(indices.size(), kEntriesPiece, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(&target[indices[i + kAhead]], 1);
      change(target[indices[i]], i);
    }
  });
}

}  // namespace

SparseWorkspacePtr take_sparse_workspace() {
  IdleWorkspaces& all = idle_workspaces();
  std::unique_ptr<SparseWorkspace> workspace;
  {
    const std::lock_guard lock(all.mutex);
    if (!all.idle.empty()) {
      workspace = std::move(all.idle.back());
      all.idle.pop_back();
    }
  }
  if (!workspace) workspace = std::make_unique<SparseWorkspace>();
  return {workspace.release(), [](SparseWorkspace* used) {
            std::unique_ptr<SparseWorkspace> owned(used);
            const std::lock_guard lock(idle_workspaces().mutex);
            idle_workspaces().idle.push_back(std::move(owned));
          }};
}

std::size_t SparseCodec::encode(std::span<const float> x, const EncodeOptions& options,
                                std::span<std::byte> payload) const {
  const auto workspace = take_sparse_workspace();
  const TopKOutput entries = choose(x, options, *workspace);
  return encode_entries(entries, {0, x.size()}, options, *workspace, payload);
}

TopKOutput SparseCodec::choose(std::span<const float> x, const EncodeOptions& options,
                               SparseWorkspace& workspace) const {
  const std::size_t k = count(x.size());
  const TopKOutput out{{workspace.indices.get(k), k}, {workspace.values.get(k), k}};
  Feedback feedback = options.feedback;
  feedback.beta = beta_;
  const TopKInput input{x, feedback.before, feedback.after, beta_};
  if (!select(input, out, workspace.selection) && options.policy == NonFinitePolicy::error) {
    // The largest magnitudes are chosen, so one of the entries is the first that is not finite.
    for (std::size_t i = 0; i < k; ++i) {
      if (!std::isfinite(out.values[i])) {
        fail(ErrorKind::non_finite, "NaN or infinity", static_cast<std::int64_t>(out.indices[i]));
      }
    }
    fail_non_finite(Format::Fp32, x, feedback);
  }
  return out;
}

std::size_t SparseCodec::encode_entries(const TopKOutput& entries, Piece piece,
                                        const EncodeOptions& options, SparseWorkspace& workspace,
                                        std::span<std::byte> payload) const {
  const auto first = std::lower_bound(entries.indices.begin(), entries.indices.end(), piece.begin);
  const auto last = std::lower_bound(first, entries.indices.end(), piece.end);
  const auto at = static_cast<std::size_t>(first - entries.indices.begin());
  const auto k = static_cast<std::size_t>(last - first);
  const auto indices = entries.indices.subspan(at, k);
  const auto values = entries.values.subspan(at, k);
  Draw draw = values_.draw(options.draw);
  draw.first += piece.begin;

  const auto k32 = static_cast<std::uint32_t>(k);
  std::memcpy(payload.data(), &k32, kCountBytes);
  const auto coded = payload.subspan(kCountBytes, value_bytes(k));
  const bool finite = cpu::encode(values_.spec, values, {}, draw, coded);
  if (!finite && options.policy == NonFinitePolicy::error) {
    const std::size_t bad = cpu::first_non_finite(values_.spec.format, values);
    fail(ErrorKind::non_finite, "NaN or infinity", static_cast<std::int64_t>(indices[bad]));
  }
  const std::span<float> after = options.feedback.after;
  if (!after.empty()) {
    const std::span<float> decoded(workspace.decoded.get(k), k);
    cpu::decode(values_.spec, coded, decoded);
    change_entries(indices, after, [&](float& rest, std::size_t i) {
      rest = std::isfinite(decoded[i]) ? values[i] - decoded[i] : 0.0f;
    });
  }
  const auto room = payload.subspan(kCountBytes + coded.size());
  if (piece.begin == 0) {
    return kCountBytes + coded.size() + encode_indices(indices, piece.end, room);
  }
  const std::span<std::uint32_t> local(workspace.local_indices.get(k), k);
  for (std::size_t i = 0; i < k; ++i)
    local[i] = static_cast<std::uint32_t>(indices[i] - piece.begin);
  return kCountBytes + coded.size() + encode_indices(local, piece.end - piece.begin, room);
}

std::size_t SparseCodec::count_in(std::span<const std::byte> head, std::size_t n_bytes,
                                  std::size_t n_elems) const {
  std::uint32_t k = 0;
  if (n_bytes >= kCountBytes) std::memcpy(&k, head.data(), kCountBytes);
  if (n_bytes < kCountBytes || k > n_elems || !count_can_be(k, n_elems) ||
      n_bytes - kCountBytes < value_bytes(k)) {
    fail(ErrorKind::corrupt_frame, "payload of " + std::to_string(n_bytes) + " bytes cannot hold " +
                                       std::to_string(n_elems) + " elements in " + name());
  }
  return k;
}

TopKOutput SparseCodec::decode_entries(std::span<const std::byte> payload, std::size_t n_elems,
                                       SparseWorkspace& workspace) const {
  const std::size_t k = count_in(payload, payload.size(), n_elems);
  const TopKOutput entries{{workspace.indices.get(k), k}, {workspace.values.get(k), k}};
  decode_indices(payload.subspan(kCountBytes + value_bytes(k)), n_elems, entries.indices);
  cpu::decode(values_.spec, payload.subspan(kCountBytes, value_bytes(k)), entries.values);
  return entries;
}

void SparseCodec::decode(std::span<const std::byte> payload, std::span<float> out) const {
  const auto workspace = take_sparse_workspace();
  const TopKOutput entries = decode_entries(payload, out.size(), *workspace);
  parallel_for(out.size(), kFillPiece, [out](std::size_t begin, std::size_t end) {
    std::memset(out.data() + begin, 0, (end - begin) * sizeof(float));
  });
  change_entries(entries.indices, out,
                 [&](float& element, std::size_t i) { element = entries.values[i]; });
}

void SparseCodec::decode_add(std::span<const std::byte> payload, float weight,
                             std::span<float> accumulator) const {
  const auto workspace = take_sparse_workspace();
  const TopKOutput entries = decode_entries(payload, accumulator.size(), *workspace);
  change_entries(entries.indices, accumulator,
                 [&](float& sum, std::size_t i) { sum += weight * entries.values[i]; });
}

}  // namespace fedcomm
