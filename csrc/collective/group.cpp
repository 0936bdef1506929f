#include "collective/group.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "collective/device_stage.h"
#include "transport/rate_limit.h"
#include "wire/bytes.h"

namespace fedcomm {
namespace {

constexpr std::size_t kHelloBytes = 32;
constexpr std::size_t kIdleBytes = 256u << 20;  // of buffers kept for reuse
constexpr int kMaxMembers = 4096;
constexpr std::size_t kMaxSegmentElems = 1u << 26;  // a frame's length is an int to MPI

struct Hello {
  std::uint64_t nonce = 0;
  std::uint64_t segment_elems = 0;
  std::uint64_t membership = 0;
  std::uint32_t epoch = 0;
  std::uint32_t on_gpu = 0;
};

std::uint64_t mix(std::uint64_t x) {  // SplitMix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::uint64_t membership_hash(const std::vector<int>& ranks) {
  std::uint64_t hash = ranks.size();
  for (const int rank : ranks)
    hash = mix(hash + static_cast<std::uint64_t>(rank) + 1);
  return hash;
}

std::vector<std::byte> write_hello(const Hello& hello) {
  std::vector<std::byte> bytes(kHelloBytes);
  ByteWriter writer(bytes);
  writer.put(hello.nonce);
  writer.put(hello.segment_elems);
  writer.put(hello.membership);
  writer.put(hello.epoch);
  writer.put(hello.on_gpu);
  return bytes;
}

Hello read_hello(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  Hello hello;
  hello.nonce = reader.get<std::uint64_t>();
  hello.segment_elems = reader.get<std::uint64_t>();
  hello.membership = reader.get<std::uint64_t>();
  hello.epoch = reader.get<std::uint32_t>();
  hello.on_gpu = reader.get<std::uint32_t>();
  return hello;
}

std::uint64_t random_nonce() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

double checked_timeout(double timeout_s) {
  if (!(timeout_s > 0) || !std::isfinite(timeout_s)) {
    fail(ErrorKind::invalid_argument,
         "timeout is " + std::to_string(timeout_s) + "; it must be a positive number of seconds");
  }
  return timeout_s;
}

GroupOptions checked(GroupOptions options, const std::vector<int>& ranks) {
  if (ranks.empty()) fail(ErrorKind::invalid_argument, "a group needs at least one member");
  if (ranks.size() > kMaxMembers) {
    fail(ErrorKind::invalid_argument, "a group has at most " + std::to_string(kMaxMembers) +
                                          " members, not " + std::to_string(ranks.size()));
  }
  checked_timeout(options.timeout_s);
  if (options.segment_elems == 0 || options.segment_elems % kGrain != 0 ||
      options.segment_elems > kMaxSegmentElems) {
    fail(ErrorKind::invalid_argument, "segment_elems must be a multiple of " +
                                          std::to_string(kGrain) + ", at most " +
                                          std::to_string(kMaxSegmentElems));
  }
  if (options.labels.empty()) {
    for (const int rank : ranks)
      options.labels.push_back("rank " + std::to_string(rank));
  }
  if (options.labels.size() != ranks.size()) {
    fail(ErrorKind::invalid_argument, "a group of " + std::to_string(ranks.size()) +
                                          " members needs as many labels, not " +
                                          std::to_string(options.labels.size()));
  }
  if (!options.sealer) options.sealer = std::make_shared<CrcSealer>();
  return options;
}

TensorView as_bytes(const TensorView& tensor) {
  return {tensor.data, tensor.n_bytes(), DType::u8, tensor.device, tensor.stream};
}

void check_same_memory(const TensorView& input, const TensorView& output) {
  if (input.device == output.device) return;
  const auto place = [](const TensorView& tensor) {
    return tensor.device == kHost ? std::string("in host memory")
                                  : "on GPU " + std::to_string(tensor.device);
  };
  fail(ErrorKind::invalid_argument, "the input is " + place(input) + ", the output " +
                                        place(output) + "; both must be in the same memory");
}

int position_of(int rank, const std::vector<int>& ranks) {
  const auto found = std::find(ranks.begin(), ranks.end(), rank);
  return found == ranks.end() ? -1 : static_cast<int>(found - ranks.begin());
}

}  // namespace

std::optional<Algorithm> algorithm_named(std::string_view name) {
  if (name == "auto") return std::nullopt;
  if (name == "direct") return Algorithm::direct;
  if (name == "ring") return Algorithm::ring;
  if (name == "all_gather") return Algorithm::all_gather;
  if (name == "sparse") return Algorithm::sparse;
  fail(ErrorKind::invalid_argument, "there is no algorithm '" + std::string(name) +
                                        "'; known: auto, direct, ring, all_gather, sparse");
}

Group::Group(std::shared_ptr<Fabric> fabric, Identity identity, GroupOptions options)
    : fabric_(std::move(fabric)),
      id_(identity.id),
      epoch_(identity.epoch),
      ranks_(std::move(identity.ranks)),
      member_(position_of(fabric_->rank(), ranks_)),
      options_(checked(std::move(options), ranks_)) {
  if (member_ < 0) {
    fail(ErrorKind::invalid_argument,
         "rank " + std::to_string(fabric_->rank()) + " is not a member of the group");
  }
  auto transport = fabric_->open({id_, epoch_}, ranks_);
  if (options_.rate_limit) transport = limit_rate(std::move(transport), *options_.rate_limit);
  GroupContext context;
  context.transport = transport->name();
  context.labels = options_.labels;
  context.epoch = epoch_;
  context.member = member_;
  context.segment_elems = options_.segment_elems;
  context.window_bytes = options_.window_bytes;
  context.sealer = options_.sealer;
  context.mask = options_.mask;
  context.pool = std::make_shared<BufferPool>(kIdleBytes);
  context.device_sets = std::make_shared<DeviceSets>();
  engine_ = std::make_unique<Engine>(std::move(context), std::move(transport));
}

/// Everyone tells everyone a random number, from which the session is made, and what must agree.
void Group::start_handshake() {
  hello_ = write_hello({random_nonce(), options_.segment_elems, membership_hash(ranks_), epoch_,
                        options_.on_gpu ? 1u : 0u});
  hellos_.resize(kHelloBytes * ranks_.size());
  handshake_ = all_gather({hello_.data(), hello_.size(), DType::u8},
                          {hellos_.data(), hellos_.size(), DType::u8});
}

void Group::finish_handshake() {
  handshake_->wait();
  const Hello mine = read_hello(hello_);
  std::uint64_t session = 0;
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    const Hello hello = read_hello(std::span(hellos_).subspan(i * kHelloBytes, kHelloBytes));
    session = mix(session ^ hello.nonce);
    const std::string who = engine_->context().at(static_cast<int>(i));
    if (hello.membership != mine.membership || hello.epoch != mine.epoch) {
      fail(ErrorKind::config, who + "has another list of members or another epoch");
    }
    if (hello.segment_elems != mine.segment_elems) {
      fail(ErrorKind::config, who + "has segments of " + std::to_string(hello.segment_elems) +
                                  " elements, here they have " +
                                  std::to_string(mine.segment_elems));
    }
    any_on_gpu_ |= hello.on_gpu != 0;
  }
  session_ = session == 0 ? 1 : session;
  engine_->set_session(session_);
}

