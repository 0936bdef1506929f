// The commands of the delay line: one a line, one answer each, "ok", "error: ..." or a JSON object.
//
//   link FROM TO BITS_PER_S QUEUE_NS DELAY_NS JITTER_NS LOSS    one direction; clouds count from 0
//   uplink CLOUD BITS_PER_S QUEUE_NS                            0 bits/s: no limit
//   downlink CLOUD BITS_PER_S QUEUE_NS
//   cut FROM TO 0|1
//   counters                                                    of all pairs, and of this process
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "network.h"

namespace fedcomm::wanlab {

/// How well the process keeps time.
struct Punctuality {
  std::uint64_t n_deliveries = 0, n_refused = 0;  // refused: by the receiving kernel
  Time total_late = 0, max_late = 0;
};

/// The answer to one command, without a line break.
std::string answer(std::string_view command, Network& network, const Punctuality& punctuality);

}  // namespace fedcomm::wanlab
