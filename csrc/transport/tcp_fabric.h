// The thread that moves the bytes of all groups of this rank. Groups of one process share the
// streams to a peer, and their progress threads compute; a thread of its own keeps the streams busy
// meanwhile, and all state of links belongs to it alone, without locks. Progress threads hand it
// commands through a mailbox and find completions in their inbox.
#pragma once

#include <sys/epoll.h>

#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "transport/tcp_handshake.h"
#include "transport/tcp_link.h"
#include "transport/tcp_uplink.h"

namespace fedcomm::tcp {

class FabricThread final : public TcpFabric, public std::enable_shared_from_this<FabricThread> {
 public:
  FabricThread(const TcpOptions& options, Fd listener, TcpRun run,
               std::vector<std::vector<Address>> addresses);
  ~FabricThread() override;

  int rank() const override { return run_.rank; }
  int size() const override { return static_cast<int>(run_.addresses.size()); }
  std::unique_ptr<Transport> open(GroupId id, std::vector<int> ranks) override;
  LinkStats link_stats(int rank) override;
  void inject(const TcpFault& fault) override;
  void close() override;

  /// Runs `command` in the thread, before it looks at the sockets again. Returns false, and does
  /// not, once the thread has ended.
  bool command(std::function<void()> command);
  Link& link(int rank) { return *links_[static_cast<std::size_t>(rank)]; }
  Matcher& matcher() { return matcher_; }
  std::shared_ptr<LinkStatus> status(int rank) const;
  void close_channel(GroupId id);

 private:
  enum class Source : std::uint32_t { wake = 1, listener = 2, handshake = 3, stream = 4 };

  void run();
  void take_commands();
  void handle(const epoll_event& event);
  void accept_all();
  void dial_due();
  void advance(std::uint32_t id);
  void welcome(Handshake& handshake);
  void conclude(Handshake& handshake);
  void add_stream(Link& link, Handshake& handshake, int stream);
  void drop_silent();
  bool is_settled() const;
  void say_goodbyes();
  bool has_left();
  int timeout_ms(bool more) const;
  std::uint32_t watch_handshake(Handshake handshake);
  Hello own_hello(int to, int stream, int n_streams) const;
  bool is_peer(std::uint32_t rank) const;

  TcpOptions options_;
  TcpRun run_;
  std::uint64_t incarnation_;
  Fd listener_, epoll_, wake_;
  Matcher matcher_;
  std::vector<std::unique_ptr<Link>> links_;  // by rank; null for this one
  std::vector<Link*> peers_;                  // the same, without the null
  Uplink uplink_;
  std::map<std::uint32_t, Handshake> handshakes_;
  std::uint32_t next_handshake_ = 1;
  Clock::time_point accept_again_{};

  std::mutex mutex_;  // guards the next block
  std::vector<std::function<void()>> commands_;
  bool ended_ = false;

  std::optional<Clock::time_point> leave_by_;  // set when closing
  bool goodbye_said_ = false;
  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace fedcomm::tcp
