// The TCP transport of one group: what its progress thread holds. It passes everything on to the
// fabric's thread.
#pragma once

#include <unordered_set>

#include "transport/tcp_fabric.h"

namespace fedcomm::tcp {

class TcpTransport final : public Transport {
 public:
  TcpTransport(std::shared_ptr<FabricThread> fabric, GroupId id, std::vector<int> ranks);
  ~TcpTransport() override;

  std::string_view name() const override { return "tcp"; }
  RequestId send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) override;
  RequestId receive(int member, Tag tag, BufferPtr buffer) override;
  void cancel(RequestId id) override;
  void poll(std::vector<Completion>& done) override;
  void wait(std::chrono::microseconds at_most) override { inbox_->wait(at_most); }
  void wake() override { inbox_->wake(); }
  bool wakes_by_itself() const override { return true; }
  std::uint64_t moved_bytes(int member) const override;
  std::string unreachable(int member) const override;

 private:
  int rank_of(int member) const { return ranks_[static_cast<std::size_t>(member)]; }

  std::shared_ptr<FabricThread> fabric_;
  GroupId id_;
  std::vector<int> ranks_;
  std::shared_ptr<Inbox> inbox_;
  std::unordered_set<RequestId> open_;  // neither reported nor cancelled
  RequestId next_id_ = 1;
};

}  // namespace fedcomm::tcp
