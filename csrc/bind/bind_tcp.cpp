#include <algorithm>

#include "bind/bind.h"
#include "transport/tcp.h"

namespace fedcomm {
namespace {

TcpOptions tcp_options(const py::dict& given) {
  TcpOptions options;
  for (const auto& [key, value] : given) {
    const auto name = key.cast<std::string>();
    if (name == "streams") {
      options.streams = value.cast<int>();
    } else if (name == "interface") {
      options.interface = value.cast<std::string>();
    } else if (name == "port") {
      options.port = value.cast<std::uint16_t>();
    } else if (name == "n_ports") {
      options.n_ports = value.cast<std::uint16_t>();
    } else if (name == "congestion") {
      options.congestion = value.cast<std::string>();
    } else if (name == "socket_bytes") {
      options.socket_bytes = value.cast<std::size_t>();
    } else {
      fail(ErrorKind::invalid_argument, "there is no TCP option '" + name + "'");
    }
  }
  return options;
}

TcpRun tcp_run(int rank, std::uint64_t session, const std::string& token,
               std::vector<std::vector<std::string>> addresses) {
  TcpRun run;
  run.rank = rank;
  run.session = session;
  if (token.size() != run.token.size()) {
    fail(ErrorKind::invalid_argument, "a token has " + std::to_string(run.token.size()) + " bytes");
  }
  std::transform(token.begin(), token.end(), run.token.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  run.addresses = std::move(addresses);
  return run;
}

TcpFault tcp_fault(const std::string& name, int rank, int stream, std::size_t after_bytes) {
  const std::pair<const char*, TcpFault::Kind> known[] = {{"cut", TcpFault::Kind::cut},
                                                          {"freeze", TcpFault::Kind::freeze},
                                                          {"slow", TcpFault::Kind::slow}};
  for (const auto& [text, kind] : known) {
    if (name == text) return {kind, rank, stream, after_bytes};
  }
  fail(ErrorKind::invalid_argument, "there is no fault '" + name + "'");
}

}  // namespace

void bind_tcp(py::module_& module) {
  py::class_<TcpListener, std::shared_ptr<TcpListener>>(module, "TcpListener")
      .def(
          py::init([](const py::dict& options) { return TcpListener::open(tcp_options(options)); }),
          py::arg("options"))
      .def("addresses", &TcpListener::addresses);

  py::class_<TcpFabric, Fabric, std::shared_ptr<TcpFabric>>(module, "TcpFabric")
      .def(py::init([](const py::dict& options, const std::shared_ptr<TcpListener>& listener,
                       int rank, std::uint64_t session, const std::string& token,
                       std::vector<std::vector<std::string>> addresses) {
             return open_tcp(tcp_options(options), listener,
                             tcp_run(rank, session, token, std::move(addresses)));
           }),
           py::arg("options"), py::arg("listener"), py::arg("rank"), py::arg("session"),
           py::arg("token"), py::arg("addresses"))
      .def(
          "inject",
          [](TcpFabric& fabric, const std::string& fault, int rank, int stream,
             std::size_t after_bytes) {
            fabric.inject(tcp_fault(fault, rank, stream, after_bytes));
          },
          py::arg("fault"), py::arg("rank"), py::arg("stream"), py::arg("after_bytes"))
      .def("close", &TcpFabric::close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fedcomm
