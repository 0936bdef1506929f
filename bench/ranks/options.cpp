#include "ranks/options.h"

#include "codec/codec.h"

namespace fedcomm::bench {
namespace {

constexpr std::string_view kCommonHelp = R"(
  -b, --minbytes SIZE     smallest size; bytes, or K, M, G                         [1K]
  -e, --maxbytes SIZE     largest                                                 [64M]
  -f, --stepfactor N      from one size to the next                                 [4]
  -n, --iters N           timed runs of each row                                   [11]
  -w, --warmup N          runs before those                                         [2]
  -c, --check 0|1         verify the outcome of each row                            [1]
      --transport NAME    mpi; tcp, whose addresses are exchanged over MPI; memory [mpi]
      --ranks N           of the memory transport: threads of one process, without
                          mpirun                                                    [2]
      --streams N         of tcp: sockets between two ranks; 0: by the path         [0]
      --congestion NAME   of tcp: bbr, cubic, ...         [bbr where the kernel has it]
      --interface NAME    of tcp: a name (eth1) or an address                     [all]
      --segment N         elements of a segment, a multiple of 4096            [262144]
      --measure 0|1       measure the links first: auto then chooses by them, and
                          streams know what the path carries                        [1]
  -t, --threads N         of the kernels of one process                     [all cores]
      --timeout SECONDS   without progress, before an operation fails              [30]
      --json [FILE]       also one JSON object a row; - or nothing: to standard output,
                          without table
      --commit TEXT       the commit that was measured, for the JSON
  -h, --help              this

Exits with 1 if an outcome was wrong or an operation failed, with 2 on a bad argument.
)";

/// Takes what both programs have; remembers what goes with one transport only.
class WorldReader {
 public:
  explicit WorldReader(ArgumentReader& reader) : reader_(reader) {}

  bool take(WorldOptions& options) {
    if (reader_.take_common(options)) return true;
    if (reader_.is("", "--transport")) {
      const std::string_view name = reader_.value();
      if (name == "mpi") {
        options.carrier = Carrier::mpi;
      } else if (name == "tcp") {
        options.carrier = Carrier::tcp;
      } else if (name == "memory") {
        options.carrier = Carrier::memory;
      } else {
        reader_.reject(name, "mpi, tcp or memory");
      }
    } else if (reader_.is("", "--ranks")) {
      of_memory_ = "--ranks";
      options.n_ranks = static_cast<int>(reader_.number(1, 256, "a number of ranks from 1 to 256"));
    } else if (reader_.is("", "--streams")) {
      of_tcp_ = "--streams";
      options.tcp.streams = static_cast<int>(
          reader_.number(0, 64, "a number of sockets from 1 to 64, or 0: by the path"));
    } else if (reader_.is("", "--congestion")) {
      of_tcp_ = "--congestion";
      options.tcp.congestion = reader_.value();
    } else if (reader_.is("", "--interface")) {
      of_tcp_ = "--interface";
      options.tcp.interface = reader_.value();
    } else if (reader_.is("", "--segment")) {
      constexpr std::size_t kMost = std::size_t{1} << 26;
      const std::size_t n = reader_.number(kGrain, kMost, "a number from 4096 to 67108864");
      if (n % kGrain != 0) reader_.reject(std::to_string(n), "a multiple of 4096");
      options.group.segment_elems = n;
    } else if (reader_.is("-t", "--threads")) {
      options.n_threads = reader_.number(1, ArgumentReader::kMaxThreads, "a number from 1 to 1024");
    } else if (reader_.is("", "--measure")) {
      options.measure = reader_.number(0, 1, "0 or 1") == 1;
    } else if (reader_.is("", "--timeout")) {
      options.group.timeout_s = reader_.seconds();
    } else {
      return false;
    }
    return true;
  }

  void finish(WorldOptions& options) const {
    check_sizes(options);
    if (!of_memory_.empty() && options.carrier != Carrier::memory) {
      throw BadArgument(of_memory_ + ": only of --transport memory; else mpirun -n tells it");
    }
    if (!of_tcp_.empty() && options.carrier != Carrier::tcp)
      throw BadArgument(of_tcp_ + ": only of --transport tcp");
    if (options.carrier == Carrier::memory && options.n_ranks == 0) options.n_ranks = 2;
  }

