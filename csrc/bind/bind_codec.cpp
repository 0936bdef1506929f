#include <pybind11/native_enum.h>

#include "bind/bind.h"
#include "codec/codec.h"
#include "quant/quant.h"

namespace fedcomm {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

std::span<const float> floats(const Floats& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

std::span<float> mutable_floats(Floats& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

std::span<const std::byte> bytes(const Bytes& array) {
  return std::as_bytes(std::span(array.data(), static_cast<std::size_t>(array.size())));
}

std::size_t encode(const Codec& codec, const Floats& x, Bytes& payload, bool propagate) {
  const auto room = std::as_writable_bytes(
      std::span(payload.mutable_data(), static_cast<std::size_t>(payload.size())));
  const auto input = floats(x);
  if (room.size() < codec.wire_bytes(input.size())) {
    fail(ErrorKind::invalid_argument, "out has " + std::to_string(room.size()) + " bytes; " +
                                          std::string(codec.name()) + " needs " +
                                          std::to_string(codec.wire_bytes(input.size())));
  }
  const py::gil_scoped_release unlocked;
  return codec.encode(input, room, propagate ? NonFinitePolicy::propagate : NonFinitePolicy::error);
}

Format format_named(const std::string& name) {
#define FEDCOMM_TRY(F) \
  if (name == F::kName) return Format::F;
  FEDCOMM_FOR_EACH_FORMAT(FEDCOMM_TRY)
#undef FEDCOMM_TRY
  fail(ErrorKind::invalid_argument, "there is no number format '" + name + "'");
}

template <typename T>
T* device(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_codec(py::module_& module) {
  py::class_<Codec, std::shared_ptr<Codec>>(module, "Codec")
      .def_property_readonly("name", [](const Codec& c) { return std::string(c.name()); })
      .def_property_readonly("block", &Codec::block)
      .def("wire_bytes", &Codec::wire_bytes, py::arg("n_elems"))
      .def("encode", &encode, py::arg("x").noconvert(), py::arg("out").noconvert(),
           py::arg("propagate"))
      .def(
          "decode",
          [](const Codec& codec, const Bytes& payload, Floats& out) {
            const auto target = mutable_floats(out);
            const auto source = bytes(payload);
            const py::gil_scoped_release unlocked;
            codec.decode(source, target);
          },
          py::arg("payload").noconvert(), py::arg("out").noconvert())
      .def(
          "decode_add",
          [](const Codec& codec, const Bytes& payload, float weight, Floats& accumulator) {
            const auto target = mutable_floats(accumulator);
            const auto source = bytes(payload);
            const py::gil_scoped_release unlocked;
            codec.decode_add(source, weight, target);
          },
          py::arg("payload").noconvert(), py::arg("weight"), py::arg("accumulator").noconvert());
  module.def("make_codec", [](const std::string& name) {
    return std::const_pointer_cast<Codec>(make_codec(name));
  });
  module.def("codec_names", &codec_names);

  py::module_ cuda = module.def_submodule("cuda", "Kernels on device addresses.");
  cuda.def("available", &cuda::available);
  cuda.def("encode", [](const std::string& format, std::uintptr_t x, std::size_t n_elems,
                        std::uintptr_t payload, std::uintptr_t non_finite, std::uintptr_t stream) {
    cuda::encode(format_named(format), device<const float>(x), n_elems, device<std::byte>(payload),
                 device<std::int32_t>(non_finite), device<void>(stream));
  });
  cuda.def("decode", [](const std::string& format, std::uintptr_t payload, std::size_t n_elems,
                        std::uintptr_t out, std::uintptr_t stream) {
    cuda::decode(format_named(format), device<const std::byte>(payload), n_elems,
                 device<float>(out), device<void>(stream));
  });
  cuda.def("decode_add", [](const std::string& format, std::uintptr_t payload, std::size_t n_elems,
                            float weight, std::uintptr_t accumulator, std::uintptr_t stream) {
    cuda::decode_add(format_named(format), device<const std::byte>(payload), n_elems, weight,
                     device<float>(accumulator), device<void>(stream));
  });
}

}  // namespace fedcomm
