#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/env.h"
#include "base/error.h"

namespace fedcomm {
namespace {

constexpr std::size_t kMaxThreads = 1024;

std::size_t first_thread_count() {
  const std::string_view text = env::threads();
  if (!text.empty()) {
    std::size_t n = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    if (error != std::errc() || end != text.data() + text.size() || n < 1 || n > kMaxThreads) {
      fail(ErrorKind::config, "PYFEDCOMM_THREADS is '" + std::string(text) +
                                  "'; it must be a number from 1 to " +
                                  std::to_string(kMaxThreads));
    }
    return n;
  }
  cpu_set_t cores;
  const bool known = sched_getaffinity(0, sizeof cores, &cores) == 0;
  const std::size_t n = known ? static_cast<std::size_t>(CPU_COUNT(&cores))
                              : std::size_t{std::thread::hardware_concurrency()};
  return std::clamp<std::size_t>(n, 1, kMaxThreads);
}

/// A loop under way. Lives on the stack of the thread that runs it.
struct Loop {
  Loop(std::size_t n_items, std::size_t piece, detail::LoopBody function, const void* argument)
      : n(n_items), grain(piece), body(function), context(argument) {}

  const std::size_t n;
  const std::size_t grain;
  const detail::LoopBody body;
  const void* const context;
  std::atomic<std::size_t> next = 0;
  std::size_t n_helpers = 0;  // guarded by the pool's mutex
  std::condition_variable no_helpers;
  std::exception_ptr error;  // guarded by the pool's mutex
};

thread_local bool inside_a_loop = false;

class Pool {
 public:
  explicit Pool(std::size_t n_threads) : n_threads_(n_threads) {
    for (std::size_t i = 1; i < n_threads; ++i)
      threads_.emplace_back([this] { help(); });
  }
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_)
      thread.join();
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::size_t n_threads() const { return n_threads_; }

  void run(Loop& loop) {
    {
      const std::lock_guard lock(mutex_);
      loops_.push_back(&loop);
    }
    const std::size_t n_pieces = (loop.n + loop.grain - 1) / loop.grain;
    for (std::size_t i = 1; i < std::min(n_threads_, n_pieces); ++i)
      wake_.notify_one();
    work(loop);
    std::unique_lock lock(mutex_);
    loops_.remove(&loop);  // no new helpers from here on
    loop.no_helpers.wait(lock, [&loop] { return loop.n_helpers == 0; });
    if (loop.error) std::rethrow_exception(loop.error);
  }

 private:
  void work(Loop& loop) {
    inside_a_loop = true;
    try {
      for (;;) {
        const std::size_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
        if (begin >= loop.n) break;
        loop.body(loop.context, begin, std::min(begin + loop.grain, loop.n));
      }
    } catch (...) {
      loop.next.store(loop.n, std::memory_order_relaxed);
      const std::lock_guard lock(mutex_);
      if (!loop.error) loop.error = std::current_exception();
    }
    inside_a_loop = false;
  }

  void help() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Loop* chosen = nullptr;
      wake_.wait(lock, [this, &chosen] {
        for (Loop* each : loops_) {
          if (each->next.load(std::memory_order_relaxed) >= each->n) continue;
          chosen = each;
          return true;
        }
        return stopping_;
      });
      if (chosen == nullptr) return;
      ++chosen->n_helpers;
      lock.unlock();
      work(*chosen);
      lock.lock();
      if (--chosen->n_helpers == 0) chosen->no_helpers.notify_one();
    }
  }

  const std::size_t n_threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::list<Loop*> loops_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

/// The process's pool, made by the first who needs it, and how many loops use it.
struct Owner {
  std::mutex mutex;
  std::condition_variable idle;
  std::size_t n_loops = 0;
  Pool* pool = nullptr;
};

Owner* owner = new Owner;  // never freed: a loop may run while the process ends

void forget_after_fork() {
  owner = new Owner;  // the parent's threads and locks mean nothing here
  inside_a_loop = false;
}

Pool* make_pool(std::size_t n_threads) {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);
  static_cast<void>(registered);
  return new Pool(n_threads);
}

class UseOfPool {
 public:
  UseOfPool() {
    const std::lock_guard lock(owner->mutex);
    if (owner->pool == nullptr) owner->pool = make_pool(first_thread_count());
    ++owner->n_loops;
    pool_ = owner->pool;
  }
  ~UseOfPool() {
    const std::lock_guard lock(owner->mutex);
    if (--owner->n_loops == 0) owner->idle.notify_all();
  }
  UseOfPool(const UseOfPool&) = delete;
  UseOfPool& operator=(const UseOfPool&) = delete;

  Pool& operator*() const { return *pool_; }

 private:
  Pool* pool_;
};

}  // namespace

std::size_t thread_count() {
  const UseOfPool pool;
  return (*pool).n_threads();
}

void use_threads(std::size_t n_threads) {
  if (n_threads < 1 || n_threads > kMaxThreads) {
    fail(ErrorKind::invalid_argument, std::to_string(n_threads) + " threads; the pool takes 1 to " +
                                          std::to_string(kMaxThreads));
  }
  std::unique_lock lock(owner->mutex);
  owner->idle.wait(lock, [] { return owner->n_loops == 0; });
  if (owner->pool != nullptr && owner->pool->n_threads() == n_threads) return;
  delete owner->pool;
  owner->pool = make_pool(n_threads);
}

void detail::parallel_for(std::size_t n, std::size_t grain, LoopBody body, const void* context) {
  if (inside_a_loop) {
    for (std::size_t begin = 0; begin < n; begin += grain)
      body(context, begin, std::min(begin + grain, n));
    return;
  }
  const UseOfPool pool;
  if ((*pool).n_threads() == 1) {
    for (std::size_t begin = 0; begin < n; begin += grain)
      body(context, begin, std::min(begin + grain, n));
    return;
  }
  Loop loop(n, grain, body, context);
  (*pool).run(loop);
}

}  // namespace fedcomm
