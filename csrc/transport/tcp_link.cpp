#include "transport/tcp_link.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{20}, kLongestPause{1000};
constexpr milliseconds kAckDelay{10};
constexpr std::size_t kAckBytes = 1u << 20;
constexpr int kRounds = 8;  // of one system call in each direction, before other links get theirs
constexpr milliseconds kSettleDown{500};

// Streams of a pair where nobody says how many. One is best inside a host. A short path is filled
// by few; on a long one the window, the start and the losses of each stream are the limit, and
// 8 BBR streams were measured to fill 1 Gbit/s at 50 ms with losses of 1e-3.
// One more is for what is short.
constexpr int kSameHostStreams = 1, kNearStreams = 5, kFarStreams = 9;
constexpr double kNearRttS = 1e-3;

Path path_of(int fd) {
  const Address here = Address::of_socket(fd), there = Address::of_peer(fd);
  return there.is_loopback() || here.host() == there.host() ? Path::same_host : Path::network;
}

int streams_for(int fd, int asked) {
  if (asked > 0) return asked;
  if (path_of(fd) == Path::same_host) return kSameHostStreams;
  return facts_of(fd).rtt_s < kNearRttS ? kNearStreams : kFarStreams;
}

}  // namespace

Link::Link(int rank, Role role, std::vector<Address> addresses, const TcpOptions& options,
           Matcher& matcher)
    : rank_(rank),
      role_(role),
      addresses_(std::move(addresses)),
      options_(options),
      matcher_(matcher),
      receiver_(rank, options.early_bytes, matcher,
                [this](std::uint64_t frame) {
                  if (!failure_) sender_.notice_taken(frame);
                }),
      slots_(kMaxStreams) {
  address_text_ = addresses_.empty() ? "no address" : addresses_.front().text();
  update_trouble("not connected yet");
}

std::string Link::where() const {
  return "(" + address_text_ + "): ";
}

void Link::update_trouble(const std::string& why) {
  status_->set_trouble(n_connected_ > 0 ? std::string() : where() + "no connection: " + why);
}

// --- frames ------------------------------------------------------------------------------------

void Link::send(OutgoingPtr frame) {
  if (failure_) {
    frame->inbox->complete({frame->id, 0, failure_->why, failure_->kind});
    return;
  }
  sender_.queue(std::move(frame));
}

void Link::post(GroupId id, Tag tag, PostedReceive receive, Inbox& inbox) {
  const RequestId request = receive.id;
  receiver_.post(id, tag, std::move(receive));
  // What came before the end can still be had; nothing else will come.
  if (failure_) {
    if (matcher_.withdraw(id, {rank_, tag.operation, tag.slot}, request)) {
      inbox.complete({request, 0, failure_->why, failure_->kind});
    }
  }
}

// --- connections -------------------------------------------------------------------------------

int Link::n_to_dial() const {
  if (role_ != Role::dials || failure_ || left_) return 0;
  return is_used_ ? n_wanted_ : 1;
}

std::vector<int> Link::due_dials(Clock::time_point now) {
  std::vector<int> due;
  for (int i = 0; i < n_to_dial(); ++i) {
    Slot& slot = slots_[static_cast<std::size_t>(i)];
    if (slot.stream || slot.dialling || now < slot.next_try) continue;
    slot.dialling = true;
    due.push_back(i);
  }
  return due;
}

const Address& Link::next_address() {
  const Address& address = addresses_[next_address_ % addresses_.size()];
  address_text_ = address.text();
  return address;
}

void Link::dial_failed(int index, const std::string& why) {
  Slot& slot = slots_[static_cast<std::size_t>(index)];
  slot.dialling = false;
  slot.why = why;
  slot.pause = std::clamp(slot.pause * 2, kFirstPause, kLongestPause);
  slot.next_try = Clock::now() + slot.pause;
  if (n_connected_ == 0) {
    update_trouble(why);
    ++next_address_;  // none of the streams gets through to this one
  }
}

