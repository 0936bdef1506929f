#include "transport/tcp_transport.h"

#include <algorithm>

namespace fedcomm::tcp {
namespace {

constexpr const char* kClosed = "the fabric of this rank is closed";

}  // namespace

TcpTransport::TcpTransport(std::shared_ptr<FabricThread> fabric, GroupId id, std::vector<int> ranks)
    : fabric_(std::move(fabric)),
      id_(id),
      ranks_(std::move(ranks)),
      inbox_(std::make_shared<Inbox>(ranks_.size())) {
  fabric_->command([&fabric = *fabric_, id, ranks = ranks_, inbox = inbox_] {
    fabric.matcher().open(id, ranks, inbox);
    for (const int rank : ranks) {
      if (rank != fabric.rank()) fabric.link(rank).use();
    }
  });
}

TcpTransport::~TcpTransport() {
  fabric_->close_channel(id_);
}

RequestId TcpTransport::send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) {
  expect(rank_of(member) != fabric_->rank(), "a member sends to itself");
  expect(n_bytes <= kMaxFrameBytes && n_bytes <= frame->size(), "length of a frame");
  auto outgoing = std::make_shared<Outgoing>();
  outgoing->channel = id_;
  outgoing->tag = tag;
  outgoing->frame = std::move(frame);
  outgoing->n_bytes = n_bytes;
  outgoing->id = next_id_++;
  outgoing->inbox = inbox_;
  outgoing->member = static_cast<std::size_t>(member);
  const RequestId id = outgoing->id;
  open_.insert(id);
  const bool alive =
      fabric_->command([&link = fabric_->link(rank_of(member)), outgoing] { link.send(outgoing); });
  if (!alive) inbox_->complete({id, 0, kClosed, ErrorKind::peer_lost});
  return id;
}

RequestId TcpTransport::receive(int member, Tag tag, BufferPtr buffer) {
  expect(rank_of(member) != fabric_->rank(), "a member receives from itself");
  const RequestId id = next_id_++;
  open_.insert(id);
  const bool alive = fabric_->command([&link = fabric_->link(rank_of(member)), group = id_, tag,
                                       receive = PostedReceive{id, std::move(buffer)},
                                       inbox = inbox_] { link.post(group, tag, receive, *inbox); });
  if (!alive) inbox_->complete({id, 0, kClosed, ErrorKind::peer_lost});
  return id;
}

void TcpTransport::cancel(RequestId id) {
  if (open_.erase(id) == 0) return;
  fabric_->command([&fabric = *fabric_, group = id_, id] { fabric.matcher().cancel(group, id); });
}

void TcpTransport::poll(std::vector<Completion>& done) {
  const std::size_t n_before = done.size();
  inbox_->take(done);
  const auto cancelled = [this](const Completion& each) { return open_.erase(each.id) == 0; };
  done.erase(
      std::remove_if(done.begin() + static_cast<std::ptrdiff_t>(n_before), done.end(), cancelled),
      done.end());
}

std::uint64_t TcpTransport::moved_bytes(int member) const {
  return inbox_->moved_bytes(static_cast<std::size_t>(member));
}

std::string TcpTransport::unreachable(int member) const {
  const auto status = fabric_->status(rank_of(member));
  return status ? status->trouble() : std::string();
}

}  // namespace fedcomm::tcp
