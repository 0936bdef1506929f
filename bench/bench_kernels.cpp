// fedcomm-bench-kernels: times the kernels of libfedcomm, each beside the fastest that memory can
// move the same bytes in the same minute, and verifies what they computed. -h has the arguments,
// bench/README.md what the numbers mean. It measures one process on one machine: nothing of MPI or
// of Python. The rows of a GPU are in device_bench.cpp.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>
#include <string>

#include "base/error.h"
#include "base/isa.h"
#include "base/thread_pool.h"
#include "device_bench.h"
#include "rows.h"

namespace fedcomm::bench {
namespace {

std::vector<std::string> isas_to_run(const Options& options) {
  if (options.isas.empty()) return {std::string(name_of(current_isa()))};
  std::vector<std::string> available;
  for (const Isa isa : available_isas())
    available.emplace_back(name_of(isa));
  std::vector<std::string> chosen;
  for (const std::string& isa : options.isas) {
    if (isa == "all") return available;
    if (std::ranges::find(available, isa) == available.end()) {
      std::string known;
      for (const std::string& each : available)
        known += each + ", ";
      throw BadArgument("--isa: '" + isa + "' cannot run here; this CPU has " + known + "or all");
    }
    chosen.push_back(isa);
  }
  return chosen;
}

std::string name_of(const Row& row) {
  return row.kernel + " " + row.codec;
}

/// Whoever mistypes a name must not take silence for success.
void check_selection(const std::vector<Row>& rows, const Options& options) {
  if (std::ranges::any_of(rows, [&](const Row& row) { return is_selected(options, name_of(row)); }))
    return;
  std::set<std::string> kernels;
  for (const Row& row : rows)
    kernels.insert(row.kernel);
  std::string known;
  for (const std::string& kernel : kernels)
    known += (known.empty() ? "" : ", ") + kernel;
  throw BadArgument("--kernels: no row's name has that in it; kernels are " + known +
                    ", codecs e.g. int8 or 1%");
}

int run(const Options& options) {
  const std::vector<std::string> isas = isas_to_run(options);
  std::vector<std::size_t> threads = options.threads;
  if (threads.empty()) {
    threads = {1};
    if (thread_count() > 1) threads.push_back(thread_count());
  }
  const std::vector<std::size_t> sizes = sizes_of(options);
  Arena arena(options.fresh_outputs);
  Streams streams;
  arena.fill_input(sizes.front() / sizeof(float));
  check_selection(all_rows(arena, streams), options);

  const OutputFile json(options.json);
  Report report(facts_here(options.commit), json.is_stdout() ? nullptr : stdout, json.get());
  report.print_header(options);
  for (const std::size_t size : sizes) {
    arena.fill_input(size / sizeof(float));
    const std::vector<Row> rows = all_rows(arena, streams);
    for (const std::size_t n_threads : threads) {
      for (const std::string& isa : isas) {
        use_threads(n_threads);
        use_isa(isa);
        for (const Row& row : rows) {
          if (!is_selected(options, name_of(row))) continue;
          if (!row.uses_isa && isa != isas.front()) continue;
          if (!row.threaded) {
            if (n_threads != threads.front()) continue;
            use_threads(1);  // for the streams beside it
          }
          Result result = measure(row, streams, options);
          result.n_elems = arena.x.size();
          report.add(result);
          use_threads(n_threads);
        }
      }
    }
  }
  return report.finish(stderr);
}

int run_main(int argc, const char* const* argv) {
  try {
    const Options options = parse_arguments(argc, argv);
    if (options.help) {
      std::fputs(std::string(help_text()).c_str(), stdout);
      return 0;
    }
    return options.device == Device::cuda ? run_on_device(options) : run(options);
  } catch (const BadArgument& error) {
    std::fprintf(stderr, "fedcomm-bench-kernels: %s\n", error.what());
    return kExitBadArgument;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fedcomm-bench-kernels: %s\n", error.what());
    return kExitWrong;
  }
}

}  // namespace
}  // namespace fedcomm::bench

int main(int argc, char** argv) {
  return fedcomm::bench::run_main(argc, argv);
}
