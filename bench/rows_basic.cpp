// The rows without a kernel: streams and the thread pool; and the memory that all rows share.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <memory>
#include <numbers>

#include "base/thread_pool.h"
#include "rows.h"

namespace fedcomm::bench {
namespace {

/// A bijective mixer of 64 bits, so that each element draws by itself (Steele et al., "Fast
/// splittable pseudorandom number generators", OOPSLA 2014).
std::uint64_t mixed(std::uint64_t i) {
  i = (i + 1) * 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9u;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
  return i ^ (i >> 31);
}

/// Box and Muller's two normal variables of one draw.
void draw_normal(std::uint64_t i, float& first, float& second) {
  const std::uint64_t bits = mixed(i);
  const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
  const float v = static_cast<float>(bits & 0xffffffu) * 0x1p-24f;
  const float radius = std::sqrt(-2.0f * std::log(u));
  first = radius * std::cos(2.0f * std::numbers::pi_v<float> * v);
  second = radius * std::sin(2.0f * std::numbers::pi_v<float> * v);
}

}  // namespace

void Arena::fill_input(std::size_t n_elems) {
  const std::span<float> values = x_memory.take<float>(n_elems);
  const std::size_t n_pairs = (n_elems + 1) / 2;
  parallel_for(n_pairs, 1u << 16, [values](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      float unused = 0;
      draw_normal(i, values[2 * i], 2 * i + 1 < values.size() ? values[2 * i + 1] : unused);
    }
  });
  x = values;
}

std::span<float> Arena::fresh_residual() {
  const std::span<float> values = residual.take<float>(x.size());
  constexpr std::size_t kShift = 7919;
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = 0.25f * x[(i + kShift) % x.size()];
  return values;
}

std::vector<Row> stream_rows(Arena& arena, Streams& streams) {
  struct Stream {
    const char* name;
    Traffic traffic;
    Stores stores;
  };
  const std::size_t n = arena.x.size();
  const Stream all[] = {
      {"read", {.n = n, .n_read = 1}, Stores::ordinary},
      {"write", {.n = n, .written = true}, Stores::ordinary},
      {"write, streaming", {.n = n, .written = true}, Stores::streaming},
      {"copy", {.n = n, .n_read = 1, .written = true}, Stores::ordinary},
      {"copy, streaming", {.n = n, .n_read = 1, .written = true}, Stores::streaming},
      {"a += b in place", {.n = n, .n_read = 1, .in_place = true}, Stores::ordinary},
  };
  std::vector<Row> rows;
  for (const Stream& each : all) {
    Row row;
    row.kernel = "stream";
    row.codec = each.name;
    row.uses_isa = false;
    row.is_ceiling = true;
    row.prepare = [traffic = each.traffic] { return Streams::rounded(traffic); };
    row.run = [&streams, traffic = each.traffic, stores = each.stores] {
      streams.run(traffic, stores);
    };
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<Row> pool_rows() {
  Row row;
  row.kernel = "parallel_for";
  row.codec = "empty";
  row.uses_isa = false;
  row.prepare = [] { return Traffic{}; };
  row.run = [] { parallel_for(thread_count(), 1, [](std::size_t, std::size_t) {}); };
  row.verify = []() -> std::string {
    constexpr std::size_t kPieces = 1000;
    std::vector<std::atomic<int>> calls(kPieces);
    parallel_for(kPieces, 1, [&calls](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i)
        ++calls[i];
    });
    const bool once = std::ranges::all_of(calls, [](const auto& n) { return n == 1; });
    return once ? "" : "a piece was not worked on exactly once";
  };
  return {row};
}

std::vector<Row> all_rows(Arena& arena, Streams& streams) {
  std::vector<Row> all;
  for (std::vector<Row>& rows :
       std::vector<std::vector<Row>>{stream_rows(arena, streams), pool_rows(), quant_rows(arena),
                                     topk_rows(arena), codec_rows(arena), coding_rows(arena)}) {
    std::ranges::move(rows, std::back_inserter(all));
  }
  return all;
}

}  // namespace fedcomm::bench
