#include "ranks/mpi_session.h"

#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

#include "base/error.h"
#include "transport/mpi.h"

namespace fedcomm::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kGrace = std::chrono::seconds(2);
constexpr auto kPause = std::chrono::milliseconds(1);

bool has(const char* variable) {
  return std::getenv(variable) != nullptr;
}

/// The MPI whose mpirun started this process; empty if none did.
std::string_view launcher() {
  if (has("OMPI_COMM_WORLD_SIZE")) return "openmpi";
  if (has("PMI_SIZE") || has("PMI_RANK")) return "mpich";
  return {};
}

bool running() {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started && !ended;
}

/// Until all ranks have come here, so that none ends before another has spoken.
void wait_for_all() {
  MPI_Request request;
  if (MPI_Ibarrier(MPI_COMM_WORLD, &request) != MPI_SUCCESS) return;
  const auto deadline = Clock::now() + kGrace;
  for (int done = 0; Clock::now() < deadline; std::this_thread::sleep_for(kPause)) {
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done) return;
  }
}

}  // namespace

bool started_by_mpirun() {
  return !launcher().empty();
}

void start_mpi() {
  if (running()) return;
  const std::string_view by = launcher(), built = FEDCOMM_MPI_VENDOR;
  if (!by.empty() && by != built) {
    fail(ErrorKind::config, "[mpi] this process was started by the mpirun of " + std::string(by) +
                                ", but built with " + std::string(built) + " " +
                                FEDCOMM_MPI_VERSION + ": start it with the mpirun of that one");
  }
  int provided = MPI_THREAD_SINGLE;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);  // open_mpi() looks at it
}

int mpi_rank() {
  int rank = 0;
  if (running()) {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  } else if (const char* told = std::getenv("PMI_RANK")) {
    rank = std::atoi(told);
  } else if (const char* told_too = std::getenv("OMPI_COMM_WORLD_RANK")) {
    rank = std::atoi(told_too);
  }
  return rank;
}

void leave_mpi(bool in_order, int status) {
  if (!running()) return;
  if (in_order) wait_for_all();
  const auto deadline = Clock::now() + kGrace;
  while (abandoned_mpi_requests() > 0) {
    if (Clock::now() > deadline) {
      // A broken group left messages that nobody will receive: MPI_Finalize would wait for them.
      std::fflush(nullptr);
      MPI_Abort(MPI_COMM_WORLD, status);
    }
    std::this_thread::sleep_for(kPause);
  }
  MPI_Finalize();
}

}  // namespace fedcomm::bench
