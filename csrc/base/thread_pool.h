// The one pool of threads that all kernels of a process share, and its parallel loop.
//
// Threads sleep while there is nothing to do: two pools that spin ruin each other (and torch has
// one). Several threads may run loops at once; each works on its own and the pool's threads help
// with the one that came first. A loop inside a loop runs on the thread that it is met by. A forked
// child starts a pool of its own at its first loop.
#pragma once

#include <cstddef>
#include <type_traits>

namespace fedcomm {

/// How many threads work on a loop, the caller among them: PYFEDCOMM_THREADS, else the cores that
/// this process may run on. Throws config where the variable is not a number from 1 to 1024.
std::size_t thread_count();

/// Uses this many from now on, for tests and benchmarks. Waits for loops that are running.
void use_threads(std::size_t n_threads);

namespace detail {
using LoopBody = void (*)(const void* context, std::size_t begin, std::size_t end);
void parallel_for(std::size_t n, std::size_t grain, LoopBody body, const void* context);
}  // namespace detail

/// Calls body(begin, end) on disjoint pieces that cover [0, n): at most `grain` items each, begins
/// being multiples of it. Returns when all have returned. The first exception is thrown again;
/// pieces not begun by then are left out.
template <typename Body>
void parallel_for(std::size_t n, std::size_t grain, const Body& body) {
  if (n <= grain) {
    if (n > 0) body(std::size_t{0}, n);
    return;
  }
  detail::parallel_for(
      n, grain,
      [](const void* context, std::size_t begin, std::size_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

}  // namespace fedcomm
