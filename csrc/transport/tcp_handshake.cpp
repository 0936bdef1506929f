#include "transport/tcp_handshake.h"

#include <poll.h>

#include <cerrno>

#include "base/error.h"

namespace fedcomm::tcp {

Handshake::Handshake(Fd fd, const Hello& hello)
    : fd_(std::move(fd)), dialled_(true), connected_(false), own_(hello) {}

Handshake::Handshake(Fd fd) : fd_(std::move(fd)), dialled_(false), connected_(true) {}

Handshake::State Handshake::failed(const std::string& why, ErrorKind error) {
  why_ = why;
  error_ = error;
  return State::failed;
}

Handshake::State Handshake::advance() {
  if (!connected_) {
    pollfd ready{fd_.get(), POLLOUT, 0};
    if (::poll(&ready, 1, 0) == 0) return State::connecting;
    if (const int error = connect_error(fd_.get())) return failed(error_text(error));
    connected_ = true;
    if (!answer(own_)) return failed("it does not take a hello");
  }
  while (n_bytes_ < kHelloBytes) {
    const ssize_t n =
        ::recv(fd_.get(), bytes_.data() + n_bytes_, kHelloBytes - n_bytes_, MSG_DONTWAIT);
    if (n == 0) {
      return failed("it closed the connection in the handshake: it may belong to another run");
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return State::waiting;
    if (n < 0) return failed(error_text(errno));
    n_bytes_ += static_cast<std::size_t>(n);
  }
  try {
    hello_ = parse_hello(bytes_);
  } catch (const Error& error) {
    return failed(error.what(), error.kind());
  }
  return State::done;
}

bool Handshake::answer(const Hello& hello) {
  const auto bytes = write_hello(hello);
  return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

}  // namespace fedcomm::tcp
