// Groups that lose a member: the reason of another one that failed counts more than the loss that
// came of it, in whichever order they are heard of.
#include <atomic>
#include <thread>

#include "collective/group.h"
#include "fabrics.h"
#include "threads.h"

namespace fedcomm {
namespace {

/// How a member learns that another is gone.
enum class Way : std::uint8_t {
  goodbye,  // it has said so
  severed,  // a frame of it will never come, says the transport
};

constexpr int kLeaver = 1;

/// What a test sees and decides of the transport of one member.
struct Script {
  Way way = Way::goodbye;
  std::function<void()> after_loss = [] {};  // at the poll after the one that told of the loss
  std::atomic<bool> started{false};          // an operation after the handshake's
  std::atomic<bool> sever{false};
  std::chrono::steady_clock::time_point told;  // of the loss
};

/// The memory transport, acting by a script.
class ScriptedTransport final : public Transport {
 public:
  ScriptedTransport(std::unique_ptr<Transport> inner, std::shared_ptr<Script> script)
      : inner_(std::move(inner)), script_(std::move(script)) {}

  std::string_view name() const override { return inner_->name(); }
  RequestId send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) override {
    return inner_->send(member, tag, std::move(frame), n_bytes);
  }
  RequestId receive(int member, Tag tag, BufferPtr buffer) override {
    const RequestId id = inner_->receive(member, tag, std::move(buffer));
    if (member == kLeaver && tag.operation == 0) goodbye_ = id;
    if (member == kLeaver && tag.operation > 1) {
      data_ = id;
      script_->started = true;
    }
    return id;
  }
  void cancel(RequestId id) override { inner_->cancel(id); }
  void poll(std::vector<Completion>& done) override {
    if (std::exchange(has_told_, false)) script_->after_loss();
    inner_->poll(done);
    if (script_->way == Way::severed && script_->sever.exchange(false)) {
      inner_->cancel(data_);
      done.push_back({data_, 0, "has left", ErrorKind::peer_lost});
    }
    const RequestId by = script_->way == Way::goodbye ? goodbye_ : data_;
    for (const Completion& each : done) {
      if (each.id != by || !script_->started) continue;
      has_told_ = true;
      script_->told = std::chrono::steady_clock::now();
    }
  }
  void wait(std::chrono::microseconds at_most) override { inner_->wait(at_most); }
  void wake() override { inner_->wake(); }
  bool wakes_by_itself() const override { return inner_->wakes_by_itself(); }

 private:
  std::unique_ptr<Transport> inner_;
  std::shared_ptr<Script> script_;
  RequestId goodbye_ = 0, data_ = 0;
  bool has_told_ = false;
};

class ScriptedFabric final : public Fabric {
 public:
  ScriptedFabric(std::shared_ptr<Fabric> inner, std::shared_ptr<Script> script)
      : inner_(std::move(inner)), script_(std::move(script)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::unique_ptr<Transport> open(GroupId id, std::vector<int> ranks) override {
    return std::make_unique<ScriptedTransport>(inner_->open(id, std::move(ranks)), script_);
  }

 private:
  std::shared_ptr<Fabric> inner_;
  std::shared_ptr<Script> script_;
};

/// Three members, of which the last acts by a script.
struct Three {
  explicit Three(Way way) {
    script->way = way;
    groups = Group::open_all(
        {hub->fabric(0), hub->fabric(1), std::make_shared<ScriptedFabric>(hub->fabric(2), script)},
        {});
  }

  /// Member 2 is in an operation when it hears that member 1 is gone.
  Error lose_the_leaver() {
    std::vector<float> x(8);
    const TensorView view{x.data(), x.size(), DType::f32};
    const auto work = groups[2]->all_reduce(view, view, {});
    while (!script->started)
      std::this_thread::yield();
    if (script->way == Way::goodbye) groups[kLeaver]->close();
    script->sever = true;
    try {
      work->wait();
    } catch (const Error& error) {
      return error;
    }
    throw testing::Failure("an operation ended without one of its members");
  }

  std::shared_ptr<MemoryHub> hub = std::make_shared<MemoryHub>(3);
  std::shared_ptr<Script> script = std::make_shared<Script>();
  std::vector<std::shared_ptr<Group>> groups;
};

}  // namespace

TEST(the_reason_of_a_failure_counts_more_than_a_loss_heard_of_before) {
  for (const Way way : {Way::goodbye, Way::severed}) {
    Three members(way);
    members.script->after_loss = [&] { members.hub->release(); };
    members.hub->inject(0, kLeaver, Fault::drop, 0);
    members.hub->inject(0, 2, Fault::hold, 0);
    members.groups[0]->abort("out of disk");
    members.groups[0]->close();  // all that it had to say has been sent
    const Error error = members.lose_the_leaver();
    CHECK(std::string(error.what()).find("out of disk") != std::string::npos);
    CHECK_EQUAL(error.detail(), 0);
  }
}

TEST(a_loss_without_another_reason_is_told_after_a_grace) {
  for (const Way way : {Way::goodbye, Way::severed}) {
    Three members(way);
    const Error error = members.lose_the_leaver();
    CHECK_EQUAL(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::peer_lost));
    CHECK_EQUAL(error.detail(), kLeaver);
    const std::string what = error.what();
    CHECK(what.find(way == Way::goodbye ? "rank 1: left the group" : "rank 1: has left") !=
          std::string::npos);
    CHECK(std::chrono::steady_clock::now() - members.script->told >= kReasonGrace);
  }
}

TEST(whoever_hears_of_a_loss_from_another_member_knows_who_is_lost) {
  Three members(Way::goodbye);
  members.hub->inject(kLeaver, 0, Fault::drop, 0);  // member 0 hears of it from member 2
  std::vector<float> x(8);
  const TensorView view{x.data(), x.size(), DType::f32};
  const auto work = members.groups[0]->all_reduce(view, view, {});
  members.lose_the_leaver();
  try {
    work->wait();
    CHECK(false);
  } catch (const Error& error) {
    CHECK_EQUAL(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::peer_lost));
    CHECK_EQUAL(error.detail(), kLeaver);
  }
}

}  // namespace fedcomm
