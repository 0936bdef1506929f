#include "control.h"

#include <sys/resource.h>

#include <sstream>
#include <stdexcept>

namespace fedcomm::wanlab {
namespace {

struct BadCommand : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Words {
 public:
  explicit Words(std::string_view text) : in_(std::string(text)) {}

  std::string word() {
    std::string word;
    if (!(in_ >> word)) throw BadCommand("an argument is missing");
    return word;
  }

  /// In [0, most].
  double number(double most) {
    const std::string text = word();
    std::size_t used = 0;
    double value = -1;
    try {
      value = std::stod(text, &used);
    } catch (const std::logic_error&) {
      used = 0;
    }
    if (used != text.size() || !(value >= 0 && value <= most))
      throw BadCommand("'" + text + "' is not a number from 0 to " + std::to_string(most));
    return value;
  }

  Time time() { return static_cast<Time>(number(1e13)); }

  std::size_t cloud(const Network& network) {
    return static_cast<std::size_t>(number(static_cast<double>(network.n_clouds() - 1)));
  }

  void end() {
    std::string more;
    if (in_ >> more) throw BadCommand("'" + more + "' is too much");
  }

 private:
  std::istringstream in_;
};

constexpr double kMaxRate = 1e13;

double cpu_seconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::string counters(const Network& network, const Punctuality& punctuality) {
  std::ostringstream out;
  const double n = static_cast<double>(punctuality.n_deliveries);
  out << R"({"cpu_s": )" << cpu_seconds() << R"(, "refused": )" << punctuality.n_refused
      << R"(, "mean_late_ms": )"
      << (n > 0 ? static_cast<double>(punctuality.total_late) * 1e-6 / n : 0)
      << R"(, "max_late_ms": )" << static_cast<double>(punctuality.max_late) * 1e-6
      << R"(, "pairs": [)";
  const char* separator = "";
  for (std::size_t from = 0; from < network.n_clouds(); ++from) {
    for (std::size_t to = 0; to < network.n_clouds(); ++to) {
      if (from == to) continue;
      const Counters& c = network.counters(from, to);
      out << separator << R"({"from": )" << from << R"(, "to": )" << to << R"(, "sent": )" << c.sent
          << R"(, "sent_bytes": )" << c.sent_bytes << R"(, "delivered": )" << c.delivered
          << R"(, "delivered_bytes": )" << c.delivered_bytes << R"(, "dropped": )" << c.dropped
          << R"(, "lost": )" << c.lost << "}";
      separator = ", ";
    }
  }
  out << "]}";
  return out.str();
}

std::string execute(std::string_view command, Network& network, const Punctuality& punctuality) {
  Words words(command);
  const std::string name = words.word();
  if (name == "counters") {
    words.end();
    return counters(network, punctuality);
  }
  if (name == "link") {
    const std::size_t from = words.cloud(network), to = words.cloud(network);
    LinkSettings settings;
    settings.bits_per_s = words.number(kMaxRate);
    settings.queue = words.time();
    settings.delay = words.time();
    settings.jitter = words.time();
    settings.loss = words.number(1);
    words.end();
    network.set_link(from, to, settings);
  } else if (name == "uplink" || name == "downlink") {
    const std::size_t cloud = words.cloud(network);
    const double rate = words.number(kMaxRate);
    const Time queue = words.time();
    words.end();
    if (name == "uplink") {
      network.set_uplink(cloud, rate, queue);
    } else {
      network.set_downlink(cloud, rate, queue);
    }
  } else if (name == "cut") {
    const std::size_t from = words.cloud(network), to = words.cloud(network);
    const bool is_cut = words.number(1) != 0;
    words.end();
    network.set_cut(from, to, is_cut);
  } else {
    throw BadCommand("there is no command '" + name + "'");
  }
  return "ok";
}

}  // namespace

std::string answer(std::string_view command, Network& network, const Punctuality& punctuality) {
  try {
    return execute(command, network, punctuality);
  } catch (const BadCommand& error) {
    return std::string("error: ") + error.what();
  }
}

}  // namespace fedcomm::wanlab
