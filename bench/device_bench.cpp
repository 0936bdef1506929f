// Times the rows of a GPU: by events, in turn with what they are compared with, and with none of
// their data in the cache.
#include "device_bench.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "base/device_tensor.h"
#include "base/error.h"
#include "device_rows.h"

namespace fedcomm::bench {

void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    fail(ErrorKind::cuda, std::string("[cuda] ") + what + ": " + cudaGetErrorString(status));
}

void DeviceArena::fill(std::size_t n_elems) {
  host.fill_input(n_elems);
  host_residual = host.fresh_residual();
  const std::span<float> values = x_memory.take(n_elems);
  to_device(host.x, values);
  x = values;
  to_device(std::span<const float>(host_residual), residual_copy.take(n_elems));
  residual = residual_memory.take(n_elems);
  flags_memory.take(1);
  check_cuda(cudaMemset(flags(), 0, sizeof(Flags)), "memory");
}

std::span<float> DeviceArena::fresh_residual() {
  check_cuda(cudaMemcpyAsync(residual.data(), residual_copy.take(n()).data(), residual.size_bytes(),
                             cudaMemcpyDeviceToDevice, stream.get()),
             "a copy");
  stream.wait();
  return residual;
}

namespace {

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Times work on a stream that has something to do before, so that the host is ahead of it.
class Stopwatch {
 public:
  Stopwatch() {
    const std::span<float> all = flushing_.take(kFlushed);
    check_cuda(cudaMemset(all.data(), 0, all.size_bytes()), "memory");
    check_cuda(cudaDeviceSynchronize(), "memory");
  }

  double milliseconds(const std::function<void(cudaStream_t)>& work) {
    // Reads more than any cache holds, and leaves nothing that would have to be written back.
    cuda::first_beyond(flushing_.take(kFlushed), 0x7f800000u, found_.take(1).data(), stream_.get());
    check_cuda(cudaEventRecord(start_.get(), stream_.get()), "an event");
    work(stream_.get());
    check_cuda(cudaEventRecord(stop_.get(), stream_.get()), "an event");
    stream_.wait();
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, start_.get(), stop_.get()), "an event");
    return static_cast<double>(ms);
  }

 private:
  static constexpr std::size_t kFlushed = std::size_t{1} << 27;

  Stream stream_;
  Event start_, stop_;
  DeviceMemory<float> flushing_;
  DeviceMemory<std::uint64_t> found_;
};

/// A copy within the device's memory that reads and writes as many bytes in all.
struct Copy {
  DeviceMemory<std::byte> from, to;

  std::function<void(cudaStream_t)> of(std::size_t n_bytes) {
    const std::size_t half = std::max<std::size_t>(16, n_bytes / 2 / 16 * 16);
    from.take(half);
    return [source = from.take(half), target = to.take(half)](cudaStream_t stream) {
      check_cuda(cudaMemcpyAsync(target.data(), source.data(), source.size(),
                                 cudaMemcpyDeviceToDevice, stream),
                 "a copy");
    };
  }
};

Result measure(const DeviceRow& row, Stopwatch& stopwatch, Copy& copy, const Options& options) {
  Result result;
  result.kernel = row.kernel;
  result.codec = row.codec;
  result.n_entries = row.n_entries;
  result.n_threads = 0;
  result.traffic = row.prepare();
  const auto reference = row.reference ? row.reference : copy.of(result.traffic.bytes());
  std::vector<double> own, others;
  for (std::size_t i = 0; i < options.n_warmup + options.n_iters; ++i) {
    const double own_ms = stopwatch.milliseconds(row.run);
    const double other_ms = stopwatch.milliseconds(reference);
    if (i < options.n_warmup) continue;
    own.push_back(own_ms);
    others.push_back(other_ms);
  }
  result.times = times_of(std::move(own));
  result.ceiling_ms = times_of(std::move(others)).median_ms;
  if (options.check) {
    result.failure = row.verify();
    result.verified = result.failure.empty() ? Verified::yes : Verified::no;
  }
  return result;
}

std::string device_name() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "no GPU can be used");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "no GPU can be used");
  return properties.name;
}

}  // namespace

std::vector<DeviceRow> all_device_rows(DeviceArena& arena) {
  std::vector<DeviceRow> all;
  for (const auto make : {format_rows, sparse_rows, device_coding_rows, path_rows})
    std::ranges::move(make(arena), std::back_inserter(all));
  return all;
}

int run_on_device(const Options& options) {
  Facts facts = facts_here(options.commit);
  facts.device = device_name();
  const OutputFile json(options.json);
  Report report(std::move(facts), json.is_stdout() ? nullptr : stdout, json.get());
  report.print_header(options);
  Arena host(false);
  DeviceArena arena(host);
  Stopwatch stopwatch;
  Copy copy;
  bool any = false;
  for (const std::size_t size : sizes_of(options)) {
    arena.fill(size / sizeof(float));
    for (const DeviceRow& row : all_device_rows(arena)) {
      if (!is_selected(options, row.kernel + " " + row.codec)) continue;
      any = true;
      Result result = measure(row, stopwatch, copy, options);
      result.n_elems = arena.n();
      report.add(result);
    }
  }
  if (!any) throw BadArgument("--kernels: no row's name has that in it");
  return report.finish(stderr);
}

}  // namespace fedcomm::bench
