#include "bind/bind.h"

namespace fedcomm {
namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid_argument: return "InvalidArgument";
    case ErrorKind::timeout: return "Timeout";
    case ErrorKind::peer_lost: return "PeerLost";
    case ErrorKind::corrupt_frame: return "CorruptFrame";
    case ErrorKind::authentication: return "AuthenticationError";
    case ErrorKind::non_finite: return "NonFinite";
    case ErrorKind::cuda: return "CudaError";
    case ErrorKind::config: return "ConfigError";
    case ErrorKind::group_broken: return "GroupBroken";
    case ErrorKind::internal: return "Error";
  }
  return "Error";
}

}  // namespace

py::str to_text(const std::string& text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

py::object to_exception(const Error& error) {
  const py::object type = py::module_::import("pyfedcomm.errors").attr(class_name(error.kind()));
  py::object exception = type(to_text(error.what()));
  if (error.kind() == ErrorKind::peer_lost) exception.attr("cloud") = error.detail();
  if (error.kind() == ErrorKind::non_finite) exception.attr("index") = error.detail();
  return exception;
}

void bind_errors() {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      const py::object exception = to_exception(error);
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
    }
  });
}

}  // namespace fedcomm
