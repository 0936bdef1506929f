#include "transport/tcp_fabric.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <future>
#include <random>

#include "transport/tcp_transport.h"

namespace fedcomm::tcp {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kLeaveTime{2};
constexpr milliseconds kAcceptPause{100};  // where the process has no file descriptor left
constexpr std::size_t kMostHandshakes = 256;
constexpr int kMaxEvents = 256;

/// What an event belongs to, without a pointer that could be stale.
std::uint64_t key_of(std::uint32_t source, std::uint32_t id, int stream = 0) {
  return (std::uint64_t{source} << 56) | (std::uint64_t{id} << 16) |
         static_cast<std::uint64_t>(stream);
}

void watch(const Fd& epoll, int fd, std::uint32_t events, std::uint64_t key) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    fail(ErrorKind::internal, "[tcp] epoll_ctl: " + error_text(errno));
  }
}

std::uint64_t random_number() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

}  // namespace

FabricThread::FabricThread(const TcpOptions& options, Fd listener, TcpRun run,
                           std::vector<std::vector<Address>> addresses)
    : options_(options),
      run_(std::move(run)),
      incarnation_(random_number()),
      listener_(std::move(listener)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (!epoll_ || !wake_) fail(ErrorKind::config, "[tcp] cannot open epoll: " + error_text(errno));
  for (int peer = 0; peer < size(); ++peer) {
    const Role role = peer < run_.rank ? Role::dials : Role::accepts;
    links_.push_back(peer == run_.rank
                         ? nullptr
                         : std::make_unique<Link>(
                               peer, role, std::move(addresses[static_cast<std::size_t>(peer)]),
                               options_, matcher_));
  }
  for (const auto& link : links_) {
    if (link) peers_.push_back(link.get());
  }
  watch(epoll_, wake_.get(), EPOLLIN, key_of(static_cast<std::uint32_t>(Source::wake), 0));
  watch(epoll_, listener_.get(), EPOLLIN | EPOLLET,
        key_of(static_cast<std::uint32_t>(Source::listener), 0));
  thread_ = std::thread([this] { this->run(); });
}

FabricThread::~FabricThread() {
  close();
}

std::unique_ptr<Transport> FabricThread::open(GroupId id, std::vector<int> ranks) {
  return std::make_unique<TcpTransport>(shared_from_this(), id, std::move(ranks));
}

bool FabricThread::command(std::function<void()> command) {
  const std::lock_guard lock(mutex_);
  if (ended_) return false;
  commands_.push_back(std::move(command));
  if (commands_.size() == 1) {
    const std::uint64_t one = 1;
    // It cannot fail but for a counter that is full, and then the thread wakes anyhow.
    static_cast<void>(!::write(wake_.get(), &one, sizeof one));
  }
  return true;
}

std::shared_ptr<LinkStatus> FabricThread::status(int rank) const {
  const auto& link = links_[static_cast<std::size_t>(rank)];
  return link ? link->status() : nullptr;
}

LinkStats FabricThread::link_stats(int rank) {
  if (rank < 0 || rank >= size() || rank == run_.rank) {
    fail(ErrorKind::invalid_argument, "there is no link to rank " + std::to_string(rank));
  }
  auto promise = std::make_shared<std::promise<LinkStats>>();
  auto stats = promise->get_future();
  if (command([this, rank, promise] { promise->set_value(link(rank).stats()); })) {
    return stats.get();
  }
  return link(rank).stats();
}

void FabricThread::inject(const TcpFault& fault) {
  command([this, fault] { link(fault.rank).inject(fault); });
}

