// The TCP transport: several sockets (streams) between every two ranks, for long, lossy paths.
//
// A frame is cut into pieces, and each goes to whichever stream has room, so that a slow stream
// holds up its own piece only. A stream that is lost is dialled again, and what it had not
// delivered goes to the others, without an operation noticing. It needs no MPI; who tells the ranks
// each other's addresses is not decided here (see pyfedcomm/tcp.py).
//
// The token keeps strangers and other runs out; it is sent as it is, so it is no secret from who
// reads the wire. What must be secret or proven goes through a FrameSealer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace fedcomm {

struct TcpOptions {
  int streams = 0;                     // of a pair; 0: $PYFEDCOMM_TCP_STREAMS, else by the path
  std::string interface;               // "eth1", or an address; empty: all there are
  std::uint16_t port = 0;              // of the listener; 0: any
  std::uint16_t n_ports = 1;           // tried upwards from `port`
  std::string congestion;              // "bbr", "cubic", ...; empty: bbr where the kernel has it
  std::size_t socket_bytes = 0;        // of each socket buffer; 0: as the kernel tunes them
  std::size_t early_bytes = 1u << 30;  // of frames from one rank that nobody has asked for yet
};

/// A listening socket: made first, so that its addresses can be told to the others.
class TcpListener {
 public:
  /// Throws config where the interface or the port cannot be had.
  static std::shared_ptr<TcpListener> open(const TcpOptions& options);
  virtual ~TcpListener() = default;

  /// "10.0.0.7:5001" or "[fd00::1]:5001", most promising first; loopback last.
  virtual std::vector<std::string> addresses() const = 0;
};

/// What all ranks of a run have in common, and which of them this is.
struct TcpRun {
  int rank = 0;
  std::uint64_t session = 0;
  std::array<std::byte, 16> token{};
  std::vector<std::vector<std::string>> addresses;  // of each rank's listener
};

/// What passed between this rank and another, since the fabric was opened.
struct LinkStats {
  std::string address;  // of the peer
  std::string congestion;
  int streams = 0;  // connected now
  std::uint64_t frame_bytes_sent = 0;
  std::uint64_t frame_bytes_received = 0;
  std::uint64_t wire_bytes_sent = 0;  // frames, and what surrounds their pieces; not TCP's own
  std::uint64_t resent_bytes = 0;     // of pieces that a lost stream did not deliver
  std::uint64_t reconnects = 0;       // streams that came back
  std::uint64_t sent_segments = 0;    // with data, by TCP, over all streams
  std::uint64_t retransmitted_segments = 0;  // among them
  double stalled_s = 0;                      // with frames to send and no stream with room
  double rtt_s = 0;                          // smoothed, the smallest of the streams; 0: unknown
  double pace_bytes_per_s = 0;               // that the streams together keep to; 0: no limit
};

/// For tests: what a stream does after it has sent `after_bytes` more bytes.
struct TcpFault {
  enum class Kind : std::uint8_t {
    cut,     // closed at once, in the middle of whatever it is doing
    freeze,  // sends and reads nothing any more, and does not say so
    slow,    // from then on it sends `after_bytes` bytes in a millisecond
  };
  Kind kind = Kind::cut;
  int rank = 0;    // whose link
  int stream = 0;  // which of its streams
  std::size_t after_bytes = 0;
};

class TcpFabric : public Fabric {
 public:
  virtual LinkStats link_stats(int rank) = 0;
  std::optional<PathFacts> path_facts(int rank) final {
    const LinkStats stats = link_stats(rank);
    return PathFacts{stats.sent_segments, stats.retransmitted_segments, stats.stalled_s,
                     stats.rtt_s};
  }
  virtual void inject(const TcpFault& fault) = 0;
  /// Waits, 2 s at most, until the others have what was sent to them, and says goodbye. Idempotent.
  virtual void close() = 0;
};

/// Purely local: connections are made in the background. Throws invalid_argument, config.
std::shared_ptr<TcpFabric> open_tcp(const TcpOptions& options,
                                    const std::shared_ptr<TcpListener>& listener, TcpRun run);

}  // namespace fedcomm