std::shared_ptr<Group> Group::open(std::shared_ptr<Fabric> fabric, GroupOptions options) {
  return open_all({std::move(fabric)}, options).front();
}

std::vector<std::shared_ptr<Group>> Group::open_all(
    const std::vector<std::shared_ptr<Fabric>>& fabrics, const GroupOptions& options) {
  std::vector<std::shared_ptr<Group>> groups;
  for (const auto& fabric : fabrics) {
    std::vector<int> all(static_cast<std::size_t>(fabric->size()));
    for (std::size_t i = 0; i < all.size(); ++i)
      all[i] = static_cast<int>(i);
    // Counted down from 0, away from the ids of split groups.
    const std::uint32_t id = 0u - fabric->n_worlds++;
    groups.push_back(std::shared_ptr<Group>(new Group(fabric, {id, 0, std::move(all)}, options)));
    groups.back()->start_handshake();
  }
  for (const auto& group : groups)
    group->finish_handshake();
  return groups;
}

std::shared_ptr<Group> Group::split(const std::vector<std::vector<int>>& groups,
                                    GroupOptions options, const std::shared_ptr<Fabric>& other) {
  if (other && (other->rank() != member_ || other->size() != size())) {
    fail(ErrorKind::invalid_argument, "split: the other fabric has other ranks than this group");
  }
  const std::shared_ptr<Fabric>& fabric = other ? other : fabric_;
  // An id that none of the members has used: one more than the newest of any of them. The lists
  // must agree as well.
  std::uint64_t told[2] = {fabric->newest_split, groups.size()};
  for (const auto& members : groups)
    told[1] = mix(told[1] ^ membership_hash(members));
  std::vector<std::uint64_t> all(2 * ranks_.size());
  all_gather({told, sizeof told, DType::u8}, {all.data(), all.size() * sizeof all[0], DType::u8})
      ->wait();
  std::uint64_t newest = 0;
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    newest = std::max(newest, all[2 * i]);
    if (all[2 * i + 1] != told[1]) {
      fail(ErrorKind::invalid_argument,
           engine_->context().at(static_cast<int>(i)) + "asks for another split than this member");
    }
  }
  const std::uint32_t id = static_cast<std::uint32_t>(newest) + 1;
  fabric->newest_split = id;
  for (const auto& members : groups) {
    if (std::find(members.begin(), members.end(), member_) == members.end()) continue;
    std::vector<int> ranks;
    for (const int member : members) {
      if (member < 0 || member >= size()) {
        fail(ErrorKind::invalid_argument,
             "split: member " + std::to_string(member) + " is not in the group");
      }
      ranks.push_back(other ? member : ranks_[static_cast<std::size_t>(member)]);
    }
    std::shared_ptr<Group> group(new Group(fabric, {id, 0, std::move(ranks)}, std::move(options)));
    group->start_handshake();
    group->finish_handshake();
    return group;
  }
  return nullptr;
}

