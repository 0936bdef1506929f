// What all links of a rank may share: the way out of its cloud.
//
// Where the uplink is the bottleneck, links take from each other, by chance one more than another,
// and an operation waits for the one that got least. So while several have more to send than they
// can, the uplink is paced as a whole, and divided in proportion to what each has left to send:
// they end together. A link that loses much more than all do has a bottleneck of its own, and its
// own limit.
#pragma once

#include <span>
#include <vector>

#include "transport/tcp_link.h"

namespace fedcomm::tcp {

/// Parts of `limit` for links that have so many bytes left to send: in proportion, but for each at
/// least a quarter of an equal part, since less would not be noticed in time when it gets more to
/// send. So they may add up to more than the limit.
std::vector<double> parts_of(double limit, std::span<const std::size_t> backlogs);

class Uplink {
 public:
  void pace(std::span<Link* const> links, Clock::time_point now);
  /// When `pace` wants to be called although nothing happens.
  Clock::time_point next_deadline() const { return next_; }

 private:
  void divide(std::span<Link* const> loaded);

  Pacer total_;
  bool is_shared_ = false;  // several links have a backlog
  Clock::time_point next_ = Clock::time_point::max();
};

}  // namespace fedcomm::tcp
