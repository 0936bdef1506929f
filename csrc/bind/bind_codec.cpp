#include "base/isa.h"
#include "base/thread_pool.h"
#include "bind/bind.h"
#include "codec/codec.h"
#include "codec/quant_codec.h"
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

struct PyEncodeOptions {
  EncodeOptions options;
  std::optional<std::pair<Floats, Floats>> residual;  // old, new
};

PyEncodeOptions encode_options(bool propagate, std::optional<std::pair<Floats, Floats>> residual,
                               std::uint32_t round, std::uint32_t bucket, std::uint16_t member) {
  PyEncodeOptions all;
  all.options.policy = propagate ? NonFinitePolicy::propagate : NonFinitePolicy::error;
  all.options.draw = {.seed = member, .round = round, .bucket = bucket};
  all.residual = std::move(residual);
  if (all.residual) {
    all.options.feedback = {floats(all.residual->first), mutable_floats(all.residual->second)};
  }
  return all;
}

std::size_t encode(const Codec& codec, const Floats& x, Bytes& payload,
                   const PyEncodeOptions& options) {
  const auto room = std::as_writable_bytes(
      std::span(payload.mutable_data(), static_cast<std::size_t>(payload.size())));
  const auto input = floats(x);
  if (room.size() < codec.wire_bytes(input.size())) {
    fail(ErrorKind::invalid_argument, "out has " + std::to_string(room.size()) + " bytes; " +
                                          codec.name() + " needs " +
                                          std::to_string(codec.wire_bytes(input.size())));
  }
  const Feedback& feedback = options.options.feedback;
  if (options.residual &&
      (feedback.before.size() != input.size() || feedback.after.size() != input.size())) {
    fail(ErrorKind::invalid_argument, "the residuals have " +
                                          std::to_string(feedback.before.size()) + " and " +
                                          std::to_string(feedback.after.size()) +
                                          " elements, x has " + std::to_string(input.size()));
  }
  const py::gil_scoped_release unlocked;
  return codec.encode(input, options.options, room);
}

QuantSpec spec_named(const std::string& codec) {
  return value_codec(parse_codec(codec)).spec;
}

template <typename T>
T* device(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_codec(py::module_& module) {
  py::class_<Codec, std::shared_ptr<Codec>>(module, "Codec")
      .def_property_readonly("name", &Codec::name)
      .def_property_readonly("block", &Codec::block)
      .def("wire_bytes", &Codec::wire_bytes, py::arg("n_elems"))
      .def("encode", &encode, py::arg("x").noconvert(), py::arg("out").noconvert(),
           py::arg("options"))
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
  py::class_<PyEncodeOptions>(module, "EncodeOptions")
      .def(py::init(&encode_options), py::kw_only(), py::arg("propagate"), py::arg("residual"),
           py::arg("round"), py::arg("bucket"), py::arg("member"));
  module.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa isa : available_isas())
      names.emplace_back(name_of(isa));
    return names;
  });
  module.def("current_isa", [] { return std::string(name_of(current_isa())); });
  module.def("use_isa", &use_isa, py::arg("name"));
  module.def("thread_count", &thread_count);
  module.def("use_threads", &use_threads, py::arg("n_threads"),
             py::call_guard<py::gil_scoped_release>());

  py::module_ cuda = module.def_submodule("cuda", "Kernels on device addresses.");
  cuda.def("available", &cuda::available);
  cuda.def(
      "encode",
      [](const std::string& codec, std::uintptr_t x, std::size_t n_elems, std::uintptr_t payload,
         std::uintptr_t non_finite, std::uintptr_t stream, std::uintptr_t before,
         std::uintptr_t after, float beta, std::uint32_t round, std::uint32_t bucket,
         std::uint16_t member) {
        const ValueCodec values = value_codec(parse_codec(codec));
        const cuda::Input input{device<const float>(x), n_elems, device<const float>(before),
                                device<float>(after), beta};
        const Draw draw{.seed = member, .round = round, .bucket = bucket};
        cuda::encode(values.spec, input, values.draw(draw), device<std::byte>(payload),
                     device<std::int32_t>(non_finite), device<void>(stream));
      },
      py::arg("codec"), py::arg("x"), py::arg("n_elems"), py::arg("payload"), py::arg("non_finite"),
      py::arg("stream"), py::arg("before") = 0, py::arg("after") = 0, py::arg("beta") = 1.0f,
      py::arg("round") = 0, py::arg("bucket") = 0, py::arg("member") = 0);
  cuda.def("decode", [](const std::string& codec, std::uintptr_t payload, std::size_t n_elems,
                        std::uintptr_t out, std::uintptr_t stream) {
    cuda::decode(spec_named(codec), device<const std::byte>(payload), n_elems, device<float>(out),
                 device<void>(stream));
  });
  cuda.def("decode_add", [](const std::string& codec, std::uintptr_t payload, std::size_t n_elems,
                            float weight, std::uintptr_t accumulator, std::uintptr_t stream) {
    cuda::decode_add(spec_named(codec), device<const std::byte>(payload), n_elems, weight,
                     device<float>(accumulator), device<void>(stream));
  });
}

}  // namespace fedcomm
