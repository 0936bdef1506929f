// pyfedcomm._mpi: the MPI transport. Links libmpi, so it is imported only when a run uses MPI.
#include <pybind11/pybind11.h>

#include "transport/mpi.h"

PYBIND11_MODULE(_mpi, module) {
  namespace py = pybind11;
  py::module_::import("pyfedcomm._core");  // knows Fabric and translates errors
  module.def("open", &fedcomm::open_mpi, py::arg("timeout_s"),
             py::call_guard<py::gil_scoped_release>());
  module.def("abandoned_requests", &fedcomm::abandoned_mpi_requests);
  module.def("library_version", &fedcomm::mpi_library_version);
}
