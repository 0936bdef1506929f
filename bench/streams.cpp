#include "streams.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fedcomm::bench {
namespace {

constexpr std::size_t kLine = 64;
/// Strips that a thread takes at a time: 1 MiB of floats.
constexpr std::size_t kStripsAtOnce = 256;

/// Four floats at a time: on x86 one SSE register. Wider ones gain nothing outside the innermost
/// caches, and need no other loops for other CPUs.
using Vector = float __attribute__((vector_size(16)));
constexpr std::size_t kStripVectors = Streams::kStrip / 4, kLineVectors = kLine / sizeof(Vector);

/// One strip of each array; null (or no bytes) for those that a mix does not have.
struct Strip {
  const Vector *first, *second;
  Vector *in_place, *written;
  const Vector* codes_read;
  Vector* codes_written;
  std::size_t n_codes_read, n_codes_written;  // vectors a strip; whole lines
};

#define BENCH_INLINE [[gnu::always_inline]] inline

/// A line that depends on everything read, so that no read can be left out.
struct Mixed {
  Vector lanes[kLineVectors] = {};
};

BENCH_INLINE void read(const Vector* from, std::size_t n, Mixed& mixed) {
  for (std::size_t i = 0; i < n; i += kLineVectors) {
    for (std::size_t j = 0; j < kLineVectors; ++j)
      mixed.lanes[j] += from[i + j];
  }
}

template <Stores stores>
BENCH_INLINE void store(Vector* to, Vector value) {
#if defined(__x86_64__)
  if constexpr (stores == Stores::streaming) {
    _mm_stream_ps(reinterpret_cast<float*>(to), value);
    return;
  }
#endif
  *to = value;
}

template <Stores stores>
BENCH_INLINE void fill(Vector* to, std::size_t n, const Mixed& mixed) {
  for (std::size_t i = 0; i < n; i += kLineVectors) {
    for (std::size_t j = 0; j < kLineVectors; ++j)
      store<stores>(to + i + j, mixed.lanes[j]);
  }
}

template <Stores stores>
BENCH_INLINE void move_strip(const Strip& s, Mixed& mixed) {
  constexpr std::size_t n = kStripVectors;
  if (s.n_codes_read > 0) read(s.codes_read, s.n_codes_read, mixed);
  if (s.in_place != nullptr && s.first != nullptr) {
    for (std::size_t i = 0; i < n; ++i)
      s.in_place[i] += s.first[i];
  } else if (s.in_place != nullptr) {
    for (std::size_t i = 0; i < n; ++i)
      s.in_place[i] += mixed.lanes[i % kLineVectors];
  } else if (s.written != nullptr && s.second != nullptr) {
    for (std::size_t i = 0; i < n; ++i)
      store<stores>(s.written + i, s.first[i] + s.second[i]);
  } else if (s.written != nullptr && s.first != nullptr) {
    for (std::size_t i = 0; i < n; ++i)
      store<stores>(s.written + i, s.first[i]);
  } else if (s.written != nullptr) {
    fill<stores>(s.written, n, mixed);
  } else if (s.first != nullptr) {
    read(s.first, n, mixed);
    if (s.second != nullptr) read(s.second, n, mixed);
  }
  if (s.n_codes_written > 0) fill<stores>(s.codes_written, s.n_codes_written, mixed);
}

/// Strips [0, n) from `s` on.
template <Stores stores>
float move_strips(Strip s, std::size_t n) {
  Mixed mixed;
  for (std::size_t i = 0; i < n; ++i) {
    Mixed local = mixed;  // in registers: stores through pointers cannot change it
    move_strip<stores>(s, local);
    mixed = local;
    if (s.first != nullptr) s.first += kStripVectors;
    if (s.second != nullptr) s.second += kStripVectors;
    if (s.in_place != nullptr) s.in_place += kStripVectors;
    if (s.written != nullptr) s.written += kStripVectors;
    if (s.codes_read != nullptr) s.codes_read += s.n_codes_read;
    if (s.codes_written != nullptr) s.codes_written += s.n_codes_written;
  }
#if defined(__x86_64__)
  if constexpr (stores == Stores::streaming) _mm_sfence();
#endif
  const Vector sum = mixed.lanes[0] + mixed.lanes[1] + mixed.lanes[2] + mixed.lanes[3];
  return sum[0] + sum[1] + sum[2] + sum[3];
}

std::size_t strips_of(const Traffic& traffic) {
  return std::max<std::size_t>(traffic.n / Streams::kStrip, 1);
}

/// Bytes of code in each strip: whole lines, so that streaming stores fill them.
std::size_t codes_a_strip(std::size_t n_bytes, std::size_t n_strips) {
  return (n_bytes + n_strips * kLine / 2) / (n_strips * kLine) * kLine;
}

std::atomic<float> sink;  // so that the sums are wanted

}  // namespace

