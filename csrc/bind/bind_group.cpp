#include "bind/bind.h"
#include "transport/memory.h"

namespace fedcomm {
namespace {

/// Before and after, of the sender and of the owner; float32, in the memory that the bucket is in.
struct PyResidual {
  View sender_in, sender_out, owner_in, owner_out;
  std::optional<Algorithm> algorithm;  // by which the owner's part was cut; none: any

  Residuals residuals() const {
    return {{floats_of(sender_in), floats_of(sender_out)},
            {floats_of(owner_in), floats_of(owner_out)}};
  }
  int device() const { return sender_out.tensor.device; }

 private:
  static std::span<float> floats_of(const View& view) {
    return {static_cast<float*>(view.tensor.data), view.tensor.n_elems};
  }
};

PyResidual make_residual(View sender_in, View sender_out, View owner_in, View owner_out,
                         const std::string& algorithm) {
  for (const View* view : {&sender_in, &sender_out, &owner_in, &owner_out}) {
    if (view->tensor.dtype != DType::f32 || view->tensor.device != sender_out.tensor.device) {
      fail(ErrorKind::invalid_argument, "residuals are float32, all of them in the same memory");
    }
  }
  return {std::move(sender_in), std::move(sender_out), std::move(owner_in), std::move(owner_out),
          algorithm_named(algorithm)};
}

struct PyReduceArgs {
  ReduceOptions options;
  std::optional<PyResidual> residual;
};

/// A work and the Python objects its operation reads and writes. Dropping it before the end waits:
/// the progress thread must not write to memory that Python has freed.
class PyWork {
 public:
  PyWork(std::shared_ptr<Work> work, std::vector<py::object> keep)
      : work_(std::move(work)), keep_(std::move(keep)) {}
  PyWork(PyWork&&) = default;
  ~PyWork() {
    if (!work_ || work_->done()) return;
    const py::gil_scoped_release unlocked;
    try {
      work_->wait();
    } catch (const Error&) {
      // Nobody is left to be told; the group remembers.
    }
  }

