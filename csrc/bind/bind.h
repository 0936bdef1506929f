// What the binding files share: error translation and views of Python's arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "base/dtype.h"
#include "base/error.h"
#include "collective/group.h"

namespace fedcomm {

namespace py = pybind11;

/// A TensorView that keeps the array it looks at alive.
struct View {
  TensorView tensor;
  py::object owner;
};

/// Text that may come from a peer: bytes that are no UTF-8 are replaced.
py::str to_text(const std::string& text);

/// The Python exception for `error`: a class of pyfedcomm.errors.
py::object to_exception(const Error& error);

void bind_errors();
void bind_codec(py::module_& module);
void bind_group(py::module_& module);
void bind_links(py::class_<Group, std::shared_ptr<Group>>& group);
void bind_tcp(py::module_& module);

}  // namespace fedcomm