std::shared_ptr<Group> Group::rebuild(const std::vector<int>& members) {
  GroupOptions options = options_;
  std::vector<int> ranks;
  options.labels.clear();
  for (const int member : members) {
    if (member < 0 || member >= size()) {
      fail(ErrorKind::invalid_argument,
           "rebuild: member " + std::to_string(member) + " is not in the group");
    }
    ranks.push_back(ranks_[static_cast<std::size_t>(member)]);
    options.labels.push_back(options_.labels[static_cast<std::size_t>(member)]);
  }
  close();
  std::shared_ptr<Group> group(
      new Group(fabric_, {id_, epoch_ + ++n_rebuilds_, std::move(ranks)}, std::move(options)));
  group->start_handshake();
  group->finish_handshake();
  return group;
}

std::shared_ptr<Work> Group::all_reduce(const TensorView& input, const TensorView& output,
                                        const ReduceOptions& options) {
  if (input.dtype == DType::u8 || output.dtype == DType::u8) {
    fail(ErrorKind::invalid_argument, "all_reduce works on float32, float16 and bfloat16 only");
  }
  if (input.n_elems != output.n_elems) {
    fail(ErrorKind::invalid_argument, "input has " + std::to_string(input.n_elems) +
                                          " elements, output " + std::to_string(output.n_elems));
  }
  check_same_memory(input, output);
  if (!std::isfinite(static_cast<float>(options.weight)) || options.weight < 0) {
    fail(ErrorKind::invalid_argument, "weight is " + std::to_string(options.weight) +
                                          "; it must be finite in float32 and not negative");
  }
  OperationSpec spec;
  spec.operation = Operation::all_reduce;
  spec.reduce = options.reduce;
  spec.codec = make_codec(options.codec);
  spec.algorithm = algorithm_for(options.algorithm, *spec.codec, input.n_elems);
  spec.input = input;
  spec.output = output;
  const bool weighted = options.reduce == ReduceOp::mean && size() > 1;
  spec.weight = weighted ? options.weight : 1.0;
  spec.residuals = options.residuals;
  const auto check_length = [](const Feedback& feedback, std::size_t n, const char* name) {
    const bool fits = feedback.before.size() == feedback.after.size() &&
                      (feedback.after.empty() || feedback.after.size() == n);
    if (!fits) {
      fail(ErrorKind::invalid_argument, std::string("the ") + name + " residual has " +
                                            std::to_string(feedback.after.size()) +
                                            " elements instead of " + std::to_string(n));
    }
  };
  check_length(spec.residuals.sender, input.n_elems, "sender's");
  check_length(spec.residuals.owner,
               owned_range(spec.algorithm, input.n_elems, size(), member_).size(), "owner's");
  spec.policy = options.policy;
  spec.round = options.round;
  spec.bucket = options.bucket;
  spec.timeout_s = checked_timeout(options.timeout_s.value_or(options_.timeout_s));
  const auto known = measured();
  spec.segment_elems = segment_elems_for(spec);
  Plan plan = plan_all_reduce(spec.algorithm, input.n_elems, spec.segment_elems, size(), member_,
                              known ? known->ring : RingOrder{});
  return engine_->submit(std::move(spec), std::move(plan));
}

