#include "transport/tcp_socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include "base/error.h"

namespace fedcomm::tcp {
namespace {

constexpr int kBacklog = 1024;
// Little unsent data in the kernel: which stream a piece goes to is decided late. On one host there
// is nothing to decide.
constexpr int kUnsentBytes = 128 << 10;
// A path that swallows everything: found after this time, so that other streams take over.
constexpr int kUserTimeoutMs = 10000;
constexpr int kKeepIdleS = 10, kKeepIntervalS = 3, kKeepCount = 3;

template <typename T>
bool set(int fd, int level, int option, const T& value) {
  return ::setsockopt(fd, level, option, &value, sizeof value) == 0;
}

void set_buffer(int fd, int forced, int plain, int n_bytes) {
  // Forced, it may exceed net.core.{r,w}mem_max; that takes CAP_NET_ADMIN.
  if (!set(fd, SOL_SOCKET, forced, n_bytes)) set(fd, SOL_SOCKET, plain, n_bytes);
}

void set_buffers(int fd, const TcpOptions& options) {
  if (options.socket_bytes == 0) return;
  const int n_bytes = static_cast<int>(std::min<std::size_t>(options.socket_bytes, 1u << 30));
  set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, n_bytes);
  set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, n_bytes);
}

Fd new_socket(int family) {
  return Fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

bool try_listen(const Fd& fd, const Address& address) {
  if (!fd) return false;
  set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (address.family() == AF_INET6 && address.host() == "::") {
    set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  }
  return ::bind(fd.get(), address.raw(), address.length()) == 0 &&
         ::listen(fd.get(), kBacklog) == 0;
}

}  // namespace

void Fd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

std::string error_text(int number) {
  return std::system_category().message(number);
}

Address::Address(const sockaddr* raw, socklen_t length) : length_(length) {
  expect(length <= sizeof storage_, "address length");
  std::memcpy(&storage_, raw, length);
}

Address Address::parse(const std::string& text) {
  const auto colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const bool good = colon != std::string::npos && !host.empty() &&
                    ::getaddrinfo(host.c_str(), text.c_str() + colon + 1, &hints, &found) == 0;
  if (!good || found == nullptr) {
    fail(ErrorKind::invalid_argument, "[tcp] " + text + " is no address of the form host:port");
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  return Address(found->ai_addr, found->ai_addrlen);
}

Address Address::of_peer(int fd) {
  Address address;
  address.length_ = sizeof address.storage_;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address.storage_), &address.length_) != 0) {
    address.length_ = 0;
  }
  return address;
}

Address Address::of_socket(int fd) {
  Address address;
  address.length_ = sizeof address.storage_;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage_), &address.length_) != 0) {
    address.length_ = 0;
  }
  return address;
}

std::string Address::host() const {
  char text[NI_MAXHOST];
  if (length_ == 0 ||
      ::getnameinfo(raw(), length_, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) {
    return "unknown";
  }
  const std::string host = text;
  return host.rfind("::ffff:", 0) == 0 ? host.substr(7) : host;  // IPv4 on an IPv6 socket
}

std::uint16_t Address::port() const {
  if (storage_.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
}

Address Address::with_port(std::uint16_t port) const {
  Address other = *this;
  if (storage_.ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(&other.storage_)->sin6_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in*>(&other.storage_)->sin_port = htons(port);
  }
  return other;
}

std::string Address::text() const {
  const std::string name = host();
  const bool brackets = name.find(':') != std::string::npos;
  return (brackets ? "[" + name + "]" : name) + ":" + std::to_string(port());
}

bool Address::is_loopback() const {
  const std::string name = host();
  return name.rfind("127.", 0) == 0 || name == "::1";
}

std::vector<Address> addresses_of(const std::string& interface) {
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) {
    fail(ErrorKind::config, "[tcp] cannot list the interfaces: " + error_text(errno));
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(first, ::freeifaddrs);
  std::vector<Address> found;
  std::string names;
  for (const ifaddrs* each = first; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_flags & IFF_UP) == 0) continue;
    const int family = each->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const Address address(each->ifa_addr, family == AF_INET ? socklen_t{sizeof(sockaddr_in)}
                                                            : socklen_t{sizeof(sockaddr_in6)});
    const std::string host = address.host();
    if (host.rfind("fe80:", 0) == 0) continue;
    names += (names.empty() ? "" : ", ") + std::string(each->ifa_name) + " (" + host + ")";
    if (interface.empty() || interface == each->ifa_name || interface == host) {
      found.push_back(address);
    }
  }
  if (found.empty()) {
    fail(ErrorKind::config,
         "[tcp] there is no interface or address " + interface + " that is up; there are " + names);
  }
  std::stable_sort(found.begin(), found.end(), [](const Address& a, const Address& b) {
    const auto key = [](const Address& x) { return std::pair(x.is_loopback(), x.family()); };
    return key(a) < key(b);
  });
  return found;
}

