// fedcomm-delay-line: the links of bench/wanlab for kernels without netem. It makes a TUN device in
// each of the network namespaces that it is given, and carries packets between them as `network.h`
// says. Commands (control.h) come on standard input; when that ends, so does the process, and its
// devices with it. One thread: packets wait in memory, and between two events it sleeps.
//
//   fedcomm-delay-line SEED DEVICE NAMESPACE_FD...
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "control.h"
#include "network.h"
#include "tun.h"

namespace {

using namespace fedcomm::wanlab;

constexpr int kPacketsAtOnce = 64;  // of one cloud, before the others get their turn
// After something was done, the process does not wake up for a while, so that what arrives
// meanwhile costs one wake-up; the first packet on an idle link is seen at once.
constexpr timespec kRest = {.tv_sec = 0, .tv_nsec = 50'000};
constexpr std::size_t kBuffer = 128u << 10;  // more than the largest packet

Time clock_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::invalid_argument("'" + std::string(text) + "' is not a number");
  return value;
}

/// Delays are as exact as this process wakes up on time, so it asks to go first. Without the right
/// to do so it works as well, on an idle machine.
void ask_for_priority() {
  ::prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
  const sched_param lowest_realtime = {.sched_priority = 1};
  if (::sched_setscheduler(0, SCHED_FIFO, &lowest_realtime) != 0)
    ::setpriority(PRIO_PROCESS, 0, -20);
}

class Line {
 public:
  Line(std::uint64_t seed, std::vector<Tun> tuns)
      : tuns_(std::move(tuns)), network_(tuns_.size(), seed), buffer_(kBuffer) {
    polled_.push_back({.fd = STDIN_FILENO, .events = POLLIN, .revents = 0});
    for (const Tun& tun : tuns_)
      polled_.push_back({.fd = tun.fd(), .events = POLLIN, .revents = 0});
  }

  /// Until standard input ends.
  void run() {
    while (wait()) {
      const std::uint64_t n_before = n_packets_;
      for (std::size_t cloud = 0; cloud < tuns_.size(); ++cloud) {
        if (polled_[cloud + 1].revents != 0) take_from(cloud);
        deliver();
      }
      if (n_packets_ != n_before) ::nanosleep(&kRest, nullptr);
    }
  }

 private:
  /// False: nobody will send commands any more.
  bool wait() {
    timespec timeout = {};
    const std::optional<Time> next = network_.next_event();
    if (next) {
      const Time left = std::max(Time{0}, *next - clock_now());
      timeout = {.tv_sec = left / 1'000'000'000, .tv_nsec = left % 1'000'000'000};
    }
    for (pollfd& each : polled_)
      each.revents = 0;
    if (::ppoll(polled_.data(), polled_.size(), next ? &timeout : nullptr, nullptr) <= 0)
      return true;
    return polled_[0].revents == 0 || obey();
  }

  void take_from(std::size_t cloud) {
    for (int i = 0; i < kPacketsAtOnce; ++i) {
      const Bytes packet = tuns_[cloud].read(buffer_);
      if (packet.empty()) return;
      network_.send(cloud, packet, clock_now());
      ++n_packets_;
    }
  }

  void deliver() {
    const Time now = clock_now();
    while (const std::optional<Delivery> delivery = network_.next(now)) {
      const Time late = clock_now() - delivery->due;
      ++punctuality_.n_deliveries;
      ++n_packets_;
      punctuality_.total_late += late;
      punctuality_.max_late = std::max(punctuality_.max_late, late);
      if (!tuns_[delivery->cloud].write(delivery->packet)) ++punctuality_.n_refused;
    }
  }

  bool obey() {
    char text[4096];
    const ssize_t n = ::read(STDIN_FILENO, text, sizeof text);
    if (n <= 0) return false;
    commands_.append(text, static_cast<std::size_t>(n));
    for (;;) {
      const std::size_t end = commands_.find('\n');
      if (end == std::string::npos) return true;
      std::puts(answer(commands_.substr(0, end), network_, punctuality_).c_str());
      std::fflush(stdout);
      commands_.erase(0, end + 1);
    }
  }

  std::vector<Tun> tuns_;
  Network network_;
  Punctuality punctuality_;
  std::vector<std::byte> buffer_;
  std::vector<pollfd> polled_;
  std::string commands_;
  std::uint64_t n_packets_ = 0;  // read or written
};

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string_view> arguments(argv + 1, argv + argc);
    if (arguments.size() < 3)
      throw std::invalid_argument("usage: fedcomm-delay-line SEED DEVICE NAMESPACE_FD...");
    std::vector<Tun> tuns;
    for (const std::string_view fd : std::span(arguments).subspan(2))
      tuns.emplace_back(static_cast<int>(number(fd)), std::string(arguments[1]));
    ask_for_priority();
    Line(number(arguments[0]), std::move(tuns)).run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fedcomm-delay-line: %s\n", error.what());
    return 1;
  }
}
