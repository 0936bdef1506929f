// The MPI transport: frames as non-blocking point-to-point messages on a communicator of our own.
// MPI must have been initialised, with MPI_THREAD_MULTIPLE, before open_mpi is called.
#pragma once

#include <memory>
#include <string>

#include "transport/transport.h"

namespace fedcomm {

/// All ranks of MPI_COMM_WORLD. Collective; throws timeout when the others do not come along.
std::shared_ptr<Fabric> open_mpi(double timeout_s);

/// Requests that were given up but that MPI has not finished with. While there are any,
/// MPI_Finalize may block.
std::size_t abandoned_mpi_requests();

/// The library in use, as MPI_Get_library_version tells it.
std::string mpi_library_version();

}  // namespace fedcomm
