// fedcomm-bench-p2p: times messages between the two ranks of each pair, all pairs at once: there
// and back (pingpong), and one way, several on their way (stream). A message is a broadcast in a
// group of two. -h has the arguments, bench/README.md what the numbers mean.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "ranks/report.h"

namespace fedcomm::bench {
namespace {

constexpr const char* kHeader =
    "# bytes     of one message\n"
    "# n         messages of one run: pingpong, one there and one back; stream, so many one way,\n"
    "#           from the first rank of a pair, all on their way at once\n"
    "# median, min, max   milliseconds of one run, from the barrier until the slowest rank has\n"
    "#           done its part: pingpong, the round trip; stream, until the last message is there\n"
    "# GB/s      one way, in 10^9 bytes a second: pingpong, bytes / half of the median; stream,\n"
    "#           n * bytes / median\n"
    "# wire      bytes of frames that the busiest rank sends in one run\n"
    "# ok        whether every message came as it was sent\n#\n"
    "test             bytes    n     median        min        max    GB/s         wire ok\n";

enum class Test : std::uint8_t { pingpong, stream };

const char* name_of(Test test) {
  return test == Test::pingpong ? "pingpong" : "stream";
}

/// Byte i of message `index` of the rank that sends it.
std::byte pattern(int rank, std::size_t index, std::size_t i) {
  const std::size_t x = (i + 1) * 2654435761u + index * 40503u + static_cast<std::size_t>(rank);
  return static_cast<std::byte>(x >> 13 & 0xffu);
}

class Bench {
 public:
  Bench(Group& world, const PairOptions& options) : world_(world), options_(options) {
    std::vector<std::vector<int>> pairs;
    for (int rank = 0; rank + 1 < world.size(); rank += 2)
      pairs.push_back({rank, rank + 1});
    pair_ = world.split(pairs, options.group);
  }
  ~Bench() { pair_->close(); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  int run() {
    RowPrinter rows(world_, options_, kHeader);
    if (options_.measure) world_.measure(MeasureBy::probes);
    for (const std::size_t n_bytes : sizes_of(options_)) {
      for (const Test test : {Test::pingpong, Test::stream})
        measure(test, n_bytes, rows);
    }
    return rows.finish();
  }

 private:
  bool first() const { return pair_->rank() == 0; }

  void measure(Test test, std::size_t n_bytes, RowPrinter& rows) {
    prepare(test, n_bytes);
    const auto [times, cpu_s] =
        time_together(world_, options_, Counts::slowest, [&] { exchange(test); });
    prepare(test, n_bytes);
    world_.barrier()->wait();
    const std::uint64_t sent_before = pair_->counters().frame_bytes;
    exchange(test);
    const std::uint64_t wire_bytes = largest(world_, pair_->counters().frame_bytes - sent_before);
    const Verdict verdict = options_.check ? Verdict::of(verify(test)) : Verdict{};

    const bool back = test == Test::pingpong;
    const std::size_t n = back ? 1 : options_.n_messages;
    const double one_way_ms = back ? times.median_ms / 2 : times.median_ms;
    const double gbps = static_cast<double>(n * n_bytes) / one_way_ms / 1e6;
    JsonRow json;
    json.text("test", name_of(test));
    world_fields(json, world_, options_);
    json.count("pairs", static_cast<std::size_t>(world_.size()) / 2);
    json.count("n_bytes", n_bytes);
    json.count("n_messages", n);
    json.times(times);
    json.number("one_way_ms", one_way_ms);
    json.number("gbps", gbps);
    json.count("wire_bytes", wire_bytes);
    char line[256];
    std::snprintf(line, sizeof line, "%-9s %12zu %4zu %10.3f %10.3f %10.3f %7.3f %12zu",
                  name_of(test), n_bytes, n, times.median_ms, times.min_ms, times.max_ms, gbps,
                  static_cast<std::size_t>(wire_bytes));
    rows.add(std::string(name_of(test)) + ", " + std::to_string(n_bytes) + " bytes", line,
             std::move(json), verdict);
  }

  /// Messages to send have their pattern, those to come have nothing.
  void prepare(Test test, std::size_t n_bytes) {
    const std::size_t n = test == Test::pingpong ? 2 : options_.n_messages;
    messages_.resize(n);
    for (std::size_t index = 0; index < n; ++index) {
      messages_[index].assign(n_bytes, std::byte{0});
      if (root_of(test, index) != pair_->rank()) continue;
      for (std::size_t i = 0; i < n_bytes; ++i)
        messages_[index][i] = pattern(world_.rank(), index, i);
    }
  }

  static int root_of(Test test, std::size_t index) {
    return test == Test::pingpong ? static_cast<int>(index) : 0;
  }

  void exchange(Test test) {
    std::vector<std::shared_ptr<Work>> works;
    for (std::size_t index = 0; index < messages_.size(); ++index) {
      std::vector<std::byte>& message = messages_[index];
      works.push_back(
          pair_->broadcast({message.data(), message.size(), DType::u8}, root_of(test, index)));
      if (test == Test::pingpong) works.back()->wait();
    }
    for (const auto& work : works)
      work->wait();
  }

  std::string verify(Test test) {
    std::string failure;
    const int peer = world_.rank() + (first() ? 1 : -1);
    for (std::size_t index = 0; index < messages_.size(); ++index) {
      if (root_of(test, index) == pair_->rank()) continue;
      std::vector<std::byte>& message = messages_[index];
      spoil(message);
      for (std::size_t i = 0; i < message.size() && failure.empty(); ++i) {
        if (message[i] == pattern(peer, index, i)) continue;
        failure = "byte " + std::to_string(i) + " of message " + std::to_string(index) +
                  " from rank " + std::to_string(peer) + " is wrong";
      }
    }
    return first_failure(world_, failure);
  }

  void spoil(std::vector<std::byte>& message) const {
    switch (options_.spoil) {
      case Spoil::none: break;
      case Spoil::sum: message[message.size() / 2] ^= std::byte{0xff}; break;
      case Spoil::bits: message.back() ^= std::byte{1}; break;
    }
  }

  Group& world_;
  const PairOptions& options_;
  std::shared_ptr<Group> pair_;
  std::vector<std::vector<std::byte>> messages_;
};

int run_pairs(Group& world, const PairOptions& options) {
  if (world.size() % 2 != 0) {
    throw BadArgument(std::string(options.carrier == Carrier::memory ? "--ranks" : "mpirun -n") +
                      ": " + std::to_string(world.size()) + " ranks are no pairs; take 2, 4, ...");
  }
  return Bench(world, options).run();
}

}  // namespace
}  // namespace fedcomm::bench

int main(int argc, char** argv) {
  using namespace fedcomm::bench;
  const Program<PairOptions> program{
      .name = "fedcomm-bench-p2p", .help = pairs_help(), .parse = parse_pairs, .run = run_pairs};
  return run_program(program, argc, argv);
}
