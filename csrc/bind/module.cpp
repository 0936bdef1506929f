// pyfedcomm._core: everything but the MPI transport, which is a module of its own (_mpi) so that
// importing pyfedcomm does not load MPI.
#include "bind/bind.h"
#include "quant/quant.h"
#include "wire/frame.h"

PYBIND11_MODULE(_core, module) {
  using namespace fedcomm;
  bind_errors();
  bind_codec(module);
  bind_group(module);
  bind_tcp(module);
  module.def("build_info", [] {
    py::dict info;
    info["version"] = FEDCOMM_VERSION;
    info["wire_version"] = static_cast<int>(kWireVersion);
    info["mpi_vendor"] = FEDCOMM_MPI_VENDOR;
    info["mpi_version"] = FEDCOMM_MPI_VERSION;
    info["mpi_library"] = FEDCOMM_MPI_LIBRARY;
    info["cuda"] = cuda::available();
    return info;
  });
  module.attr("MAX_CONTROL_BYTES") = 256u << 20;
}
