// The command lines of fedcomm-bench-allreduce and fedcomm-bench-p2p: what both are told of ranks
// and transports, and what each is told besides.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "collective/group.h"
#include "transport/tcp.h"

namespace fedcomm::bench {

enum class Carrier : std::uint8_t { mpi, tcp, memory };

const char* name_of(Carrier carrier);

/// Where the ranks are and what carries their frames.
struct WorldOptions : CommonOptions {
  Carrier carrier = Carrier::mpi;
  int n_ranks = 0;  // threads, of the memory transport; others are told by mpirun
  TcpOptions tcp;
  GroupOptions group;
  std::size_t n_threads = 0;  // of the kernels of one process; 0: as the library has it
  bool measure = true;        // links, before anything is timed
};

/// What is done to an outcome before it is verified, for tests of the verification.
enum class Spoil : std::uint8_t {
  none,
  sum,   // one element is wrong, the same on every rank
  bits,  // one bit of one element, on the last rank only
};

struct AllReduceOptions : WorldOptions {
  std::vector<std::string> codecs{"fp32"};
  std::vector<std::string> algorithms{"auto"};
  DType dtype = DType::f32;
  Spoil spoil = Spoil::none;
};

struct PairOptions : WorldOptions {
  std::size_t n_messages = 4;  // of a stream
  Spoil spoil = Spoil::none;
};

const char* name_of(DType dtype);

/// Throw BadArgument.
AllReduceOptions parse_all_reduce(int argc, const char* const* argv);
PairOptions parse_pairs(int argc, const char* const* argv);

std::string all_reduce_help();
std::string pairs_help();

}  // namespace fedcomm::bench
