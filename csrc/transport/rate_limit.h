// A transport that sends no faster than it is told, over any other one: for an uplink that training
// must not fill, and for benchmarks that want a slow link on a fast machine.
//
// Frames leave one after the other, each when the time is over that a link of this rate would have
// taken to carry it; so a receiver has a frame no earlier than over such a link. All destinations
// share the rate. Control frames (operation 0) are few, short and urgent, and go at once.
#pragma once

#include <memory>

#include "transport/transport.h"

namespace fedcomm {

/// `bytes_per_s` counts frames, not what the transport adds to them. Throws invalid_argument where
/// it is not a positive number.
std::unique_ptr<Transport> limit_rate(std::unique_ptr<Transport> transport, double bytes_per_s);

}  // namespace fedcomm
