#include "transport/tcp.h"

#include <algorithm>
#include <cstdlib>

#include "base/env.h"
#include "base/error.h"
#include "transport/tcp_fabric.h"
#include "transport/tcp_socket.h"

namespace fedcomm {
namespace {

class Listener final : public TcpListener {
 public:
  Listener(tcp::Fd fd, const TcpOptions& options) : fd_(std::move(fd)) {
    const tcp::Address bound = tcp::Address::of_socket(fd_.get());
    for (const tcp::Address& each : tcp::addresses_of(options.interface)) {
      const bool served = options.interface.empty()
                              ? bound.family() == AF_INET6 || each.family() == AF_INET
                              : each.host() == bound.host();
      if (served) addresses_.push_back(each.with_port(bound.port()).text());
    }
  }
  std::vector<std::string> addresses() const override { return addresses_; }
  tcp::Fd release() { return std::move(fd_); }

 private:
  tcp::Fd fd_;
  std::vector<std::string> addresses_;
};

TcpOptions checked(TcpOptions options) {
  if (options.streams == 0) {
    const std::string text(env::tcp_streams());
    char* end = nullptr;
    options.streams = static_cast<int>(std::strtol(text.c_str(), &end, 10));
    if (*end != '\0') {
      fail(ErrorKind::config, "PYFEDCOMM_TCP_STREAMS is '" + text + "'; it must be a number");
    }
  }
  if (options.streams < 0 || options.streams > tcp::kMaxStreams) {
    fail(ErrorKind::invalid_argument, "streams is " + std::to_string(options.streams) +
                                          "; it must be 0 (by the path) to " +
                                          std::to_string(tcp::kMaxStreams));
  }
  if (options.interface.empty()) options.interface = env::tcp_interface();
  return options;
}

/// Where a rank may be reached from here: its loopback addresses count where it has the addresses
/// of this host.
std::vector<tcp::Address> reachable(const std::vector<std::string>& theirs,
                                    const std::vector<std::string>& ours) {
  std::vector<tcp::Address> network, loopback;
  bool same_host = true;
  for (const std::string& text : theirs) {
    const tcp::Address address = tcp::Address::parse(text);
    (address.is_loopback() ? loopback : network).push_back(address);
    same_host = same_host && std::any_of(ours.begin(), ours.end(), [&](const std::string& own) {
                  return tcp::Address::parse(own).host() == address.host();
                });
  }
  if (!same_host && !network.empty()) return network;
  loopback.insert(loopback.end(), network.begin(), network.end());
  return loopback;
}

}  // namespace

std::shared_ptr<TcpListener> TcpListener::open(const TcpOptions& options) {
  const TcpOptions good = checked(options);
  return std::make_shared<Listener>(tcp::listen_on(good), good);
}

std::shared_ptr<TcpFabric> open_tcp(const TcpOptions& options,
                                    const std::shared_ptr<TcpListener>& listener, TcpRun run) {
  const auto n_ranks = static_cast<int>(run.addresses.size());
  if (run.rank < 0 || run.rank >= n_ranks) {
    fail(ErrorKind::invalid_argument,
         "rank " + std::to_string(run.rank) + " is not one of " + std::to_string(n_ranks));
  }
  std::vector<std::vector<tcp::Address>> addresses;
  for (std::size_t rank = 0; rank < run.addresses.size(); ++rank) {
    addresses.push_back(
        reachable(run.addresses[rank], run.addresses[static_cast<std::size_t>(run.rank)]));
    if (addresses.back().empty() && n_ranks > 1) {
      fail(ErrorKind::invalid_argument, "rank " + std::to_string(rank) + " has no address");
    }
  }
  tcp::Fd fd = static_cast<Listener&>(*listener).release();
  if (!fd) fail(ErrorKind::invalid_argument, "the listener serves another fabric already");
  return std::make_shared<tcp::FabricThread>(checked(options), std::move(fd), std::move(run),
                                             std::move(addresses));
}

}  // namespace fedcomm
