// A connection before it is a stream: one side says hello, the other checks it and answers. A
// stranger is sent away without a word; whoever says nothing is closed after a while.
#pragma once

#include <array>
#include <chrono>
#include <string>

#include "transport/tcp_socket.h"
#include "transport/tcp_stream.h"
#include "transport/tcp_wire.h"

namespace fedcomm::tcp {

constexpr std::chrono::seconds kHandshakeTime{5};

class Handshake {
 public:
  enum class State : std::uint8_t { connecting, waiting, done, failed };

  /// Of a connection that is being made; says `hello` once it is there.
  Handshake(Fd fd, const Hello& hello);
  /// Of one that was accepted.
  explicit Handshake(Fd fd);

  int fd() const { return fd_.get(); }
  bool dialled() const { return dialled_; }
  Clock::time_point deadline() const { return deadline_; }
  const Hello& own() const { return own_; }
  /// Of the peer, once done.
  const Hello& hello() const { return hello_; }
  const std::string& why() const { return why_; }
  ErrorKind error() const { return error_; }

  /// After the socket stirred.
  State advance();
  /// Sends an answer. Returns whether all of it went out, as it does on any healthy connection.
  bool answer(const Hello& hello);
  Fd release() { return std::move(fd_); }

 private:
  State failed(const std::string& why, ErrorKind error = ErrorKind::peer_lost);

  Fd fd_;
  bool dialled_;
  bool connected_;
  Clock::time_point deadline_ = Clock::now() + kHandshakeTime;
  Hello own_;
  Hello hello_;
  std::array<std::byte, kHelloBytes> bytes_;
  std::size_t n_bytes_ = 0;
  std::string why_;
  ErrorKind error_ = ErrorKind::peer_lost;
};

}  // namespace fedcomm::tcp
