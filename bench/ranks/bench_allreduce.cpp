// fedcomm-bench-allreduce: times Group::all_reduce over the ranks that mpirun started, or over
// threads of this process, and verifies the sums. -h has the arguments, bench/README.md what the
// numbers mean. It makes no links: those of bench/wanlab, or the machine's own.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <mutex>

#include "base/thread_pool.h"
#include "codec/codec.h"
#include "collective/identity.h"
#include "ranks/report.h"
#include "ranks/truth.h"

namespace fedcomm::bench {
namespace {

constexpr const char* kHeader =
    "# bytes     of the tensor of one rank\n"
    "# median, min, max   milliseconds from the barrier to the sum, mean over the ranks\n"
    "# algbw     bytes / median, in 10^9 a second\n"
    "# busbw     algbw * 2 (N-1) / N: the rate of a link that is used both ways, if values were\n"
    "#           sent as they are, each by the shortest way\n"
    "# wire      bytes of frames that the busiest rank sends\n"
    "# ok        whether all ranks have the same bits, and these are right\n#\n"
    "codec                  algorithm        bytes     median        min        max   algbw   "
    "busbw         wire ok\n";

struct Task {
  std::string codec, algorithm;
  std::size_t n_elems;
};

class Bench {
 public:
  Bench(Group& group, const AllReduceOptions& options) : group_(group), options_(options) {}

  int run() {
    RowPrinter rows(group_, options_, kHeader);
    if (options_.measure) group_.measure(MeasureBy::probes);
    for (const std::size_t n_bytes : sizes_of(options_)) {
      const std::size_t n_elems = n_bytes / size_of(options_.dtype);
      fill(n_elems);
      for (const std::string& codec : options_.codecs) {
        for (const std::string& algorithm : options_.algorithms)
          measure({codec, algorithm, n_elems}, rows);
      }
    }
    return rows.finish();
  }

 private:
  void fill(std::size_t n_elems) {
    input_.assign(n_elems * size_of(options_.dtype), std::byte{0});
    output_.assign(input_.size(), std::byte{0});
    constexpr std::size_t kPiece = 1u << 16;
    parallel_for(n_elems, kPiece, [&](std::size_t begin, std::size_t end) {
      std::vector<float> values(end - begin);
      input_values(group_.rank(), begin, options_.dtype, values);
      store_floats(values, view(input_), begin);
    });
  }

  TensorView view(std::vector<std::byte>& bytes) const {
    return {bytes.data(), bytes.size() / size_of(options_.dtype), options_.dtype};
  }

  void measure(const Task& task, RowPrinter& rows) {
    ReduceOptions reduce;
    reduce.codec = task.codec;
    reduce.algorithm = algorithm_named(task.algorithm);
    const auto sum = [&] { group_.all_reduce(view(input_), view(output_), reduce)->wait(); };
    const auto [times, cpu_s] = time_together(group_, options_, Counts::mean, sum);

    // Once more, onto what is no number, for the bytes and the outcome.
    std::memset(output_.data(), 0xff, output_.size());
    group_.barrier()->wait();
    const std::uint64_t sent_before = group_.counters().frame_bytes;
    sum();
    const std::uint64_t wire_bytes = largest(group_, group_.counters().frame_bytes - sent_before);
    const Algorithm used =
        reduce.algorithm ? *reduce.algorithm : group_.choose(task.n_elems, task.codec).algorithm;
    const Verdict verdict = options_.check ? Verdict::of(verify(task, used)) : Verdict{};

    const std::size_t n_bytes = input_.size();
    const double n = group_.size();
    const double algbw = static_cast<double>(n_bytes) / times.median_ms / 1e6;
    const double busbw = algbw * 2 * (n - 1) / n;
    JsonRow json;
    json.text("codec", task.codec);
    json.text("algorithm", task.algorithm);
    json.text("algorithm_used", name_of(used));
    json.text("dtype", name_of(options_.dtype));
    world_fields(json, group_, options_);
    json.count("n_bytes", n_bytes);
    json.times(times);
    json.number("algbw_gbps", algbw);
    json.number("busbw_gbps", busbw);
    json.count("wire_bytes", wire_bytes);
    const double cpu_per_gb = cpu_s / static_cast<double>(n_bytes) * 1e9;
    // Threads of one process share its clock.
    json.field("cpu_s_per_gb",
               options_.carrier == Carrier::memory ? "null" : json_number(cpu_per_gb));
    char line[256];
    std::snprintf(line, sizeof line, "%-22s %-10s %11zu %10.3f %10.3f %10.3f %7.3f %7.3f %12zu",
                  task.codec.c_str(), name_of(used), n_bytes, times.median_ms, times.min_ms,
                  times.max_ms, algbw, busbw, static_cast<std::size_t>(wire_bytes));
    rows.add(task.codec + " " + name_of(used) + ", " + std::to_string(n_bytes) + " bytes", line,
             std::move(json), verdict);
  }

  /// All ranks' bits are compared, and each rank looks at its share of the segments.
  std::string verify(const Task& task, Algorithm used) {
    spoil(task.n_elems / 2);
    std::string failure = compare_bits(group_, output_);
    const auto rank = static_cast<std::size_t>(group_.rank());
    const auto n_ranks = static_cast<std::size_t>(group_.size());
    const Truth truth({.codec = task.codec,
                       .algorithm = used,
                       .n_elems = task.n_elems,
                       .segment_elems = options_.group.segment_elems,
                       .n_ranks = group_.size(),
                       .dtype = options_.dtype,
                       .ring = ring_order()});
    const std::size_t n_mine = (truth.n_segments() + n_ranks - 1 - rank) / n_ranks;
    std::mutex mutex;
    parallel_for(n_mine, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::string found = truth.check(rank + i * n_ranks, view(output_));
        const std::lock_guard lock(mutex);
        if (failure.empty()) failure = found;
      }
    });
    return first_failure(group_, failure);
  }

  RingOrder ring_order() const {
    const auto measured = group_.measured();
    return measured ? measured->ring : RingOrder{};
  }

  void spoil(std::size_t element) {
    const std::size_t width = size_of(options_.dtype), at = element * width;
    switch (options_.spoil) {
      case Spoil::none: break;
      case Spoil::sum:  // far beyond every sum
        for (std::size_t i = 0; i < width; ++i)
          output_[at + i] = std::byte{0x77};
        break;
      case Spoil::bits:
        if (group_.rank() == group_.size() - 1) output_[at] ^= std::byte{1};
        break;
    }
  }

  Group& group_;
  const AllReduceOptions& options_;
  std::vector<std::byte> input_, output_;
};

}  // namespace
}  // namespace fedcomm::bench

int main(int argc, char** argv) {
  using namespace fedcomm::bench;
  const Program<AllReduceOptions> program{
      .name = "fedcomm-bench-allreduce",
      .help = all_reduce_help(),
      .parse = parse_all_reduce,
      .run = [](fedcomm::Group& group, const AllReduceOptions& options) {
        return Bench(group, options).run();
      }};
  return run_program(program, argc, argv);
}
