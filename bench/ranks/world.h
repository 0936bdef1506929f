// The ranks of a collective benchmark: started by mpirun, or threads of one process.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ranks/options.h"

namespace fedcomm::bench {

/// A program as main() sees it. `parse` reads the command line, `run` is what each rank does with
/// the group of all ranks, and returns the exit status.
template <typename Options>
struct Program {
  const char* name;
  std::string help;
  std::function<Options(int, const char* const*)> parse;
  std::function<int(Group&, const Options&)> run;
};

using RankBody = std::function<int(Group&)>;

/// Every rank's bytes, of any length, in the order of ranks. Collective.
std::vector<std::string> gather_text(Group& group, const std::string& mine);
/// Every rank's numbers, as many of each. Collective.
std::vector<double> gather_numbers(Group& group, std::span<const double> mine);

/// The TCP fabric of the ranks of `group`, which carries nothing but their addresses. Collective;
/// a rank that cannot listen makes it throw BadArgument on every rank.
std::shared_ptr<TcpFabric> open_tcp_over(Group& group, const TcpOptions& options);

/// body(group) of every rank that this process has; returns the worst exit status. Throws what a
/// rank threw first.
int run_ranks(const WorldOptions& options, const RankBody& body);

namespace detail {
/// `parse_and_run` is told whether this rank speaks for all.
int run_program(const char* name, const std::function<int(bool speaks)>& parse_and_run);
}  // namespace detail

/// All of main(): arguments, MPI, errors. Who is wrong about an argument is told so once.
template <typename Options>
int run_program(const Program<Options>& program, int argc, const char* const* argv) {
  return detail::run_program(program.name, [&](bool speaks) {
    const Options options = program.parse(argc, argv);
    if (options.help) {
      if (speaks) std::fputs(program.help.c_str(), stdout);
      return 0;
    }
    return run_ranks(options, [&](Group& group) { return program.run(group, options); });
  });
}

}  // namespace fedcomm::bench