  void wait(std::optional<double> timeout_s) const {
    if (timeout_s && !(*timeout_s >= 0)) {
      fail(ErrorKind::invalid_argument, "timeout must be a number of seconds, not negative");
    }
    const auto start = std::chrono::steady_clock::now();
    for (bool ended = false; !ended;) {
      double slice = 0.1;  // then look for Ctrl-C
      if (timeout_s) {
        const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
        const double left = *timeout_s - waited.count();
        if (left <= 0 && !work_->done()) {
          fail(ErrorKind::timeout, "the wait of " +
                                       py::str(py::cast(*timeout_s)).cast<std::string>() +
                                       " s is over; the operation goes on");
        }
        slice = std::clamp(left, 0.0, slice);
      }
      {
        const py::gil_scoped_release unlocked;
        ended = work_->wait_for(std::chrono::duration<double>(slice));
      }
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    work_->wait();
  }
  bool done() const { return work_->done(); }
  py::object exception() const {
    const auto error = work_->error();
    return error ? to_exception(*error) : py::none();
  }

 private:
  std::shared_ptr<Work> work_;
  std::vector<py::object> keep_;
};

DType dtype_named(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f16") return DType::f16;
  if (name == "bf16") return DType::bf16;
  if (name == "u8") return DType::u8;
  fail(ErrorKind::invalid_argument, "there is no dtype '" + name + "'");
}

py::dict stats_dict(const Group& group) {
  const Counters counters = group.counters();
  py::dict stats;
  stats["operations"] = counters.operations;
  stats["frames"] = counters.frames;
  stats["payload_bytes"] = counters.payload_bytes;
  stats["frame_bytes"] = counters.frame_bytes;
  stats["encode_s"] = counters.encode_s;
  stats["decode_s"] = counters.decode_s;
  stats["wire_s"] = counters.wire_s;
  stats["sent_to"] = py::tuple(py::cast(counters.sent_to));
  return stats;
}

GroupOptions options_with(double timeout_s, bool on_gpu, std::vector<std::string> labels) {
  GroupOptions options;
  options.timeout_s = timeout_s;
  options.on_gpu = on_gpu;
  options.labels = std::move(labels);
  return options;
}

/// For Python: the last reference ends without the GIL, since closing waits for other members,
/// which may be threads of this process.
std::shared_ptr<Group> hold(std::shared_ptr<Group> group) {
  if (!group) return nullptr;
  Group* raw = group.get();
  return {raw, [group = std::move(group)](Group*) mutable {
            if (PyGILState_Check() == 0) return group.reset();
            const py::gil_scoped_release unlocked;
            group.reset();
          }};
}

/// Starts an operation without the GIL; the handle keeps the group and the arrays.
template <typename Start>
PyWork start(const std::shared_ptr<Group>& group, std::vector<py::object> keep, Start operation) {
  keep.push_back(py::cast(group));
  std::shared_ptr<Work> work;
  {
    const py::gil_scoped_release unlocked;
    work = operation();
  }
  return PyWork(std::move(work), std::move(keep));
}

}  // namespace

void bind_group(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;

  py::class_<View>(module, "View")
      .def(py::init([](std::uintptr_t address, std::size_t n_elems, const std::string& dtype,
                       py::object owner, int device, std::uintptr_t stream) {
             return View{{reinterpret_cast<void*>(address), n_elems, dtype_named(dtype), device,
                          reinterpret_cast<void*>(stream)},
                         std::move(owner)};
           }),
           py::arg("address"), py::arg("n_elems"), py::arg("dtype"), py::arg("owner"),
           py::arg("device") = kHost, py::arg("stream") = 0)
      .def_property_readonly("device", [](const View& view) { return view.tensor.device; });

  py::class_<PyResidual>(module, "Residual")
      .def(py::init(&make_residual), py::arg("sender_in"), py::arg("sender_out"),
           py::arg("owner_in"), py::arg("owner_out"), py::arg("algorithm") = "auto")
      .def_property_readonly("device", &PyResidual::device);

  py::class_<PyReduceArgs>(module, "ReduceArgs")
      .def(py::init([](bool mean, double weight, std::string codec, const std::string& algorithm,
                       std::optional<PyResidual> residual, std::uint64_t round,
                       std::uint32_t bucket, bool propagate, std::optional<double> timeout_s) {
             PyReduceArgs args;
             args.options.reduce = mean ? ReduceOp::mean : ReduceOp::sum;
             args.options.weight = weight;
             args.options.codec = std::move(codec);
             args.options.algorithm = algorithm_named(algorithm);
             args.residual = std::move(residual);
             if (args.residual) {
               args.options.residuals = args.residual->residuals();
               if (!args.options.algorithm) args.options.algorithm = args.residual->algorithm;
             }
             args.options.round = round;
             args.options.bucket = bucket;
             args.options.policy = propagate ? NonFinitePolicy::propagate : NonFinitePolicy::error;
             args.options.timeout_s = timeout_s;
             return args;
           }),
           py::kw_only(), py::arg("mean"), py::arg("weight"), py::arg("codec"),
           py::arg("algorithm"), py::arg("residual"), py::arg("round"), py::arg("bucket"),
           py::arg("propagate"), py::arg("timeout_s"));

  py::class_<PyWork>(module, "Work")
      .def("wait", &PyWork::wait, py::arg("timeout"))
      .def("done", &PyWork::done)
      .def("exception", &PyWork::exception);

  py::class_<Fabric, std::shared_ptr<Fabric>>(module, "Fabric")
      .def_property_readonly("rank", &Fabric::rank)
      .def_property_readonly("size", &Fabric::size);

  py::class_<MemoryHub, std::shared_ptr<MemoryHub>>(module, "MemoryHub")
      .def(py::init([](int n_ranks) {
        if (n_ranks < 1) fail(ErrorKind::invalid_argument, "a hub needs at least one rank");
        return std::make_shared<MemoryHub>(n_ranks);
      }))
      .def("fabric", &MemoryHub::fabric, py::arg("rank"))
      .def(
          "inject",
          [](MemoryHub& hub, int source, int destination, const std::string& fault,
             std::size_t after_frames) {
            const std::pair<const char*, Fault> known[] = {{"drop", Fault::drop},
                                                           {"corrupt", Fault::corrupt},
                                                           {"truncate", Fault::truncate},
                                                           {"silence", Fault::silence}};
            for (const auto& [name, value] : known) {
              if (fault == name) return hub.inject(source, destination, value, after_frames);
            }
            fail(ErrorKind::invalid_argument, "there is no fault '" + fault + "'");
          },
          py::arg("source"), py::arg("destination"), py::arg("fault"), py::arg("after_frames"));

  py::class_<Group, std::shared_ptr<Group>> group(module, "Group");
  bind_links(group);
  group
      .def_static(
          "open",
          [](std::shared_ptr<Fabric> fabric, double timeout_s, bool on_gpu) {
            return hold(Group::open(std::move(fabric), options_with(timeout_s, on_gpu, {})));
          },
          py::arg("fabric"), py::arg("timeout_s"), py::arg("on_gpu") = false, Unlocked())
      .def_static(
          "open_all",
          [](const std::shared_ptr<MemoryHub>& hub, double timeout_s, bool on_gpu) {
            std::vector<std::shared_ptr<Fabric>> fabrics;
            for (int rank = 0; rank < hub->size(); ++rank)
              fabrics.push_back(hub->fabric(rank));
            auto groups = Group::open_all(fabrics, options_with(timeout_s, on_gpu, {}));
            for (auto& group : groups)
              group = hold(std::move(group));
            return groups;
          },
          py::arg("hub"), py::arg("timeout_s"), py::arg("on_gpu") = false, Unlocked())
      .def(
          "split",
          [](Group& group, const std::vector<std::vector<int>>& groups,
             std::vector<std::string> labels, std::optional<double> timeout_s,
             const std::shared_ptr<Fabric>& fabric, std::optional<double> rate_limit, bool on_gpu) {
            GroupOptions options =
                options_with(timeout_s.value_or(group.timeout_s()), on_gpu, std::move(labels));
            options.rate_limit = rate_limit;
            return hold(group.split(groups, std::move(options), fabric));
          },
          py::arg("groups"), py::arg("labels"), py::arg("timeout"), py::arg("fabric"),
          py::arg("rate_limit"), py::arg("on_gpu"), Unlocked())
      .def(
          "rebuild",
          [](Group& group, const std::vector<int>& members) {
            return hold(group.rebuild(members));
          },
          py::arg("members"), Unlocked())
      .def(
          "all_reduce",
          [](const std::shared_ptr<Group>& group, const View& input, const View& output,
             const PyReduceArgs& args) {
            if (args.residual && args.residual->device() != input.tensor.device) {
              fail(ErrorKind::invalid_argument,
                   "the residuals are not in the memory that the tensor is in");
            }
            return start(group, {input.owner, output.owner, py::cast(args)}, [&] {
              return group->all_reduce(input.tensor, output.tensor, args.options);
            });
          },
          py::arg("input"), py::arg("output"), py::arg("args"))
      .def(
          "all_gather",
          [](const std::shared_ptr<Group>& group, const View& input, const View& output,
             std::optional<double> timeout_s) {
            return start(group, {input.owner, output.owner},
                         [&] { return group->all_gather(input.tensor, output.tensor, timeout_s); });
          },
          py::arg("input"), py::arg("output"), py::arg("timeout"))
      .def(
          "broadcast",
          [](const std::shared_ptr<Group>& group, const View& tensor, int root,
             std::optional<double> timeout_s) {
            return start(group, {tensor.owner},
                         [&] { return group->broadcast(tensor.tensor, root, timeout_s); });
          },
          py::arg("tensor"), py::arg("root"), py::arg("timeout"))
      .def(
          "barrier",
          [](const std::shared_ptr<Group>& group, std::optional<double> timeout_s) {
            return start(group, {}, [&] { return group->barrier(timeout_s); });
          },
          py::arg("timeout"))
      .def("abort", &Group::abort, py::arg("reason"), Unlocked())
      .def("close", &Group::close, Unlocked())
      .def("stats", &stats_dict)
      .def(
          "owned",
          [](const Group& group, std::size_t n_elems, const std::string& algorithm,
             const std::string& codec) {
            const Range range = group.owned(n_elems, algorithm_named(algorithm), codec);
            return std::pair(range.begin, range.end);
          },
          py::arg("n_elems"), py::arg("algorithm"), py::arg("codec"))
      .def_property_readonly("rank", &Group::rank)
      .def_property_readonly("size", &Group::size)
      .def_property_readonly("epoch", &Group::epoch)
      .def_property_readonly("timeout_s", &Group::timeout_s)
      .def_property_readonly("transport", &Group::transport_name)
      .def_property_readonly("broken", [](const Group& group) -> py::object {
        const auto error = group.broken();
        if (!error) return py::none();
        return to_text(error->what());
      });
}

}  // namespace fedcomm
