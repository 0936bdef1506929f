#include "ranks/world.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "base/thread_pool.h"
#include "ranks/mpi_session.h"
#include "transport/memory.h"
#include "transport/mpi.h"

namespace fedcomm::bench {
namespace {

constexpr double kOpenTimeoutS = 60.0;
constexpr std::size_t kLongestText = 1u << 20;

template <typename T>
TensorView bytes_of(std::span<T> values) {
  return {const_cast<void*>(static_cast<const void*>(values.data())), values.size_bytes(),
          DType::u8};
}

/// What a rank tells the others: "ok", session, token, addresses; or "error" and why.
std::string told_of(const TcpListener& listener) {
  std::random_device device;
  std::ostringstream out;
  out << "ok\n" << (device() & 0x7fffffffu) << '\n';
  for (int i = 0; i < 4; ++i)
    out << device() << '\n';
  for (const std::string& address : listener.addresses())
    out << address << '\n';
  return out.str();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);)
    lines.push_back(line);
  return lines;
}

std::uint32_t number_in(const std::string& line) {
  std::uint32_t n = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), n);
  if (error != std::errc() || end != line.data() + line.size())
    fail(ErrorKind::corrupt_frame, "[tcp] a rank told addresses that make no sense");
  return n;
}

/// What every rank finds by itself, or has been told: nobody needs to hear of it.
bool known_to_all(const std::exception& error) {
  if (dynamic_cast<const BadArgument*>(&error) != nullptr) return true;
  const auto* ours = dynamic_cast<const Error*>(&error);
  return ours != nullptr &&
         (ours->kind() == ErrorKind::config || ours->kind() == ErrorKind::invalid_argument);
}

int run_threads(const WorldOptions& options, const RankBody& body) {
  const auto hub = std::make_shared<MemoryHub>(options.n_ranks);
  std::vector<std::shared_ptr<Fabric>> fabrics;
  for (int rank = 0; rank < options.n_ranks; ++rank)
    fabrics.push_back(hub->fabric(rank));
  const auto groups = Group::open_all(fabrics, options.group);

  std::mutex mutex;
  std::exception_ptr first;
  int worst = 0;
  std::vector<std::thread> ranks;
  for (const auto& group : groups) {
    ranks.emplace_back([&, group] {
      int status = 0;
      try {
        status = body(*group);
      } catch (const std::exception& error) {
        {
          const std::lock_guard lock(mutex);
          if (!first) first = std::current_exception();
        }
        if (!known_to_all(error)) group->abort(error.what());
      }
      const std::lock_guard lock(mutex);
      worst = std::max(worst, status);
    });
  }
  for (std::thread& rank : ranks)
    rank.join();
  for (const auto& group : groups)
    group->close();
  if (first) std::rethrow_exception(first);
  return worst;
}

/// Tells the others of an error before the group goes.
int run_member(Group& group, const RankBody& body) {
  try {
    const int status = body(group);
    group.close();
    return status;
  } catch (const std::exception& error) {
    if (!known_to_all(error)) group.abort(error.what());
    group.close();
    throw;
  }
}

}  // namespace

std::vector<std::string> gather_text(Group& group, const std::string& mine) {
  const auto n = static_cast<std::size_t>(group.size());
  const std::uint64_t length = mine.size();
  std::vector<std::uint64_t> lengths(n);
  group.all_gather(bytes_of(std::span(&length, 1)), bytes_of(std::span(lengths)))->wait();
  const std::uint64_t longest = *std::ranges::max_element(lengths);
  if (longest > kLongestText) fail(ErrorKind::corrupt_frame, "a rank tells too long a story");
  std::string padded = mine, all(longest * n, '\0');
  padded.resize(longest);
  group.all_gather(bytes_of(std::span(padded)), bytes_of(std::span(all)))->wait();
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < n; ++i)
    texts.push_back(all.substr(i * longest, lengths[i]));
  return texts;
}

std::vector<double> gather_numbers(Group& group, std::span<const double> mine) {
  std::vector<double> all(mine.size() * static_cast<std::size_t>(group.size()));
  group.all_gather(bytes_of(mine), bytes_of(std::span(all)))->wait();
  return all;
}

std::shared_ptr<TcpFabric> open_tcp_over(Group& group, const TcpOptions& options) {
  constexpr std::size_t kFirstAddress = 6;
  std::shared_ptr<TcpListener> listener;
  std::string mine;
  try {
    listener = TcpListener::open(options);
    mine = told_of(*listener);
  } catch (const Error& error) {
    mine = std::string("error\n") + error.what();
  }
  TcpRun run;
  run.rank = group.rank();
  const std::vector<std::string> told = gather_text(group, mine);
  for (std::size_t rank = 0; rank < told.size(); ++rank) {
    const std::vector<std::string> lines = lines_of(told[rank]);
    if (lines.size() == 2 && lines[0] == "error")
      throw BadArgument("--interface: rank " + std::to_string(rank) + ": " + lines[1]);
    if (lines.size() < kFirstAddress || lines[0] != "ok")
      fail(ErrorKind::corrupt_frame, "[tcp] a rank told addresses that make no sense");
    run.addresses.emplace_back(lines.begin() + kFirstAddress, lines.end());
    if (rank > 0) continue;
    run.session = number_in(lines[1]);
    for (std::size_t i = 0; i < run.token.size(); ++i)
      run.token[i] = static_cast<std::byte>(number_in(lines[2 + i / 4]) >> (8 * (i % 4)) & 0xffu);
  }
  return open_tcp(options, listener, std::move(run));
}

int run_ranks(const WorldOptions& options, const RankBody& body) {
  if (options.n_threads > 0) use_threads(options.n_threads);
  if (options.carrier == Carrier::memory) {
    if (started_by_mpirun())
      throw BadArgument("--transport: the ranks of memory are threads; start it without mpirun");
    return run_threads(options, body);
  }
  start_mpi();
  const auto fabric = open_mpi(kOpenTimeoutS);
  if (options.carrier == Carrier::mpi) return run_member(*Group::open(fabric, options.group), body);
  std::shared_ptr<TcpFabric> tcp;
  {
    const auto over_mpi = Group::open(fabric, options.group);
    run_member(*over_mpi, [&](Group& group) {
      tcp = open_tcp_over(group, options.tcp);
      return 0;
    });
  }
  const int status = run_member(*Group::open(tcp, options.group), body);
  tcp->close();
  return status;
}

namespace detail {

int run_program(const char* name, const std::function<int(bool)>& parse_and_run) {
  bool in_order = true;
  int status = 0;
  try {
    if (started_by_mpirun()) start_mpi();
    status = parse_and_run(mpi_rank() == 0);
  } catch (const std::exception& error) {
    in_order = known_to_all(error);
    status = in_order ? kExitBadArgument : kExitWrong;
    if (!in_order) {
      std::fprintf(stderr, "%s: rank %d: %s\n", name, mpi_rank(), error.what());
    } else if (mpi_rank() == 0) {
      std::fprintf(stderr, "%s: %s\n", name, error.what());
    }
  }
  std::fflush(nullptr);
  leave_mpi(in_order, status);
  return status;
}

}  // namespace detail
}  // namespace fedcomm::bench
