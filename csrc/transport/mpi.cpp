#include "transport/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/error.h"

namespace fedcomm {
namespace {

bool finalized() {
  int yes = 0;
  MPI_Finalized(&yes);
  return yes != 0;
}

void check(int status, const std::string& what) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail(ErrorKind::peer_lost,
       "[mpi] " + what + ": " + std::string(text, static_cast<std::size_t>(length)));
}

struct Pending {
  RequestId id;
  BufferPtr buffer;
  bool is_send;
};

/// Requests whose transport is gone, kept until MPI is done with their buffers.
class Abandoned {
 public:
  void add(MPI_Request request, BufferPtr buffer) {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    buffers_.push_back(std::move(buffer));
  }
  std::size_t reap() {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = requests_.size(); i-- > 0;) {
      int done = 0;
      if (MPI_Test(&requests_[i], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done) continue;
      requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(i));
      buffers_.erase(buffers_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return requests_.size();
  }

 private:
  std::mutex mutex_;
  std::vector<MPI_Request> requests_;
  std::vector<BufferPtr> buffers_;
};

Abandoned& abandoned() {
  static auto* all = new Abandoned;  // never destroyed: MPI may still own the buffers at exit
  return *all;
}

/// Packs group, operation and slot into MPI's tag. Numbers wrap around in their share of the bits;
/// two data frames of equal tag that could be taken for each other would have to be on their way at
/// once, and the frame header tells them apart then. Operation 0, the control frames, is nobody
/// else's.
struct TagBits {
  int slot, operation, group;

  explicit TagBits(int upper_bound) {
    const int bits = std::bit_width(static_cast<unsigned>(upper_bound) + 1u) - 1;
    slot = bits / 2;
    operation = (bits - slot) / 2;
    group = bits - slot - operation;
  }
  int pack(std::uint32_t group_id, Tag tag) const {
    const auto low = [](std::uint32_t value, int bits) { return value & ((1u << bits) - 1u); };
    const std::uint32_t n_data = (1u << operation) - 1u;
    const std::uint32_t wrapped = tag.operation == 0 ? 0 : 1u + (tag.operation - 1u) % n_data;
    return static_cast<int>((low(group_id, group) << (slot + operation)) | (wrapped << slot) |
                            low(tag.slot, slot));
  }
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, TagBits bits, std::uint32_t group_id, std::vector<int> ranks)
      : comm_(comm), bits_(bits), group_id_(group_id), ranks_(std::move(ranks)) {}

  ~MpiTransport() override {
    if (finalized()) return;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (!pending_[i].is_send) MPI_Cancel(&requests_[i]);
      abandoned().add(requests_[i], std::move(pending_[i].buffer));
    }
    abandoned().reap();
  }

  std::string_view name() const override { return "mpi"; }

  RequestId send(int member, Tag tag, BufferPtr frame, std::size_t n_bytes) override {
    if (finalized()) fail(ErrorKind::peer_lost, "[mpi] MPI has been finalised");
    MPI_Request request;
    check(MPI_Isend(frame->data(), static_cast<int>(n_bytes), MPI_BYTE, rank_of(member),
                    bits_.pack(group_id_, tag), comm_, &request),
          "send to rank " + std::to_string(rank_of(member)));
    return add(request, std::move(frame), true);
  }

  RequestId receive(int member, Tag tag, BufferPtr buffer) override {
    MPI_Request request;
    check(MPI_Irecv(buffer->data(), static_cast<int>(buffer->size()), MPI_BYTE, rank_of(member),
                    bits_.pack(group_id_, tag), comm_, &request),
          "receive from rank " + std::to_string(rank_of(member)));
    return add(request, std::move(buffer), false);
  }

  void cancel(RequestId id) override {
    const auto found = std::find_if(pending_.begin(), pending_.end(),
                                    [id](const Pending& each) { return each.id == id; });
    if (found == pending_.end()) return;
    const auto i = static_cast<std::size_t>(found - pending_.begin());
    if (!finalized()) {
      if (!found->is_send) MPI_Cancel(&requests_[i]);
      abandoned().add(requests_[i], std::move(found->buffer));
    }
    remove(i);
  }