void Link::adopt(Fd fd, int index, int n_streams) {
  if (failure_) return;
  Slot& slot = slots_[static_cast<std::size_t>(index)];
  // A second connection for a stream: the peer has seen the first one end, and this side has not.
  if (slot.stream) lose(index, "it connected again");
  slot.dialling = false;
  slot.pause = {};
  if (slot.was_connected) ++stats_.reconnects;
  slot.was_connected = true;
  const Path path = path_of(fd.get());
  tune(fd.get(), path, options_);
  is_paced_ = path == Path::network;
  n_wanted_ = role_ == Role::dials ? streams_for(fd.get(), options_.streams)
                                   : std::max(n_wanted_, n_streams);
  if (role_ == Role::accepts) {
    // One that has closed already has no address any more; the configured one still names it.
    const Address from = Address::of_peer(fd.get());
    if (from.length() > 0) address_text_ = from.text();
  }
  slot.stream = std::make_unique<Stream>(std::move(fd), index);
  ++n_connected_;
  limit_paces();
  update_trouble({});
}

Stream* Link::stream(int index) {
  return slots_[static_cast<std::size_t>(index)].stream.get();
}

bool Link::recognise(std::uint64_t incarnation) {
  if (!incarnation_) incarnation_ = incarnation;
  return *incarnation_ == incarnation;
}

void Link::retire(const Stream& stream) {
  count(gone_, stream);
  stats_.wire_bytes_sent += stream.n_sent();
}

void Link::lose(int index, const std::string& why) {
  Slot& slot = slots_[static_cast<std::size_t>(index)];
  retire(*slot.stream);
  slot.stream.reset();
  slot.why = why;
  slot.pause = kFirstPause;
  slot.next_try = Clock::now();  // the first attempt at once
  --n_connected_;
  pacer_.abandon();
  limit_paces();
  stats_.resent_bytes += sender_.lose(index);
  acked_ = 0;  // the last acknowledgement may be lost: say it again
  ack_by_ = Clock::now();
  if (n_connected_ == 0) {
    down_since_ = Clock::now();
    update_trouble(why);
  }
}

void Link::fail(ErrorKind kind, const std::string& why) {
  if (failure_) return;
  failure_ = Failure{kind, where() + why};
  for (Slot& slot : slots_) {
    if (slot.stream) retire(*slot.stream);
    slot.stream.reset();
  }
  n_connected_ = 0;
  status_->set_trouble(failure_->why);
  sender_.fail(kind, failure_->why);
  matcher_.fail(rank_, kind, failure_->why);
}

// --- progress ----------------------------------------------------------------------------------

bool Link::pump() {
  const auto now = Clock::now();
  for (Slot& slot : slots_) {
    if (slot.stream) slot.stream->resume(now);
  }
  const auto n_slots = static_cast<std::size_t>(n_wanted_);
  bool moved = true;
  for (int round = 0; round < kRounds && moved; ++round) {
    moved = false;
    first_slot_ = (first_slot_ + 1) % n_slots;
    for (std::size_t i = 0; i < n_slots && !failure_; ++i) {
      const auto index = (first_slot_ + i) % n_slots;
      const auto step = [&](Io (Link::*io)(Stream&)) {
        Stream* stream = slots_[index].stream.get();
        if (stream == nullptr) return;
        std::string why;
        try {
          const Io outcome = (this->*io)(*stream);
          if (outcome != Io::ended) {
            moved = moved || outcome == Io::moved;
            return;
          }
          why = stream->why_ended();
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::corrupt_frame) return fail(error.kind(), error.what());
          why = error.what();
        }
        lose(static_cast<int>(index), why);
      };
      step(&Link::read);
      if (!failure_) step(&Link::write);
    }
  }
  note_stall(now);
  pace(now);
  // The peer has left, and everything that it said before has been heard.
  if (goodbye_ && receiver_.next() > *goodbye_) fail(ErrorKind::peer_lost, "has left");
  return moved && !failure_;
}

Io Link::read(Stream& stream) {
  if (!stream.can_read()) return Io::nothing;
  Stream::Arrival arrival;
  const Io outcome = stream.read(arrival);
  if (arrival.n_payload > 0) {
    receiver_.progress(stream.record(), stream.target(), stream.n_payload_received());
  }
  if (arrival.n_payload > 0 || arrival.record) {
    if (receiver_.next() == acked_) ack_by_ = Clock::now() + kAckDelay;
    n_since_ack_ += arrival.n_payload;
  }
  if (arrival.piece_ended) end_piece(stream);
  if (arrival.record) handle(stream, *arrival.record);
  return outcome;
}