 private:
  ArgumentReader& reader_;
  std::string of_memory_, of_tcp_;
};

void set_sizes(CommonOptions& options) {
  options.min_bytes = std::size_t{1} << 10;
  options.max_bytes = std::size_t{64} << 20;
}

Spoil spoil_of(ArgumentReader& reader) {
  const std::string_view name = reader.value();
  if (name == "sum") return Spoil::sum;
  if (name != "bits") reader.reject(name, "sum or bits");
  return Spoil::bits;
}

/// `what` as the library says it, with the argument's name.
template <typename F>
auto checked(std::string_view argument, const F& what) {
  try {
    return what();
  } catch (const Error& error) {
    throw BadArgument(std::string(argument) + ": " + error.what());
  }
}

}  // namespace

const char* name_of(Carrier carrier) {
  switch (carrier) {
    case Carrier::mpi: return "mpi";
    case Carrier::tcp: return "tcp";
    case Carrier::memory: return "memory";
  }
  return "";
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "fp32";
    case DType::f16: return "fp16";
    case DType::bf16: return "bf16";
    case DType::u8: return "u8";
  }
  return "";
}

AllReduceOptions parse_all_reduce(int argc, const char* const* argv) {
  AllReduceOptions options;
  set_sizes(options);
  ArgumentReader reader(argc, argv);
  WorldReader world(reader);
  while (reader.next()) {
    if (world.take(options)) continue;
    if (reader.is("", "--codec")) {
      options.codecs = reader.list();
    } else if (reader.is("", "--algorithm")) {
      options.algorithms = reader.list();
    } else if (reader.is("-d", "--dtype")) {
      const std::string_view name = reader.value();
      if (name == "fp32") {
        options.dtype = DType::f32;
      } else if (name == "fp16") {
        options.dtype = DType::f16;
      } else if (name == "bf16") {
        options.dtype = DType::bf16;
      } else {
        reader.reject(name, "fp32, fp16 or bf16");
      }
    } else if (reader.is("", "--spoil")) {
      options.spoil = spoil_of(reader);
    } else {
      reader.reject_unknown();
    }
  }
  world.finish(options);
  for (const std::string& name : options.algorithms)
    checked("--algorithm", [&] { return algorithm_named(name); });
  for (const std::string& name : options.codecs) {
    const auto codec = checked("--codec", [&] { return make_codec(name); });
    for (const std::string& algorithm : options.algorithms) {
      if (algorithm == "auto" || algorithm == "all_gather") continue;
      if (codec->chooses_from_whole() == (algorithm == "sparse")) continue;
      throw BadArgument("--algorithm: " + codec->name() +
                        (algorithm == "sparse"
                             ? " does not choose from the whole bucket, which " + algorithm +
                                   " is for; use direct (or auto)"
                             : " chooses from the whole bucket, which " + algorithm +
                                   " encodes in parts; use sparse (or auto)"));
    }
  }
  return options;
}

PairOptions parse_pairs(int argc, const char* const* argv) {
  PairOptions options;
  set_sizes(options);
  ArgumentReader reader(argc, argv);
  WorldReader world(reader);
  while (reader.next()) {
    if (world.take(options)) continue;
    if (reader.is("-m", "--messages")) {
      options.n_messages = reader.number(1, 1024, "a number of messages from 1 to 1024");
    } else if (reader.is("", "--spoil")) {
      options.spoil = spoil_of(reader);
    } else {
      reader.reject_unknown();
    }
  }
  world.finish(options);
  return options;
}

std::string all_reduce_help() {
  return std::string(R"(mpirun -n N fedcomm-bench-allreduce: times the sum over N ranks.

      --codec LIST        how values travel, e.g. fp32,int8,topk(0.01,int8)      [fp32]
      --algorithm LIST    direct, ring, all_gather, sparse, auto                 [auto]
  -d, --dtype NAME        of the tensors: fp32, fp16, bf16                       [fp32]
      --spoil sum|bits    to test the verification: makes an element wrong on all ranks,
                          or one bit on the last rank)") +
         std::string(kCommonHelp);
}

std::string pairs_help() {
  return std::string(
             R"(mpirun -n N fedcomm-bench-p2p: times messages within pairs of ranks (0 and 1, 2 and 3, ...),
all pairs at once.

  -m, --messages N        of a stream, on their way at once                         [4]
      --spoil sum|bits    to test the verification: makes a byte of a message wrong, or a
                          bit)") +
         std::string(kCommonHelp);
}

}  // namespace fedcomm::bench