  void poll(std::vector<Completion>& done) override {
    if (requests_.empty() || finalized()) return;
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
    int n_done = 0;
    const int status = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &n_done,
                                    indices_.data(), statuses_.data());
    if (status != MPI_SUCCESS && status != MPI_ERR_IN_STATUS) check(status, "progress");
    if (n_done == MPI_UNDEFINED || n_done == 0) return;
    for (int k = 0; k < n_done; ++k) {
      const auto i = static_cast<std::size_t>(indices_[static_cast<std::size_t>(k)]);
      Completion completion{pending_[i].id, 0, {}};
      const MPI_Status& each = statuses_[static_cast<std::size_t>(k)];
      if (status == MPI_ERR_IN_STATUS && each.MPI_ERROR != MPI_SUCCESS) {
        char text[MPI_MAX_ERROR_STRING];
        int length = 0;
        MPI_Error_string(each.MPI_ERROR, text, &length);
        completion.error.assign(text, static_cast<std::size_t>(length));
      } else if (!pending_[i].is_send) {
        int count = 0;
        MPI_Get_count(&each, MPI_BYTE, &count);
        completion.n_bytes = static_cast<std::size_t>(count);
      }
      done.push_back(std::move(completion));
    }
    std::sort(indices_.begin(), indices_.begin() + n_done, std::greater<>());
    for (int k = 0; k < n_done; ++k) {
      remove(static_cast<std::size_t>(indices_[static_cast<std::size_t>(k)]));
    }
  }

  void wait(std::chrono::microseconds at_most) override {
    // MPI offers no blocking wait with a deadline. Short waits yield, so that a peer on the same
    // core can answer; longer ones sleep.
    if (at_most < std::chrono::microseconds(20)) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(at_most);
    }
  }

  void wake() override {}  // wait() is never long
  bool wakes_by_itself() const override { return false; }

 private:
  int rank_of(int member) const { return ranks_[static_cast<std::size_t>(member)]; }

  RequestId add(MPI_Request request, BufferPtr buffer, bool is_send) {
    requests_.push_back(request);
    pending_.push_back({next_id_, std::move(buffer), is_send});
    return next_id_++;
  }

  void remove(std::size_t i) {
    requests_[i] = requests_.back();
    pending_[i] = std::move(pending_.back());
    requests_.pop_back();
    pending_.pop_back();
  }

  MPI_Comm comm_;
  TagBits bits_;
  std::uint32_t group_id_;
  std::vector<int> ranks_;
  std::vector<MPI_Request> requests_;
  std::vector<Pending> pending_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  RequestId next_id_ = 1;
};

class MpiFabric final : public Fabric {
 public:
  explicit MpiFabric(MPI_Comm comm) : comm_(comm), bits_(tag_upper_bound(comm)) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Transport> open(GroupId id, std::vector<int> ranks) override {
    abandoned().reap();
    return std::make_unique<MpiTransport>(comm_, bits_, id.group, std::move(ranks));
  }

 private:
  static int tag_upper_bound(MPI_Comm comm) {
    void* value = nullptr;
    int found = 0;
    MPI_Comm_get_attr(comm, MPI_TAG_UB, &value, &found);
    return found ? *static_cast<int*>(value) : 32767;
  }

  MPI_Comm comm_;
  TagBits bits_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

std::shared_ptr<Fabric> open_mpi(double timeout_s) {
  int initialized = 0, finalized = 0, provided = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (!initialized || finalized) {
    fail(ErrorKind::config, "[mpi] MPI is not initialised: import mpi4py.MPI first");
  }
  MPI_Query_thread(&provided);
  if (provided != MPI_THREAD_MULTIPLE) {
    fail(ErrorKind::config,
         "[mpi] MPI was initialised without MPI_THREAD_MULTIPLE, which the progress thread needs; "
         "leave mpi4py.rc.thread_level at 'multiple'");
  }
  // Static: MPI writes to them when the last rank comes, even after a timeout here; a later call
  // takes up the same duplication.
  static MPI_Comm comm = MPI_COMM_NULL;
  static MPI_Request request = MPI_REQUEST_NULL;
  if (comm == MPI_COMM_NULL && request == MPI_REQUEST_NULL) {
    check(MPI_Comm_idup(MPI_COMM_WORLD, &comm, &request), "duplicating MPI_COMM_WORLD");
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  for (int done = 0; !done;) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "duplicating MPI_COMM_WORLD");
    if (done) break;
    if (std::chrono::steady_clock::now() > deadline) {
      fail(ErrorKind::timeout, "[mpi] not all ranks opened the MPI transport within " +
                                   std::to_string(timeout_s) + " s");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  return std::make_shared<MpiFabric>(comm);
}

std::size_t abandoned_mpi_requests() {
  return abandoned().reap();
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  return {text, static_cast<std::size_t>(length)};
}

}  // namespace fedcomm