std::shared_ptr<Work> Group::all_gather(const TensorView& input, const TensorView& output,
                                        std::optional<double> timeout_s) {
  OperationSpec spec;
  spec.operation = Operation::all_gather;
  spec.algorithm = Algorithm::all_gather;
  spec.input = as_bytes(input);
  spec.output = as_bytes(output);
  spec.timeout_s = checked_timeout(timeout_s.value_or(options_.timeout_s));
  if (spec.output.n_elems != spec.input.n_elems * ranks_.size()) {
    fail(ErrorKind::invalid_argument, "all_gather: the output must have " +
                                          std::to_string(ranks_.size()) +
                                          " times the input's bytes");
  }
  check_same_memory(input, output);
  Plan plan =
      plan_all_gather(spec.input.n_elems, options_.segment_elems * sizeof(float), size(), member_);
  return engine_->submit(std::move(spec), std::move(plan));
}

std::shared_ptr<Work> Group::broadcast(const TensorView& tensor, int root,
                                       std::optional<double> timeout_s) {
  if (root < 0 || root >= size()) {
    fail(ErrorKind::invalid_argument, "broadcast: root " + std::to_string(root) +
                                          " is not in a group of " + std::to_string(size()));
  }
  OperationSpec spec;
  spec.operation = Operation::broadcast;
  spec.bucket = static_cast<std::uint32_t>(root);  // members must agree on it
  spec.input = as_bytes(tensor);
  spec.output = spec.input;
  spec.timeout_s = checked_timeout(timeout_s.value_or(options_.timeout_s));
  Plan plan = plan_broadcast(spec.input.n_elems, options_.segment_elems * sizeof(float), size(),
                             member_, root);
  return engine_->submit(std::move(spec), std::move(plan));
}

std::shared_ptr<Work> Group::barrier(std::optional<double> timeout_s) {
  return all_gather({nullptr, 0, DType::u8}, {nullptr, 0, DType::u8}, timeout_s);
}

void Group::abort(const std::string& reason) {
  engine_->abort(
      Error(ErrorKind::peer_lost, engine_->context().at(member_) + "gave up: " + reason, member_));
}

Algorithm Group::algorithm_for(std::optional<Algorithm> asked, const Codec& codec,
                               std::size_t n_elems) const {
  if (!asked) return choice_for(codec, n_elems).algorithm;
  const bool of_whole = *asked == Algorithm::all_gather || *asked == Algorithm::sparse;
  if (codec.chooses_from_whole() && !of_whole) {
    fail(ErrorKind::invalid_argument,
         codec.name() +
             " chooses from the whole bucket, which direct and ring encode in parts; "
             "use algorithm sparse or all_gather (or auto)");
  }
  if (!codec.chooses_from_whole() && *asked == Algorithm::sparse) {
    fail(ErrorKind::invalid_argument,
         codec.name() +
             " does not choose from the whole bucket, which is what sparse is for; "
             "use algorithm direct (or auto)");
  }
  return *asked;
}

Range Group::owned(std::size_t n_elems, std::optional<Algorithm> algorithm,
                   std::string_view codec) const {
  return owned_range(algorithm_for(algorithm, *make_codec(codec), n_elems), n_elems, size(),
                     member_);
}

}  // namespace fedcomm
