// Every environment variable that libfedcomm reads.
#pragma once

#include <cstdlib>
#include <string_view>

namespace fedcomm::env {

inline std::string_view value(const char* name) {
  const char* found = std::getenv(name);
  return found == nullptr ? std::string_view() : std::string_view(found);
}

/// The instruction set of the kernels: portable, avx2, avx512; empty: the best that there is.
inline std::string_view force_isa() {
  return value("PYFEDCOMM_FORCE_ISA");
}

/// Threads that the kernels of one process use together; empty: the cores it may run on.
inline std::string_view threads() {
  return value("PYFEDCOMM_THREADS");
}

/// Sockets between two ranks of the TCP transport; empty: by the path.
inline std::string_view tcp_streams() {
  return value("PYFEDCOMM_TCP_STREAMS");
}

/// The interface, or the address, that the TCP transport listens on and connects from; empty: any.
inline std::string_view tcp_interface() {
  return value("PYFEDCOMM_TCP_INTERFACE");
}

}  // namespace fedcomm::env
