// Fabrics of every transport that works inside one process: what a test promises for one of them
// it promises for all.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/memory.h"
#include "transport/rate_limit.h"
#include "transport/tcp.h"

namespace fedcomm::testing {

using Fabrics = std::vector<std::shared_ptr<Fabric>>;

inline Fabrics memory_fabrics(int n) {
  const auto hub = std::make_shared<MemoryHub>(n);
  Fabrics fabrics;
  for (int rank = 0; rank < n; ++rank)
    fabrics.push_back(hub->fabric(rank));
  return fabrics;
}

inline std::vector<std::shared_ptr<TcpFabric>> tcp_fabrics(int n, const TcpOptions& options) {
  std::vector<std::shared_ptr<TcpListener>> listeners;
  TcpRun run;
  run.session = 12345;
  run.token[3] = std::byte{7};
  for (int rank = 0; rank < n; ++rank) {
    listeners.push_back(TcpListener::open(options));
    run.addresses.push_back(listeners.back()->addresses());
  }
  std::vector<std::shared_ptr<TcpFabric>> fabrics;
  for (run.rank = 0; run.rank < n; ++run.rank) {
    fabrics.push_back(open_tcp(options, listeners[static_cast<std::size_t>(run.rank)], run));
  }
  return fabrics;
}

inline TcpOptions on_loopback(int streams) {
  TcpOptions options;
  options.interface = "127.0.0.1";
  options.streams = streams;
  return options;
}

inline Fabrics tcp_on_loopback(int n, int streams) {
  Fabrics fabrics;
  for (auto& fabric : tcp_fabrics(n, on_loopback(streams)))
    fabrics.push_back(std::move(fabric));
  return fabrics;
}

/// Every transport of another fabric with a limit to its rate.
class LimitedFabric final : public Fabric {
 public:
  LimitedFabric(std::shared_ptr<Fabric> below, double bytes_per_s)
      : below_(std::move(below)), bytes_per_s_(bytes_per_s) {}
  int rank() const override { return below_->rank(); }
  int size() const override { return below_->size(); }
  std::unique_ptr<Transport> open(GroupId id, std::vector<int> ranks) override {
    return limit_rate(below_->open(id, std::move(ranks)), bytes_per_s_);
  }

 private:
  std::shared_ptr<Fabric> below_;
  double bytes_per_s_;
};

inline Fabrics limited(Fabrics fabrics, double bytes_per_s) {
  for (auto& fabric : fabrics)
    fabric = std::make_shared<LimitedFabric>(std::move(fabric), bytes_per_s);
  return fabrics;
}

struct FabricKind {
  const char* name;
  std::function<Fabrics(int)> make;
};

inline const std::vector<FabricKind>& fabric_kinds() {
  static const std::vector<FabricKind> kinds = {
      {"memory", memory_fabrics},
      {"tcp, 1 stream", [](int n) { return tcp_on_loopback(n, 1); }},
      {"tcp, 5 streams", [](int n) { return tcp_on_loopback(n, 5); }},
      {"memory, 2 GB/s", [](int n) { return limited(memory_fabrics(n), 2e9); }},
      {"tcp, 0.5 GB/s", [](int n) { return limited(tcp_on_loopback(n, 2), 5e8); }},
  };
  return kinds;
}

}  // namespace fedcomm::testing
