// MPI of a program that is not Python: started, recognised and left in order.
#pragma once

namespace fedcomm::bench {

/// Whether an mpirun started this process, by its environment.
bool started_by_mpirun();

/// Initialises MPI, unless that was done. Throws config where the mpirun that started this process
/// is that of another MPI: each rank would believe itself alone.
void start_mpi();

/// In MPI_COMM_WORLD; before MPI has started, what mpirun says, else 0.
int mpi_rank();

/// Ends MPI where it was started. All groups must be gone. `in_order`: the other ranks are about to
/// do the same. Messages that no peer takes end the process, with `status`.
void leave_mpi(bool in_order, int status);

}  // namespace fedcomm::bench
