// Sockets: handles that close themselves, addresses as text, and the options that streams need.
// Nothing here knows of frames, and nothing blocks.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "transport/tcp.h"

namespace fedcomm::tcp {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { reset(); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

/// An IPv4 or IPv6 address with a port.
class Address {
 public:
  /// "10.0.0.7:5001" or "[fd00::1]:5001", numbers only. Throws invalid_argument.
  static Address parse(const std::string& text);
  static Address of_peer(int fd);
  static Address of_socket(int fd);
  Address(const sockaddr* raw, socklen_t length);

  std::string text() const;  // as parse reads it
  std::string host() const;
  std::uint16_t port() const;
  Address with_port(std::uint16_t port) const;
  bool is_loopback() const;
  int family() const { return storage_.ss_family; }
  const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t length() const { return length_; }

 private:
  Address() = default;
  sockaddr_storage storage_{};
  socklen_t length_ = 0;
};

/// Addresses of an interface, by its name or one of its addresses; all where `interface` is empty.
/// None that only this link knows (fe80::). Throws config where there is no such interface.
std::vector<Address> addresses_of(const std::string& interface);

Fd listen_on(const TcpOptions& options);

/// Begins to connect; errno where that fails at once.
Fd dial(const Address& to, const TcpOptions& options);
/// Why a connection could not be made; 0 where it could.
int connect_error(int fd);

enum class Path : std::uint8_t { same_host, network };

/// What a new stream is set to, whichever side connected.
void tune(int fd, Path path, const TcpOptions& options);

struct SocketFacts {
  double rtt_s = 0, least_rtt_s = 0;
  std::uint64_t sent_segments = 0;  // with data
  std::uint64_t retransmitted_segments = 0;
  std::uint32_t window_segments = 0;  // that may be in flight
  std::uint64_t delivered_bytes = 0;  // acknowledged, in order or not, in whole segments
};
SocketFacts facts_of(int fd);
std::string congestion_of(int fd);
/// The kernel sends no faster than this.
void limit_pace(int fd, std::uint64_t bytes_per_s);

std::string error_text(int number);

}  // namespace fedcomm::tcp