Fd listen_on(const TcpOptions& options) {
  std::vector<Address> on;
  if (options.interface.empty()) {
    on = {Address::parse("[::]:0"), Address::parse("0.0.0.0:0")};
  } else {
    on = {addresses_of(options.interface).front()};
  }
  const int n_ports = options.port == 0 ? 1 : std::max<int>(1, options.n_ports);
  int error = 0;
  for (int i = 0; i < n_ports && options.port + i <= 65535; ++i) {
    const auto port = static_cast<std::uint16_t>(options.port + i);
    for (const Address& address : on) {
      Fd fd = new_socket(address.family());
      if (try_listen(fd, address.with_port(port))) return fd;
      error = errno;
      if (error == EADDRINUSE) break;  // free for IPv4 only would be half a listener
    }
  }
  const std::string ports = n_ports == 1 ? "port " + std::to_string(options.port)
                                         : "any port of " + std::to_string(options.port) + " to " +
                                               std::to_string(options.port + n_ports - 1);
  fail(ErrorKind::config, "[tcp] cannot listen on " + ports + " of " +
                              (options.interface.empty() ? "this host" : options.interface) + ": " +
                              error_text(error));
}

Fd dial(const Address& to, const TcpOptions& options) {
  Fd fd = new_socket(to.family());
  if (!fd) return fd;
  set_buffers(fd.get(), options);  // before connecting: the window's scale is agreed then
  if (!options.interface.empty()) {
    for (const Address& from : addresses_of(options.interface)) {
      if (from.family() != to.family()) continue;
      const Address any_port = from.with_port(0);
      if (::bind(fd.get(), any_port.raw(), any_port.length()) != 0) return Fd();
      break;
    }
  }
  if (::connect(fd.get(), to.raw(), to.length()) != 0 && errno != EINPROGRESS) {
    const int error = errno;
    fd.reset();
    errno = error;
  }
  return fd;
}

int connect_error(int fd) {
  int error = 0;
  socklen_t length = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
  return error;
}

void tune(int fd, Path path, const TcpOptions& options) {
  set_buffers(fd, options);
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMs);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleS);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalS);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepCount);
  std::string congestion = options.congestion;
  if (path == Path::network) {
    set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentBytes);
    if (congestion.empty()) congestion = "bbr";
  } else if (congestion.empty()) {
    congestion = "cubic";  // BBR's pacing takes longer than the way inside a host
  }
  // Where the kernel has not got it, what was before stays; congestion_of tells which it is.
  ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion.data(),
               static_cast<socklen_t>(congestion.size()));
}

void limit_pace(int fd, std::uint64_t bytes_per_s) {
  set(fd, SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_s);
}

SocketFacts facts_of(int fd) {
  SocketFacts facts;
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0) {
    facts.rtt_s = 1e-6 * info.tcpi_rtt;
    facts.least_rtt_s = 1e-6 * info.tcpi_min_rtt;
    facts.sent_segments = info.tcpi_data_segs_out;
    facts.retransmitted_segments = info.tcpi_total_retrans;
    facts.window_segments = info.tcpi_snd_cwnd;
    facts.delivered_bytes = std::uint64_t{info.tcpi_delivered} * info.tcpi_snd_mss;
  }
  return facts;
}

std::string congestion_of(int fd) {
  char name[16] = {};
  socklen_t length = sizeof name - 1;
  const bool known = ::getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0;
  return known ? name : "";
}

}  // namespace fedcomm::tcp
