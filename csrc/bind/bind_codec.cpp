#include "base/isa.h"
#include "base/thread_pool.h"
#include "bind/bind.h"
#include "codec/codec.h"
#include "codec/device_codec.h"
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

template <typename T>
T* device(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

/// A codec at work on device addresses, which nobody checks.
class PyDeviceCodec {
 public:
  explicit PyDeviceCodec(const std::string& name)
      : codec_(make_codec(name)), device_(codec_->on_device()) {}

  void reserve(std::size_t n_elems) {
    device_->reserve_encode(n_elems);
    device_->reserve_decode(n_elems, n_elems);
  }
  std::optional<std::size_t> encode(std::uintptr_t x, std::size_t n_elems, std::uintptr_t payload,
                                    std::uintptr_t n_bytes, std::uintptr_t non_finite,
                                    std::uintptr_t stream,
                                    std::pair<std::uintptr_t, std::uintptr_t> residual,
                                    std::uint32_t round, std::uint32_t bucket,
                                    std::uint16_t member) {
    EncodeOptions options{.feedback = {}, .draw = {.seed = member, .round = round}};
    options.draw.bucket = bucket;
    if (residual.second != 0) {
      options.feedback = {{device<const float>(residual.first), n_elems},
                          {device<float>(residual.second), n_elems}};
    }
    return device_->encode({device<const float>(x), n_elems}, options,
                           {{device<std::byte>(payload), codec_->wire_bytes(n_elems)},
                            device<std::uint64_t>(n_bytes),
                            device<std::int32_t>(non_finite)},
                           device<void>(stream));
  }
  void decode(std::uintptr_t payload, std::size_t n_bytes, const std::string& head,
              std::uintptr_t out, std::size_t n_elems, std::uintptr_t corrupt,
              std::uintptr_t stream) {
    device_->decode(payload_of(payload, n_bytes, head), {device<float>(out), n_elems},
                    device<std::int32_t>(corrupt), device<void>(stream));
  }
  void decode_add(std::uintptr_t payload, std::size_t n_bytes, const std::string& head,
                  float weight, std::uintptr_t accumulator, std::size_t n_elems,
                  std::uintptr_t corrupt, std::uintptr_t stream) {
    device_->decode_add(payload_of(payload, n_bytes, head), weight,
                        {device<float>(accumulator), n_elems}, device<std::int32_t>(corrupt),
                        device<void>(stream));
  }

 private:
  static DevicePayload payload_of(std::uintptr_t payload, std::size_t n_bytes,
                                  const std::string& head) {
    if (head.size() < std::min(n_bytes, DevicePayload::kHeadBytes)) {
      fail(ErrorKind::invalid_argument, "head has " + std::to_string(head.size()) +
                                            " bytes; it is the payload's first " +
                                            std::to_string(DevicePayload::kHeadBytes));
    }
    return {{device<const std::byte>(payload), n_bytes}, std::as_bytes(std::span(head))};
  }

  std::shared_ptr<const Codec> codec_;
  std::unique_ptr<DeviceCodec> device_;
};

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
  py::class_<PyDeviceCodec>(cuda, "Codec")
      .def(py::init<const std::string&>(), py::arg("name"))
      .def("reserve", &PyDeviceCodec::reserve, py::arg("n_elems"))
      .def("encode", &PyDeviceCodec::encode, py::arg("x"), py::arg("n_elems"), py::arg("payload"),
           py::arg("n_bytes"), py::arg("non_finite"), py::arg("stream"),
           py::arg("residual") = std::pair<std::uintptr_t, std::uintptr_t>(0, 0),
           py::arg("round") = 0, py::arg("bucket") = 0, py::arg("member") = 0)
      .def("decode", &PyDeviceCodec::decode, py::arg("payload"), py::arg("n_bytes"),
           py::arg("head"), py::arg("out"), py::arg("n_elems"), py::arg("corrupt"),
           py::arg("stream"))
      .def("decode_add", &PyDeviceCodec::decode_add, py::arg("payload"), py::arg("n_bytes"),
           py::arg("head"), py::arg("weight"), py::arg("accumulator"), py::arg("n_elems"),
           py::arg("corrupt"), py::arg("stream"));
}

}  // namespace fedcomm