void Link::handle(Stream& stream, const Record& record) {
  switch (record.kind) {
    case RecordKind::piece: begin_piece(stream, record); break;
    case RecordKind::taken:
      if (receiver_.accept(record)) sender_.taken(record.frame);
      break;
    case RecordKind::goodbye:
      if (receiver_.accept(record)) goodbye_ = record.number;
      break;
    case RecordKind::ack: sender_.acknowledge(record.number); break;
  }
}

void Link::begin_piece(Stream& stream, const Record& record) {
  stream.expect_payload(record, receiver_.begin(record));
  if (record.n_bytes == 0) end_piece(stream);
}

void Link::end_piece(Stream& stream) {
  receiver_.finish(stream.record(), stream.target());
  stream.forget_target();
  // Sent twice, since the peer has seen a stream end that may still bring something here. Either
  // copy may be cut short, so both are written, to the same place; but nothing may be written once
  // one of them is complete, and the frame with its owner.
  for (Slot& slot : slots_) {
    if (slot.stream && slot.stream->is_receiving(stream.record().number)) {
      slot.stream->forget_target();
    }
  }
}

bool Link::ack_is_due(Clock::time_point now) const {
  return receiver_.next() != acked_ && (n_since_ack_ >= kAckBytes || now >= ack_by_);
}

Io Link::write(Stream& stream) {
  if (!stream.can_write()) return Io::nothing;
  if (!stream.is_sending()) {
    const Takes takes = takes_of(stream);
    const bool has_work =
        sender_.has_work(takes) && (takes != Takes::data || (is_active(stream) && !spares(stream)));
    if (!has_work && (takes == Takes::data || !ack_is_due(Clock::now()))) return Io::nothing;
    std::optional<std::uint64_t> ack;
    if (receiver_.next() != acked_) ack = acked_ = receiver_.next();
    n_since_ack_ = 0;
    const Sender::Piece* piece = sender_.next(stream.index(), takes, n_active());
    if (piece == nullptr && !ack) return Io::nothing;
    stream.begin_sending(ack, piece);
  }
  const Io outcome = stream.write();
  if (stream.sending() != 0 && outcome == Io::moved) {
    sender_.written(stream.sending(), stream.n_payload_sent());
  }
  return outcome;
}

bool Link::has_room(Takes takes) const {
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return slot.stream && slot.stream->can_write() &&
           (takes == Takes::all ||
            takes_of(*slot.stream) != (takes == Takes::data ? Takes::shorts : Takes::data));
  });
}

void Link::note_stall(Clock::time_point now) {
  const bool stalled = sender_.has_work(Takes::data) && !has_room(Takes::data);
  if (stalled && !stalled_since_) stalled_since_ = now;
  if (!stalled && stalled_since_) {
    stats_.stalled_s += std::chrono::duration<double>(now - *stalled_since_).count();
    stalled_since_.reset();
  }
}

Clock::time_point Link::next_deadline() const {
  auto deadline = Clock::time_point::max();
  if (failure_) return deadline;
  if (is_paced_) deadline = pacer_.next_deadline();
  if (receiver_.next() != acked_ && has_room(Takes::shorts)) deadline = std::min(deadline, ack_by_);
  for (int i = 0; i < n_wanted_; ++i) {
    const Slot& slot = slots_[static_cast<std::size_t>(i)];
    if (slot.stream && slot.stream->resumes_at()) {
      deadline = std::min(deadline, *slot.stream->resumes_at());
    }
    if (i < n_to_dial() && !slot.stream && !slot.dialling)
      deadline = std::min(deadline, slot.next_try);
  }
  return deadline;
}

void Link::say_goodbye() {
  if (!failure_ && !left_) sender_.notice_goodbye();
  left_ = true;
}

bool Link::is_settled(Clock::time_point now) const {
  if (failure_ || sender_.drained()) return true;
  // A peer that has heard the goodbye hangs up.
  return n_connected_ == 0 && (left_ || now - down_since_ > kSettleDown);
}

void Link::inject(const TcpFault& fault) {
  if (Stream* found = stream(fault.stream)) found->inject(fault);
}

}  // namespace fedcomm::tcp
