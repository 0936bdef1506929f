// Plans of all members, executed on symbols instead of numbers: a value is the set of members whose
// contribution it holds. Lanes admit one step at a time, the tightest window there can be, so a
// plan that could deadlock does.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "collective/plan.h"

namespace fedcomm::testing {

constexpr std::size_t kSegment = 2 * kGrain;

struct Value {
  std::uint32_t members = 0;  // as bits
  bool finished = false;
};

struct Message {
  Value value;
  std::uint32_t phase, chunk, segment;
  std::uint16_t origin;
};

class Simulation {
 public:
  Simulation(std::vector<Plan> plans, std::size_t n_out) : plans_(std::move(plans)) {
    for (std::size_t member = 0; member < plans_.size(); ++member) {
      const Plan& plan = plans_[member];
      State state;
      state.done.assign(plan.steps.size(), false);
      state.admitted.assign(plan.steps.size(), false);
      state.payloads.resize(plan.n_payloads);
      state.uses.assign(plan.n_payloads, 0);
      state.payload_lane.assign(plan.n_payloads, kNone);
      state.scratch.resize(plan.n_scratch);
      state.scratch_lane.assign(plan.n_scratch, kNone);
      state.alive.assign(plan.n_lanes, 0);
      state.queues.resize(plan.n_lanes);
      state.output.resize(n_out / kGrain + 1);
      for (std::uint32_t i = 0; i < plan.steps.size(); ++i) {
        const Step& step = plan.steps[i];
        if (step.lane != kNone) {
          CHECK(step.lane < plan.n_lanes);
          state.queues[step.lane].push_back(i);
        }
        if (reads_payload(step)) ++state.uses[step.payload];
      }
      states_.push_back(std::move(state));
    }
  }

  void run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t member = 0; member < plans_.size(); ++member) {
        for (std::uint32_t i = 0; i < plans_[member].steps.size(); ++i) {
          moved = try_step(member, i) || moved;
        }
      }
    }
    for (const State& state : states_) {
      for (const bool done : state.done)
        CHECK(done);
      for (const std::size_t alive : state.alive)
        CHECK_EQUAL(alive, 0u);
    }
    CHECK(in_flight_.empty());
  }

  const std::vector<Value>& output(std::size_t member) const { return states_[member].output; }
  std::size_t elems_sent(std::size_t member) const { return states_[member].elems_sent; }

 private:
  struct State {
    std::vector<bool> done, admitted;
    std::vector<Message> payloads;
    std::vector<std::size_t> uses;
    std::vector<std::uint32_t> payload_lane;
    std::vector<std::map<std::uint32_t, Value>> scratch;  // by segment
    std::vector<std::uint32_t> scratch_lane;
    std::vector<std::size_t> alive;
    std::vector<std::deque<std::uint32_t>> queues;
    std::vector<Value> output;  // by grain
    std::size_t elems_sent = 0;
  };

  static bool reads_payload(const Step& step) {
    return step.action == Action::send || step.action == Action::decode ||
           (step.action == Action::accumulate && !step.from_input);
  }

  bool try_step(std::size_t member, std::uint32_t index) {
    State& state = states_[member];
    const Plan& plan = plans_[member];
    const Step& step = plan.steps[index];
    if (state.done[index]) return false;
    for (const std::uint32_t before : plan.after(index)) {
      if (!state.done[before]) return false;
    }
    if (step.lane != kNone && !state.admitted[index]) {
      auto& queue = state.queues[step.lane];
      if (queue.front() != index || state.alive[step.lane] > 0) return false;
      queue.pop_front();
      ++state.alive[step.lane];
      state.admitted[index] = true;
    }
    if (!execute(member, state, step)) return false;
    state.done[index] = true;
    return true;
  }

  void release(State& state, std::uint32_t payload) {
    if (--state.uses[payload] == 0) --state.alive[state.payload_lane[payload]];
  }

  static void release_scratch(State& state, const Step& step) {
    const std::uint32_t lane = state.scratch_lane[step.scratch];
    if (lane != kNone) --state.alive[lane];
  }

  /// Of a sum of several segments all must be there, since it is chosen from all of them.
  static Value sum_of(State& state, const Step& step) {
    auto& segments = state.scratch[step.scratch];
    const std::size_t n_segments = (step.sum.size() + kSegment - 1) / kSegment;
    CHECK(segments.size() >= n_segments);
    if (segments.size() > 1) {
      for (const auto& [segment, value] : segments)
        CHECK(value.finished);
    }
    return segments.at(step.segment);
  }

  bool execute(std::size_t member, State& state, const Step& step) {
    const auto me = static_cast<std::uint16_t>(member);
    switch (step.action) {
      case Action::encode: {
        const Value value = step.from_input ? Value{1u << member, false} : sum_of(state, step);
        state.payloads[step.payload] = {value, step.phase, step.chunk, step.segment, me};
        state.payload_lane[step.payload] = step.lane;
        if (!step.from_input) release_scratch(state, step);
        return true;
      }
      case Action::send: {
        const auto key = std::tuple(me, step.member, step.slot);
        CHECK(in_flight_.emplace(key, state.payloads[step.payload]).second);
        const Plan& plan = plans_[member];
        for (const Step& each : plan.steps) {  // the length, from the step that made the payload
          if (each.payload == step.payload &&
              (each.action == Action::encode || each.action == Action::receive)) {
            state.elems_sent += each.range.size();
          }
        }
        release(state, step.payload);
        return true;
      }
      case Action::receive: {
        const auto found = in_flight_.find(std::tuple(step.member, me, step.slot));
        if (found == in_flight_.end()) return false;
        const Message& message = found->second;
        CHECK_EQUAL(message.phase, step.phase);
        CHECK_EQUAL(message.chunk, step.chunk);
        CHECK_EQUAL(message.segment, step.segment);
        CHECK_EQUAL(message.origin, step.origin);
        state.payloads[step.payload] = message;
        state.payload_lane[step.payload] = step.lane;
        in_flight_.erase(found);
        return true;
      }
      case Action::accumulate: {
        const Value add =
            step.from_input ? Value{1u << member, false} : state.payloads[step.payload].value;
        Value& sum = state.scratch[step.scratch][step.segment];
        CHECK(step.sum.begin <= step.range.begin && step.range.end <= step.sum.end);
        if (step.first) {
          sum = {};
          state.scratch_lane[step.scratch] = step.lane;
        }
        CHECK_EQUAL(sum.members & add.members, 0u);  // nobody counts twice
        CHECK(!add.finished);
        sum.members |= add.members;
        if (!step.from_input) release(state, step.payload);
        return true;
      }
      case Action::finish: state.scratch[step.scratch][step.segment].finished = true; return true;
      case Action::store:
        state.scratch[step.scratch][step.segment].finished = true;
        write(state, step.range, sum_of(state, step));
        release_scratch(state, step);
        return true;
      case Action::decode:
        write(state, step.range, state.payloads[step.payload].value);
        release(state, step.payload);
        return true;
    }
    return false;
  }

  void write(State& state, Range range, Value value) {
    for (std::size_t at = range.begin; at < range.end; at += kGrain) {
      CHECK_EQUAL(state.output[at / kGrain].members, 0u);  // nothing is written twice
      state.output[at / kGrain] = value;
    }
  }

  std::vector<Plan> plans_;
  std::vector<State> states_;
  std::map<std::tuple<std::uint16_t, std::uint16_t, std::uint32_t>, Message> in_flight_;
};

}  // namespace fedcomm::testing
