#include "transport/rate_limit.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <unordered_map>

namespace fedcomm {
namespace {

using Clock = std::chrono::steady_clock;

// Sends have ids of their own, since the transport below gives one only when a frame has left.
constexpr RequestId kOwnId = RequestId{1} << 63;

class RateLimited final : public Transport {
 public:
  RateLimited(std::unique_ptr<Transport> below, double bytes_per_s)
      : below_(std::move(below)), bytes_per_s_(bytes_per_s) {}

  std::string_view name() const override { return below_->name(); }

  RequestId send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) override {
    const RequestId id = kOwnId | next_id_++;
    if (tag.operation == 0) {
      sent_[below_->send(member, tag, std::move(frame), n_bytes)] = id;
      return id;
    }
    free_at_ = std::max(free_at_, Clock::now()) + time_for(n_bytes);
    queue_.push_back({id, member, tag, std::move(frame), n_bytes, free_at_});
    return id;
  }

  RequestId receive(int member, Tag tag, BufferPtr buffer) override {
    return below_->receive(member, tag, std::move(buffer));
  }

  void cancel(RequestId id) override {
    if ((id & kOwnId) == 0) return below_->cancel(id);
    const auto waiting = std::find_if(queue_.begin(), queue_.end(),
                                      [id](const Waiting& each) { return each.id == id; });
    if (waiting != queue_.end()) {
      // What was to follow does not wait for a frame that never leaves.
      const auto takes = time_for(waiting->n_bytes);
      free_at_ -= takes;
      for (auto next = queue_.erase(waiting); next != queue_.end(); ++next)
        next->due -= takes;
      return;
    }
    const auto found = std::find_if(sent_.begin(), sent_.end(),
                                    [id](const auto& each) { return each.second == id; });
    if (found == sent_.end()) return;
    below_->cancel(found->first);
    sent_.erase(found);
  }

  void poll(std::vector<Completion>& done) override {
    release();
    const std::size_t first = done.size();
    below_->poll(done);
    for (std::size_t i = first; i < done.size(); ++i) {
      const auto found = sent_.find(done[i].id);
      if (found == sent_.end()) continue;
      done[i].id = found->second;
      sent_.erase(found);
    }
  }

  void wait(std::chrono::microseconds at_most) override {
    if (!queue_.empty()) {
      const auto left =
          std::chrono::ceil<std::chrono::microseconds>(queue_.front().due - Clock::now());
      if (left <= std::chrono::microseconds::zero()) return;
      at_most = std::min(at_most, left);
    }
    below_->wait(at_most);
  }

  void wake() override { below_->wake(); }
  bool wakes_by_itself() const override { return below_->wakes_by_itself(); }
  std::uint64_t moved_bytes(int member) const override { return below_->moved_bytes(member); }
  std::string unreachable(int member) const override { return below_->unreachable(member); }

 private:
  struct Waiting {
    RequestId id;
    int member;
    Tag tag;
    BufferPtr frame;
    std::size_t n_bytes;
    Clock::time_point due;
  };

  Clock::duration time_for(std::size_t n_bytes) const {
    const std::chrono::duration<double> takes(static_cast<double>(n_bytes) / bytes_per_s_);
    return std::chrono::ceil<Clock::duration>(takes);
  }

  void release() {
    while (!queue_.empty() && queue_.front().due <= Clock::now()) {
      Waiting next = std::move(queue_.front());
      queue_.pop_front();
      sent_[below_->send(next.member, next.tag, std::move(next.frame), next.n_bytes)] = next.id;
    }
  }

  std::unique_ptr<Transport> below_;
  double bytes_per_s_;
  std::deque<Waiting> queue_;                      // in the order in which they leave
  Clock::time_point free_at_;                      // when the link has carried all of them
  std::unordered_map<RequestId, RequestId> sent_;  // id below -> own
  RequestId next_id_ = 0;
};

}  // namespace

std::unique_ptr<Transport> limit_rate(std::unique_ptr<Transport> transport, double bytes_per_s) {
  if (!(bytes_per_s > 0) || !std::isfinite(bytes_per_s)) {
    fail(ErrorKind::invalid_argument, "the rate limit is " + std::to_string(bytes_per_s) +
                                          "; it must be a positive number of bytes a second");
  }
  return std::make_unique<RateLimited>(std::move(transport), bytes_per_s);
}

}  // namespace fedcomm