void Memory::make_room(std::size_t n_bytes, bool anew) {
  if (data_ != nullptr && !anew && n_bytes <= n_bytes_) return;
  release();
  n_bytes_ = std::max<std::size_t>(n_bytes, 1);
  void* data = mmap(nullptr, n_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(data);
  // Memory never written to is all one page of zeros, and faster than any real one. The pattern
  // makes small normal floats.
  if (!fresh_) std::memset(data_, 0x3c, n_bytes_);
}

void Memory::release() {
  if (data_ != nullptr) munmap(data_, n_bytes_);
  data_ = nullptr;
}

const char* name_of(Stores stores) {
  return stores == Stores::ordinary ? "ordinary" : "streaming";
}

std::vector<Stores> ways_to_move(const Traffic& traffic) {
  if (traffic.bytes() == 0) return {};
#if defined(__x86_64__)
  const Traffic moved = Streams::rounded(traffic);
  if (moved.written || moved.code_bytes_written > 0) return {Stores::ordinary, Stores::streaming};
#endif
  return {Stores::ordinary};
}

Traffic Streams::rounded(const Traffic& traffic) {
  const std::size_t n_strips = strips_of(traffic);
  Traffic moved = traffic;
  moved.n = n_strips * kStrip;
  moved.code_bytes_read = n_strips * codes_a_strip(traffic.code_bytes_read, n_strips);
  moved.code_bytes_written = n_strips * codes_a_strip(traffic.code_bytes_written, n_strips);
  return moved;
}

void Streams::run(const Traffic& traffic, Stores stores) {
  const Traffic moved = rounded(traffic);
  const std::size_t n_strips = moved.n / kStrip;
  const auto start = []<typename T>(Memory& memory, std::size_t n_bytes) {
    return n_bytes == 0 ? nullptr : reinterpret_cast<T*>(memory.take<std::byte>(n_bytes).data());
  };
  const auto input = [&](Memory& m, std::size_t n) { return start.operator()<const Vector>(m, n); };
  const auto output = [&](Memory& m, std::size_t n) { return start.operator()<Vector>(m, n); };
  const std::size_t n_bytes = moved.n * sizeof(float), vector_bytes = n_strips * sizeof(Vector);
  const Strip whole{.first = input(read_[0], moved.n_read > 0 ? n_bytes : 0),
                    .second = input(read_[1], moved.n_read > 1 ? n_bytes : 0),
                    .in_place = output(target_, moved.in_place ? n_bytes : 0),
                    .written = output(target_, moved.written ? n_bytes : 0),
                    .codes_read = input(codes_read_, moved.code_bytes_read),
                    .codes_written = output(codes_written_, moved.code_bytes_written),
                    .n_codes_read = moved.code_bytes_read / vector_bytes,
                    .n_codes_written = moved.code_bytes_written / vector_bytes};
  parallel_for(n_strips, kStripsAtOnce, [&](std::size_t begin, std::size_t end) {
    Strip part = whole;
    const auto advance = [begin](auto*& pointer, std::size_t n) {
      if (pointer != nullptr) pointer += begin * n;
    };
    advance(part.first, kStripVectors);
    advance(part.second, kStripVectors);
    advance(part.in_place, kStripVectors);
    advance(part.written, kStripVectors);
    advance(part.codes_read, whole.n_codes_read);
    advance(part.codes_written, whole.n_codes_written);
    const bool ordinary = stores == Stores::ordinary;
    const auto move = ordinary ? move_strips<Stores::ordinary> : move_strips<Stores::streaming>;
    sink.store(move(part, end - begin), std::memory_order_relaxed);
  });
}

}  // namespace fedcomm::bench
