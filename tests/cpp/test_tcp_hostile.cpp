// The TCP transport where the peer does not behave: strangers, hostile peers, other versions, and
// processes that were started again.
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>

#include "check.h"
#include "collective/group.h"
#include "fabrics.h"
#include "transport/tcp_socket.h"
#include "transport/tcp_wire.h"

namespace fedcomm {
namespace {

using std::chrono::milliseconds;

/// A peer of our own making: a plain socket that can say anything.
struct Raw {
  tcp::Fd fd;

  explicit Raw(const std::string& address) {
    const tcp::Address to = tcp::Address::parse(address);
    fd = tcp::Fd(::socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval limit{10, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    CHECK_EQUAL(::connect(fd.get(), to.raw(), to.length()), 0);
  }
  void say(std::span<const std::byte> bytes) {
    CHECK_EQUAL(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(bytes.size()));
  }
  /// Bytes until the other side hangs up, or as many as asked for.
  std::vector<std::byte> hear(std::size_t n_bytes) {
    std::vector<std::byte> bytes(n_bytes);
    std::size_t n_heard = 0;
    while (n_heard < n_bytes) {
      const ssize_t n = ::recv(fd.get(), bytes.data() + n_heard, n_bytes - n_heard, 0);
      if (n < 0) CHECK(errno == ECONNRESET);
      if (n <= 0) break;
      n_heard += static_cast<std::size_t>(n);
    }
    bytes.resize(n_heard);
    return bytes;
  }
};

std::vector<std::byte> random_bytes(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::byte> bytes(n);
  for (auto& each : bytes)
    each = static_cast<std::byte>(generator());
  return bytes;
}

/// Rank 0 of two as the library, rank 1 as a raw socket.
struct Victim {
  std::shared_ptr<TcpListener> listener = TcpListener::open(testing::on_loopback(1));
  std::string address = listener->addresses().front();
  std::shared_ptr<TcpFabric> fabric;
  tcp::Hello hello;

  Victim() {
    TcpRun run;
    run.session = 99;
    run.token[0] = std::byte{1};
    run.addresses = {{address}, {address}};
    fabric = open_tcp(testing::on_loopback(1), listener, run);
    hello.n_streams = 1;
    hello.from = 1;
    hello.session = 99;
    hello.token = run.token;
    hello.incarnation = 5;
  }
  Raw connect() {
    Raw raw(address);
    raw.say(tcp::write_hello(hello));
    const auto answer = raw.hear(tcp::kHelloBytes);
    CHECK_EQUAL(answer.size(), tcp::kHelloBytes);
    const tcp::Hello theirs = tcp::parse_hello(std::span(answer).first<tcp::kHelloBytes>());
    CHECK_EQUAL(static_cast<int>(theirs.status), static_cast<int>(tcp::HelloStatus::welcome));
    CHECK_EQUAL(theirs.from, 0u);
    return raw;
  }
};

std::array<std::byte, tcp::kRecordBytes> record_of(const tcp::Record& record) {
  std::array<std::byte, tcp::kRecordBytes> bytes;
  tcp::write_record(record, bytes);
  return bytes;
}

tcp::Record piece(std::uint64_t number, std::uint32_t n_bytes, std::uint32_t frame_bytes) {
  tcp::Record record;
  record.number = record.frame = number;
  record.n_bytes = n_bytes;
  record.frame_bytes = frame_bytes;
  record.group = 1;
  record.tag = {1, static_cast<std::uint32_t>(number)};
  return record;
}

}  // namespace

TEST(tcp_strangers_are_sent_away) {
  Victim victim;
  std::vector<std::pair<const char*, std::vector<std::byte>>> words;
  words.emplace_back("garbage", random_bytes(tcp::kHelloBytes, 3));
  const auto with = [&](const char* what, auto change) {
    tcp::Hello hello = victim.hello;
    change(hello);
    const auto bytes = tcp::write_hello(hello);
    words.emplace_back(what, std::vector<std::byte>(bytes.begin(), bytes.end()));
  };
  with("token", [](tcp::Hello& h) { h.token[15] = std::byte{2}; });
  with("session", [](tcp::Hello& h) { h.session = 98; });
  with("rank", [](tcp::Hello& h) { h.from = 7; });
  with("huge rank", [](tcp::Hello& h) { h.from = 0xffffffff; });
  with("own rank", [](tcp::Hello& h) { h.from = 0; });
  with("other destination", [](tcp::Hello& h) { h.to = 1; });
  with("number of streams", [](tcp::Hello& h) { h.n_streams = 60000; });
  with("status", [](tcp::Hello& h) { h.status = tcp::HelloStatus::welcome; });
  for (const auto& [what, bytes] : words) {
    Raw raw(victim.address);
    raw.say(bytes);
    CHECK_EQUAL(raw.hear(1).size(), 0u);
  }
  CHECK_EQUAL(victim.fabric->link_stats(1).streams, 0);
  // More of those that say nothing, or half a hello, than the library has patience for.
  std::vector<Raw> silent;
  for (int i = 0; i < 400; ++i) {
    silent.emplace_back(victim.address);
    if (i % 2) silent.back().say(random_bytes(20, 1));
  }
  const Raw good = victim.connect();
  CHECK_EQUAL(victim.fabric->link_stats(1).streams, 1);
}

TEST(tcp_a_hello_of_another_version_is_answered_with_ours) {
  Victim victim;
  auto bytes = tcp::write_hello(victim.hello);
  bytes[4] = std::byte{9};
  Raw raw(victim.address);
  raw.say(bytes);
  const auto answer = raw.hear(tcp::kHelloBytes + 1);
  CHECK_EQUAL(answer.size(), tcp::kHelloBytes);
  CHECK_EQUAL(static_cast<int>(answer[4]), static_cast<int>(tcp::kVersion));
  // Nothing that a stranger should not know.
  const tcp::Hello hello = tcp::parse_hello(std::span(answer).first<tcp::kHelloBytes>());
  CHECK(!tcp::same(hello.token, victim.hello.token));
}

TEST(tcp_a_peer_of_another_version_is_an_error_at_once) {
  // A listener of our own, for a fabric that dials it.
  const auto fake = TcpListener::open(testing::on_loopback(1));
  const tcp::Fd server = tcp::listen_on(testing::on_loopback(1));
  const std::string address = tcp::Address::of_socket(server.get()).text();
  std::thread answerer([&] {
    const timeval limit{10, 0};
    ::setsockopt(server.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    for (;;) {
      const tcp::Fd fd(::accept(server.get(), nullptr, nullptr));
      if (!fd && errno == EAGAIN) {
        std::this_thread::sleep_for(milliseconds(5));
        continue;
      }
      auto bytes = tcp::write_hello({});
      bytes[4] = std::byte{77};
      ::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      char text[64];
      while (::recv(fd.get(), text, sizeof text, 0) > 0) {
      }
      return;
    }
  });
  TcpRun run;
  run.rank = 1;
  run.addresses = {{address}, fake->addresses()};
  const auto fabric = open_tcp(testing::on_loopback(1), fake, run);
  try {
    Group::open(fabric, {});
    CHECK(false);
  } catch (const Error& error) {
    CHECK_EQUAL(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::config));
    CHECK(std::string(error.what()).find("speaks version 77") != std::string::npos);
  }
  answerer.join();
}

TEST(tcp_hostile_records_cost_a_stream_and_nothing_else) {
  Victim victim;
  auto transport = victim.fabric->open({1, 0}, {0, 1});
  std::vector<std::pair<const char*, std::vector<std::byte>>> words;
  words.emplace_back("garbage", random_bytes(500, 1));
  // Right checksums and impossible contents, written by hand: write_record does not mind.
  const auto with = [&](const char* what, const tcp::Record& record) {
    const auto bytes = record_of(record);
    words.emplace_back(what, std::vector<std::byte>(bytes.begin(), bytes.end()));
  };
  with("a frame of 4 GiB", piece(1, 10, 0xffffffff));
  with("more than the frame", piece(1, 11, 10));
  tcp::Record beyond = piece(1, 10, 20);
  beyond.offset = 0xfffffff8;
  with("beyond the frame", beyond);
  with("nothing of something", piece(1, 0, 10));
  with("far ahead", piece(std::uint64_t{1} << 60, 10, 10));
  tcp::Record later = piece(1, 10, 10);
  later.frame = 2;
  with("a frame that begins later", later);
  tcp::Record ack;
  ack.kind = tcp::RecordKind::ack;
  ack.number = 1000;
  with("acknowledges what was not sent", ack);
  for (const auto& [what, bytes] : words) {
    Raw raw = victim.connect();
    raw.say(bytes);
    raw.hear(1 << 20);  // until it hangs up
    CHECK_EQUAL(victim.fabric->link_stats(1).streams, 0);
  }
  // Pieces of one frame that contradict each other.
  {
    Raw raw = victim.connect();
    tcp::Record first = piece(1, 10, 20), second = piece(2, 10, 30);
    second.frame = 1;
    raw.say(record_of(first));
    raw.say(random_bytes(10, 1));
    raw.say(record_of(second));
    raw.hear(1 << 20);
  }
  // And still: a good frame, over a good stream, in two pieces, the second one twice.
  Raw raw = victim.connect();
  auto buffer = std::make_shared<Buffer>(std::size_t{64});
  const RequestId id = transport->receive(1, {1, 2}, buffer);
  const auto bytes = random_bytes(30, 9);
  tcp::Record first = piece(2, 10, 30), second = piece(3, 20, 30);
  second.frame = 2;
  second.tag = first.tag;
  second.offset = 10;
  for (int repeat = 0; repeat < 2; ++repeat) {
    raw.say(record_of(second));
    raw.say(std::span(bytes).subspan(10));
  }
  raw.say(record_of(first));
  raw.say(std::span(bytes).first(10));
  std::vector<Completion> done;
  for (int look = 0; look < 500 && done.empty(); ++look) {
    transport->wait(milliseconds(10));
    transport->poll(done);
  }
  CHECK_EQUAL(done.size(), 1u);
  CHECK_EQUAL(done[0].id, id);
  CHECK(done[0].error.empty());
  CHECK(std::memcmp(buffer->data(), bytes.data(), 30) == 0);
}

TEST(tcp_a_piece_sent_twice_arrives_whichever_copy_is_cut_short) {
  for (const bool first_copy_ends : {true, false}) {
    Victim victim;
    victim.hello.n_streams = 2;
    auto transport = victim.fabric->open({1, 0}, {0, 1});
    auto buffer = std::make_shared<Buffer>(std::size_t{2000});
    transport->receive(1, {1, 1}, buffer);
    Raw first = victim.connect();
    victim.hello.stream = 1;
    Raw second = victim.connect();
    const auto bytes = random_bytes(2000, 4);
    for (Raw* each : {&first, &second}) {
      each->say(record_of(piece(1, 2000, 2000)));
      each->say(std::span(bytes).first(1000));
      std::this_thread::sleep_for(milliseconds(20));  // so that both are being received
    }
    (first_copy_ends ? second : first).fd.reset();
    std::this_thread::sleep_for(milliseconds(20));
    (first_copy_ends ? first : second).say(std::span(bytes).subspan(1000));
    std::vector<Completion> done;
    for (int look = 0; look < 200 && done.empty(); ++look) {
      transport->wait(milliseconds(10));
      transport->poll(done);
    }
    CHECK_EQUAL(done.size(), 1u);
    CHECK(std::memcmp(buffer->data(), bytes.data(), bytes.size()) == 0);
  }
}

TEST(tcp_a_peer_that_floods_is_given_up) {
  TcpOptions options = testing::on_loopback(1);
  options.early_bytes = 100'000;
  auto fabrics = testing::tcp_fabrics(2, options);
  auto from = fabrics[0]->open({1, 0}, {0, 1});
  auto to = fabrics[1]->open({1, 0}, {0, 1});
  const RequestId waiting = to->receive(0, {5, 5}, std::make_shared<Buffer>(std::size_t{10}));
  for (std::uint32_t slot = 0; slot < 5; ++slot)
    from->send(1, {1, slot}, std::make_shared<Buffer>(std::size_t{50'000}), 50'000);
  std::vector<Completion> done;
  for (int look = 0; look < 500 && done.empty(); ++look) {
    to->wait(milliseconds(10));
    to->poll(done);
  }
  CHECK_EQUAL(done.size(), 1u);
  CHECK_EQUAL(done[0].id, waiting);
  CHECK(done[0].error.find("nobody here has asked for") != std::string::npos);
}

TEST(tcp_a_peer_that_was_started_again_is_not_taken_for_the_old_one) {
  Victim victim;
  auto transport = victim.fabric->open({1, 0}, {0, 1});
  const Raw first = victim.connect();
  transport->receive(1, {1, 1}, std::make_shared<Buffer>(std::size_t{10}));
  Raw again(victim.address);
  tcp::Hello hello = victim.hello;
  hello.incarnation = 6;
  again.say(tcp::write_hello(hello));
  const auto answer = again.hear(tcp::kHelloBytes);
  CHECK_EQUAL(answer.size(), tcp::kHelloBytes);
  CHECK(tcp::parse_hello(std::span(answer).first<tcp::kHelloBytes>()).status ==
        tcp::HelloStatus::restarted);
  std::vector<Completion> done;
  for (int look = 0; look < 500 && done.empty(); ++look) {
    transport->wait(milliseconds(10));
    transport->poll(done);
  }
  CHECK_EQUAL(done.size(), 1u);
  CHECK(done[0].kind == ErrorKind::peer_lost);
  CHECK(done[0].error.find("started again") != std::string::npos);
}

TEST(tcp_records_and_hellos_with_a_wrong_bit_are_refused) {
  auto record = record_of(piece(7, 100, 200));
  for (std::size_t bit = 0; bit < 8 * record.size(); ++bit) {
    record[bit / 8] ^= std::byte{1} << (bit % 8);
    CHECK_THROWS(ErrorKind::corrupt_frame, tcp::parse_record(record));
    record[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  const tcp::Record same = tcp::parse_record(record);
  CHECK_EQUAL(same.number, 7u);
  CHECK_EQUAL(same.frame_bytes, 200u);
  auto hello = tcp::write_hello({});
  for (std::size_t bit = 0; bit < 8 * hello.size(); ++bit) {
    hello[bit / 8] ^= std::byte{1} << (bit % 8);
    try {
      tcp::parse_hello(hello);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.kind() == (bit / 8 == 4 ? ErrorKind::config : ErrorKind::corrupt_frame));
    }
    hello[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(tcp_listens_where_it_is_told_to) {
  TcpOptions options = testing::on_loopback(1);
  const auto first = TcpListener::open(options);
  const tcp::Address address = tcp::Address::parse(first->addresses().front());
  options.port = address.port();
  CHECK_THROWS(ErrorKind::config, TcpListener::open(options));  // in use
  options.n_ports = 50;
  CHECK(TcpListener::open(options)->addresses().front() != first->addresses().front());
  options.interface = "no-such-interface";
  CHECK_THROWS(ErrorKind::config, TcpListener::open(options));
  CHECK_EQUAL(TcpListener::open({})->addresses().empty(), false);
  CHECK_EQUAL(tcp::Address::parse("[fd00::1]:80").text(), "[fd00::1]:80");
  CHECK_EQUAL(tcp::Address::parse("10.0.0.7:5001").text(), "10.0.0.7:5001");
  for (const char* bad : {"", "host", ":1", "1.2.3.4", "1.2.3:x", "name.example:80", "[::1"}) {
    CHECK_THROWS(ErrorKind::invalid_argument, tcp::Address::parse(bad));
  }
}

}  // namespace fedcomm