void FabricThread::close() {
  command([this] {
    if (!leave_by_) leave_by_ = Clock::now() + kLeaveTime;
  });
  const std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void FabricThread::close_channel(GroupId id) {
  command([this, id] {
    for (const IncomingPtr& frame : matcher_.close(id))
      link(frame->key.rank).receiver().drop(frame);
    for (const auto& link : links_) {
      if (link) link->sender().forget(id);
    }
  });
}

// --- the thread ----------------------------------------------------------------------------------

void FabricThread::run() {
  epoll_event events[kMaxEvents];
  bool more = true;
  while (!has_left()) {
    const int n = ::epoll_wait(epoll_.get(), events, kMaxEvents, timeout_ms(more));
    for (int i = 0; i < n; ++i)
      handle(events[i]);
    take_commands();
    drop_silent();
    dial_due();
    if (leave_by_) say_goodbyes();
    more = false;
    for (const auto& link : links_) {
      if (link) more = link->pump() || more;
    }
    uplink_.pace(peers_, Clock::now());
  }
  for (const auto& link : links_) {
    if (link) link->fail(ErrorKind::peer_lost, "the fabric of this rank is closed");
  }
  handshakes_.clear();
  listener_.reset();
}

void FabricThread::take_commands() {
  std::vector<std::function<void()>> commands;
  {
    const std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  for (const auto& command : commands)
    command();
}

bool FabricThread::is_settled() const {
  const auto now = Clock::now();
  return now >= *leave_by_ || std::all_of(links_.begin(), links_.end(), [&](const auto& link) {
           return !link || link->is_settled(now);
         });
}

void FabricThread::say_goodbyes() {
  if (goodbye_said_ || !is_settled()) return;
  goodbye_said_ = true;
  for (const auto& link : links_) {
    if (link) link->say_goodbye();
  }
}

/// Whether everything is over; from then on no command is taken.
bool FabricThread::has_left() {
  if (!goodbye_said_ || !is_settled()) return false;
  const std::lock_guard lock(mutex_);
  ended_ = commands_.empty();
  return ended_;
}

int FabricThread::timeout_ms(bool more) const {
  if (more) return 0;
  auto deadline = uplink_.next_deadline();
  for (const Link* link : peers_)
    deadline = std::min(deadline, link->next_deadline());
  for (const auto& [id, handshake] : handshakes_)
    deadline = std::min(deadline, handshake.deadline());
  if (accept_again_ != Clock::time_point{}) deadline = std::min(deadline, accept_again_);
  if (leave_by_) deadline = std::min(deadline, Clock::now() + milliseconds(20));
  if (deadline == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60000));
}

void FabricThread::handle(const epoll_event& event) {
  const auto source = static_cast<Source>(event.data.u64 >> 56);
  const auto id = static_cast<std::uint32_t>(event.data.u64 >> 16);
  switch (source) {
    case Source::wake: {
      std::uint64_t count = 0;
      static_cast<void>(!::read(wake_.get(), &count, sizeof count));
      break;
    }
    case Source::listener: accept_all(); break;
    case Source::handshake: advance(id); break;
    case Source::stream: {
      Stream* stream = link(static_cast<int>(id)).stream(static_cast<int>(event.data.u64 & 0xffff));
      if (stream == nullptr) break;
      if (event.events & EPOLLIN) stream->note_readable();
      if (event.events & EPOLLOUT) stream->note_writable();
      if (event.events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) stream->note_hangup();
      break;
    }
  }
}

// --- connections -------------------------------------------------------------------------------

Hello FabricThread::own_hello(int to, int stream, int n_streams) const {
  Hello hello;
  hello.stream = static_cast<std::uint16_t>(stream);
  hello.n_streams = static_cast<std::uint16_t>(n_streams);
  hello.from = static_cast<std::uint32_t>(run_.rank);
  hello.to = static_cast<std::uint32_t>(to);
  hello.session = run_.session;
  hello.token = run_.token;
  hello.incarnation = incarnation_;
  return hello;
}

std::uint32_t FabricThread::watch_handshake(Handshake handshake) {
  const std::uint32_t id = next_handshake_++;
  watch(epoll_, handshake.fd(), EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP,
        key_of(static_cast<std::uint32_t>(Source::handshake), id));
  handshakes_.emplace(id, std::move(handshake));
  return id;
}

void FabricThread::dial_due() {
  const auto now = Clock::now();
  for (const auto& link : links_) {
    if (!link) continue;
    for (const int stream : link->due_dials(now)) {
      const Address& address = link->next_address();
      try {
        Fd fd = dial(address, options_);
        if (!fd) fail(ErrorKind::peer_lost, error_text(errno));
        watch_handshake(
            Handshake(std::move(fd), own_hello(link->rank(), stream, link->n_wanted())));
      } catch (const Error& error) {  // the interface is gone, say
        link->dial_failed(stream, error.what());
      }
    }
  }
}

void FabricThread::accept_all() {
  accept_again_ = {};
  for (;;) {
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        accept_again_ = Clock::now() + kAcceptPause;
      }
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return;
    }
    const auto n_accepted = std::count_if(handshakes_.begin(), handshakes_.end(),
                                          [](auto& each) { return !each.second.dialled(); });
    if (static_cast<std::size_t>(n_accepted) >= kMostHandshakes) {
      const auto oldest = std::find_if(handshakes_.begin(), handshakes_.end(),
                                       [](auto& each) { return !each.second.dialled(); });
      handshakes_.erase(oldest);
    }
    advance(watch_handshake(Handshake(std::move(fd))));
  }
}

