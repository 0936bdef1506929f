// What a group knows of its links, for Python: counters, the measured table, the choice by it.
#include <future>

#include "bind/bind.h"
#include "collective/identity.h"
#include "transport/tcp.h"

namespace fedcomm {
namespace {

py::object measured_dict(const std::shared_ptr<const Measured>& measured) {
  if (!measured) return py::none();
  const LinkTable& links = measured->links;
  const auto known = [](std::uint64_t number, double unit) -> py::object {
    if (number == 0) return py::none();
    return py::cast(unit * static_cast<double>(number));
  };
  py::list rows;
  for (int from = 0; from < links.n_members(); ++from) {
    for (int to = 0; to < links.n_members(); ++to) {
      if (from == to) continue;
      const LinkFacts& facts = links.at(from, to);
      py::object lost = py::none();
      if (facts.lost_billionths) lost = py::cast(1e-9 * *facts.lost_billionths);
      rows.append(py::make_tuple(from, to, known(facts.bytes_per_s, 1),
                                 known(facts.round_trip_ns, 1e-9), lost));
    }
  }
  py::dict dict;
  dict["links"] = rows;
  dict["ring"] = measured->ring;
  return dict;
}

py::dict choice_dict(const Group& group, std::size_t n_elems, const std::string& codec) {
  const Choice choice = group.choose(n_elems, codec);
  py::list forecasts;
  for (const Forecast& each : choice.forecasts) {
    py::dict dict;
    dict["algorithm"] = name_of(each.algorithm);
    dict["n_steps"] = each.n_steps;
    dict["latency_s"] = each.latency_s;
    dict["moving_s"] = each.moving_s;
    dict["computing_s"] = each.computing_s;
    dict["total_s"] = each.total_s();
    dict["source"] = each.from < 0 ? py::object(py::none()) : py::cast(each.from);
    dict["destination"] = each.to < 0 ? py::object(py::none()) : py::cast(each.to);
    forecasts.append(dict);
  }
  py::dict dict;
  dict["algorithm"] = name_of(choice.algorithm);
  dict["payload_bytes"] = make_codec(codec)->wire_bytes(n_elems);
  dict["forecasts"] = forecasts;
  return dict;
}

MeasureBy measure_by(const std::string& name) {
  if (name == "probes") return MeasureBy::probes;
  if (name == "traffic") return MeasureBy::traffic;
  fail(ErrorKind::invalid_argument, "measure by " + name + "; known: probes, traffic");
}

/// Blocks for seconds, in a thread of its own: this one looks for Ctrl-C, which breaks the group.
py::object measure(const std::shared_ptr<Group>& group, const std::string& by,
                   std::optional<double> seconds) {
  const MeasureBy how = measure_by(by);
  std::future<std::shared_ptr<const Measured>> result;
  {
    const py::gil_scoped_release unlocked;
    result = std::async(std::launch::async, [&] { return group->measure(how, seconds); });
  }
  for (;;) {
    {
      const py::gil_scoped_release unlocked;
      if (result.wait_for(std::chrono::milliseconds(100)) == std::future_status::ready) break;
    }
    if (PyErr_CheckSignals() == 0) continue;
    const py::error_already_set interrupt;
    {
      const py::gil_scoped_release unlocked;
      group->abort("interrupted");
      result.wait();
    }
    throw interrupt;
  }
  return measured_dict(result.get());
}

/// This group's traffic with a member, and what its fabric knows of the way there.
py::dict link_stats(const Group& group, int member) {
  if (member < 0 || member >= group.size() || member == group.rank()) {
    fail(ErrorKind::invalid_argument, "there is no link to member " + std::to_string(member));
  }
  const auto index = static_cast<std::size_t>(member);
  const int rank = group.ranks()[index];
  LinkTraffic traffic;
  std::optional<LinkStats> tcp;
  {
    const py::gil_scoped_release unlocked;
    traffic = group.counters().links[index];
    auto* fabric = dynamic_cast<TcpFabric*>(group.fabric().get());
    if (fabric != nullptr) tcp = fabric->link_stats(rank);
  }
  py::dict dict;
  dict["payload_bytes_sent"] = traffic.payload_bytes_sent;
  dict["payload_bytes_received"] = traffic.payload_bytes_received;
  dict["frame_bytes_sent"] = traffic.frame_bytes_sent;
  dict["frame_bytes_received"] = traffic.frame_bytes_received;
  dict["received_rate"] =
      traffic.received_rate == 0 ? py::object(py::none()) : py::cast(traffic.received_rate);
  if (!tcp) return dict;
  dict["address"] = tcp->address;
  dict["congestion"] = tcp->congestion;
  dict["streams"] = tcp->streams;
  dict["wire_bytes_sent"] = tcp->wire_bytes_sent;
  dict["resent_bytes"] = tcp->resent_bytes;
  dict["reconnects"] = tcp->reconnects;
  dict["sent_segments"] = tcp->sent_segments;
  dict["retransmitted_segments"] = tcp->retransmitted_segments;
  dict["stalled_s"] = tcp->stalled_s;
  if (tcp->rtt_s > 0) dict["rtt_s"] = tcp->rtt_s;
  if (tcp->pace_bytes_per_s > 0) dict["pace_bytes_per_s"] = tcp->pace_bytes_per_s;
  return dict;
}

}  // namespace

void bind_links(py::class_<Group, std::shared_ptr<Group>>& group) {
  group
      .def_property_readonly("labels",
                             [](const Group& self) {
                               py::list labels;
                               for (const std::string& label : self.labels())
                                 labels.append(to_text(label));
                               return py::tuple(labels);
                             })
      .def("measure", &measure, py::arg("by"), py::arg("seconds"))
      .def("measured", [](const Group& self) { return measured_dict(self.measured()); })
      .def("choose", &choice_dict, py::arg("n_elems"), py::arg("codec"))
      .def("link_stats", &link_stats, py::arg("member"));
}

}  // namespace fedcomm
