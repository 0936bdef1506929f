#include "transport/tcp_stream.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"

namespace fedcomm::tcp {
namespace {

iovec part(const std::byte* data, std::size_t n_bytes) {
  return {const_cast<std::byte*>(data), n_bytes};
}

}  // namespace

void Stream::begin_sending(std::optional<std::uint64_t> ack, const Sender::Piece* piece) {
  n_head_ = 0;
  const auto add = [this](const Record& record) {
    write_record(record, std::span(head_).subspan(n_head_).first<kRecordBytes>());
    n_head_ += kRecordBytes;
  };
  if (ack) {
    Record record;
    record.kind = RecordKind::ack;
    record.number = *ack;
    add(record);
  }
  sending_ = 0;
  payload_ = {};
  keep_.reset();
  if (piece != nullptr) {
    add(piece->record);
    sending_ = piece->record.number;
    if (piece->frame) {
      payload_ = piece->bytes();
      keep_ = piece->frame->frame;
    }
  }
  n_sent_of_record_ = 0;
  n_to_send_ = n_head_ + payload_.size();
}

bool Stream::is_resting(Clock::time_point now) {
  constexpr std::uint32_t kSegments = 4;           // bbr_cwnd_min_target, net/ipv4/tcp_bbr.c
  constexpr std::chrono::milliseconds kTime{250};  // then it ends with the next segment
  if (facts_of(fd_.get()).window_segments > kSegments) {
    resting_since_.reset();
    return false;
  }
  if (!resting_since_) resting_since_ = now;
  return now - *resting_since_ < kTime;
}

Io Stream::write() {
  std::size_t room = allowed_to_send();
  iovec parts[2];
  int n_parts = 0;
  std::size_t asked = 0;
  const auto add = [&](std::span<const std::byte> bytes) {
    const std::size_t n = std::min(bytes.size(), room);
    if (n == 0) return;
    parts[n_parts++] = part(bytes.data(), n);
    room -= n;
    asked += n;
  };
  const std::size_t done = n_sent_of_record_;
  add(std::span<const std::byte>(head_).first(n_head_).subspan(std::min(done, n_head_)));
  add(payload_.subspan(done - std::min(done, n_head_)));
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(n_parts);
  const ssize_t n = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EINTR) return Io::moved;
    writable_ = false;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Io::nothing;
    why_ended_ = error_text(errno);
    return Io::ended;
  }
  const auto n_bytes = static_cast<std::size_t>(n);
  if (n_bytes < asked) writable_ = false;
  n_sent_ += n_bytes;
  n_sent_of_record_ += n_bytes;
  if (n_sent_of_record_ == n_to_send_) {
    n_to_send_ = 0;
    keep_.reset();
  }
  after_sending(n_bytes);
  return frozen_ && fault_ && fault_->kind == TcpFault::Kind::cut ? Io::ended : Io::moved;
}

Io Stream::read(Arrival& arrival) {
  static thread_local std::array<std::byte, 64u << 10> forgotten;
  iovec parts[2];
  int n_parts = 0;
  std::size_t n_payload = 0;
  if (n_payload_left_ > 0) {
    if (target_.data != nullptr) {
      n_payload = n_payload_left_;
      parts[n_parts++] = part(target_.data + (record_.n_bytes - n_payload_left_), n_payload);
    } else {
      n_payload = std::min(n_payload_left_, forgotten.size());
      parts[n_parts++] = part(forgotten.data(), n_payload);
    }
  }
  std::size_t asked = n_payload;
  if (n_payload == n_payload_left_) {  // then the next record's header follows
    const std::size_t n_missing = kRecordBytes - n_header_;
    parts[n_parts++] = part(header_.data() + n_header_, n_missing);
    asked += n_missing;
  }
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(n_parts);
  const ssize_t n = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EINTR) return Io::moved;
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      readable_ = false;
      return Io::nothing;
    }
    why_ended_ = error_text(errno);
    return Io::ended;
  }
  if (n == 0) {
    why_ended_ = "it closed the connection";
    return Io::ended;
  }
  const auto n_bytes = static_cast<std::size_t>(n);
  // Less than asked for: the socket is empty, and the kernel will tell of more. An end that was
  // told already must be read to be seen.
  if (n_bytes < asked && !hung_up_) readable_ = false;
  arrival.n_payload = std::min(n_bytes, n_payload);
  if (n_payload_left_ > 0) {
    n_payload_left_ -= arrival.n_payload;
    arrival.piece_ended = n_payload_left_ == 0;
  }
  n_header_ += n_bytes - arrival.n_payload;
  if (n_header_ == kRecordBytes) {
    n_header_ = 0;
    arrival.record = parse_record(header_);
  }
  return Io::moved;
}

void Stream::expect_payload(const Record& record, Receiver::Target target) {
  record_ = record;
  target_ = std::move(target);
  n_payload_left_ = record.n_bytes;
}

void Stream::inject(const TcpFault& fault) {
  fault_ = fault;
  n_before_fault_ = fault.kind == TcpFault::Kind::slow ? 0 : fault.after_bytes;
  if (fault.kind == TcpFault::Kind::slow) slow_bytes_ = fault.after_bytes;
}

std::size_t Stream::allowed_to_send() const {
  if (slow_bytes_ > 0) return slow_bytes_;
  return fault_ ? std::max<std::size_t>(1, n_before_fault_) : SIZE_MAX;
}

void Stream::after_sending(std::size_t n_bytes) {
  if (slow_bytes_ > 0) {
    resumes_at_ = Clock::now() + std::chrono::milliseconds(1);
    writable_ = false;
  } else if (fault_) {
    n_before_fault_ -= std::min(n_before_fault_, n_bytes);
    if (n_before_fault_ > 0) return;
    frozen_ = true;
    why_ended_ = "cut on purpose";
  }
}

void Stream::resume(Clock::time_point now) {
  if (!resumes_at_ || now < *resumes_at_) return;
  resumes_at_.reset();
  writable_ = true;
}

}  // namespace fedcomm::tcp