void FabricThread::advance(std::uint32_t id) {
  const auto found = handshakes_.find(id);
  if (found == handshakes_.end()) return;
  const Handshake::State state = found->second.advance();
  if (state == Handshake::State::connecting || state == Handshake::State::waiting) return;
  Handshake handshake = std::move(found->second);
  handshakes_.erase(found);
  if (state == Handshake::State::done) {
    if (handshake.dialled()) {
      conclude(handshake);
    } else {
      welcome(handshake);
    }
    return;
  }
  if (handshake.dialled()) {
    Link& to = link(static_cast<int>(handshake.own().to));
    if (handshake.error() == ErrorKind::config) return to.fail(ErrorKind::config, handshake.why());
    to.dial_failed(handshake.own().stream, handshake.why());
  } else if (handshake.error() == ErrorKind::config) {
    handshake.answer({});  // it sees our version, and nothing that a stranger should not know
  }
}

bool FabricThread::is_peer(std::uint32_t rank) const {
  return rank < links_.size() && links_[rank] != nullptr;
}

/// Somebody has connected and said who it is.
void FabricThread::welcome(Handshake& handshake) {
  const Hello& hello = handshake.hello();
  const bool known = same(hello.token, run_.token) && hello.session == run_.session &&
                     hello.to == static_cast<std::uint32_t>(run_.rank) && is_peer(hello.from) &&
                     hello.from > hello.to && hello.n_streams <= kMaxStreams &&
                     hello.status == HelloStatus::asking;
  if (!known) return;
  Link& from = link(static_cast<int>(hello.from));
  if (from.is_over()) return;
  Hello reply = own_hello(from.rank(), hello.stream, hello.n_streams);
  reply.status = HelloStatus::welcome;
  if (!from.recognise(hello.incarnation)) {
    reply.status = HelloStatus::restarted;
    handshake.answer(reply);
    return from.fail(ErrorKind::peer_lost, "it was started again, and knows nothing of this run");
  }
  if (handshake.answer(reply)) add_stream(from, handshake, hello.stream);
}

/// A connection that was dialled has been answered.
void FabricThread::conclude(Handshake& handshake) {
  const Hello& hello = handshake.hello();
  const Hello& own = handshake.own();
  Link& to = link(static_cast<int>(own.to));
  const bool known = same(hello.token, run_.token) && hello.session == run_.session &&
                     hello.from == own.to && hello.to == own.from;
  if (!known) {
    return to.dial_failed(own.stream, "something else answers there: another rank, or another run");
  }
  if (hello.status == HelloStatus::restarted) {
    return to.fail(ErrorKind::peer_lost, "it takes this rank for one that was started again");
  }
  if (!to.recognise(hello.incarnation)) {
    return to.fail(ErrorKind::peer_lost, "it was started again, and knows nothing of this run");
  }
  add_stream(to, handshake, own.stream);
}

void FabricThread::add_stream(Link& link, Handshake& handshake, int stream) {
  Fd fd = handshake.release();
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = key_of(static_cast<std::uint32_t>(Source::stream),
                          static_cast<std::uint32_t>(link.rank()), stream);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd.get(), &event) != 0) {
    return link.dial_failed(stream, error_text(errno));
  }
  link.adopt(std::move(fd), stream, handshake.hello().n_streams);
}

/// Handshakes that take too long, and a listener that had no room.
void FabricThread::drop_silent() {
  const auto now = Clock::now();
  for (auto it = handshakes_.begin(); it != handshakes_.end();) {
    if (now < it->second.deadline()) {
      ++it;
      continue;
    }
    if (it->second.dialled()) {
      link(static_cast<int>(it->second.own().to)).dial_failed(it->second.own().stream, "no answer");
    }
    it = handshakes_.erase(it);
  }
  if (accept_again_ != Clock::time_point{} && now >= accept_again_) accept_all();
}

}  // namespace fedcomm::tcp
