"""Links made by the kernel's ``netem`` and ``tbf``.

Between the clouds lies a host of its own, the *core*, which forwards without routing: each packet
goes through a chain of virtual cables (``veth``), whose ends hold the queues::

    wan0 of a = u<a> -> [n<a>: uplink] -> [p<a>.<b>: loss, delay, rate] -> [u<b>: downlink] = of b

All clouds have the same hardware address, so nobody has to ask for another's. Packets are cut to
the MTU where they are sent: what is queued and lost here are packets of the wire.

Different from the delay line: losses and jitter are drawn by the kernel, without our seed; a lost
packet takes no time on the wire; with jitter, packets overtake each other.
"""

from __future__ import annotations

import functools
import json
import subprocess
from typing import Any

from .backend import COMMAND_S, PROGRAM, Backend, Hosts, LabError, has_ipv6
from .links import Link, Links

_HARDWARE_ADDRESS = "02:00:00:00:00:01"
_ETHERNET = 14
"""Bytes of the header that the kernel counts and we do not."""
_HELD = 1_000_000
"""Packets that a delay may hold: more than any link we can shape."""


@functools.cache
def missing() -> str | None:
    """What keeps this kernel from it; None: nothing."""
    lines = [
        "qdisc add dev lo root handle 1: netem delay 1ms",
        "qdisc add dev lo parent 1:1 handle 2: tbf rate 1mbit burst 3000 limit 3000",
        "qdisc add dev lo ingress",
        "filter add dev lo parent ffff: protocol ip u32 match ip dst 10.77.0.1/32 "
        "action mirred egress redirect dev lo",
    ]
    try:
        done = subprocess.run(
            [*PROGRAM, "alone", "tc", "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "tc does not answer"
    if done.returncode == 0:
        return None
    return f"this kernel has no usable netem: {' '.join(done.stderr.split())}"


def core_host() -> dict[str, Any]:
    """For the keeper."""
    return {"name": "core", "files": {}, "sysctls": {}}


class Netem(Backend):
    """Makes cables and queues in the core; they end with it."""

    name = "netem"

    def __init__(self, hosts: Hosts, links: Links, *, device: str, mtu: int, seed: int) -> None:
        assert hosts.core is not None
        self._hosts, self._core, self._mtu = hosts, hosts.core, mtu
        self._now: dict[tuple[int, int], tuple[Link, bool]] = {}
        clouds = range(len(hosts.pids))
        pairs = [(a, b) for a in clouds for b in clouds if a != b]
        cables = [f"n{a}" for a in clouds] + [_pair(a, b) for a, b in pairs]
        lines = [f"link add u{a} mtu {mtu} type veth peer name w{a} mtu {mtu}" for a in clouds]
        lines += [f"link add {c} mtu {mtu} type veth peer name {c}e mtu {mtu}" for c in cables]
        for name in (*(f"u{a}" for a in clouds), *cables, *(f"{c}e" for c in cables)):
            silent = "addrgenmode none" if has_ipv6() else ""
            lines.append(f"link set {name} {silent} txqueuelen 100000 up")
        hosts.ip(self._core, ["ip"], lines)
        for a in clouds:
            # The core's /proc shows the processes of the laboratory, and so does `ip`.
            hosts.ip(self._core, ["ip"], [f"link set w{a} netns {hosts.inner[a]} name {device}"])
            hosts.ip(
                hosts.pids[a],
                ["ip"],
                [f"link set {device} address {_HARDWARE_ADDRESS} arp off gso_max_segs 1"],
            )
        lines = []
        for a in clouds:
            lines += _forward(f"u{a}", f"n{a}")
            lines.append(f"qdisc add dev n{a}e ingress")
            site = links.site(a)
            for cable, mbit in ((f"n{a}", site.uplink_mbit), (f"u{a}", site.downlink_mbit)):
                if mbit > 0:
                    lines.append(f"qdisc add dev {cable} root {self._tbf(mbit, links.queue_ms)}")
        for a, b in pairs:
            for prio, protocol, match in (
                (1, "ip", f"ip dst 10.77.0.{b + 1}/32"),
                (2, "ipv6", f"ip6 dst fd77::{b + 1:x}/128"),
            ):
                lines.append(
                    f"filter add dev n{a}e parent ffff: protocol {protocol} prio {prio} u32 "
                    f"match {match} action mirred egress redirect dev {_pair(a, b)}"
                )
            lines += _forward(f"{_pair(a, b)}e", f"u{b}")
            lines += self._queues("add", a, b, links.link(a, b), cut=False)
        hosts.ip(self._core, ["tc"], lines)

    def set_link(self, a: int, b: int, link: Link) -> None:
        _, cut = self._now[a, b]
        self._change(a, b, link, cut)

    def set_cut(self, a: int, b: int, cut: bool) -> None:
        link, _ = self._now[a, b]
        self._change(a, b, link, cut)

    def counters(self) -> dict[str, Any]:
        process = self._hosts.popen(
            self._core, ["tc", "-s", "-j", "qdisc", "show"], stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate(timeout=COMMAND_S)
        if process.returncode != 0:
            raise LabError("tc -s qdisc show failed")
        queues = {(q["dev"], q["kind"]): q for q in json.loads(out)}
        rows = []
        for a, b in self._now:
            root = queues[_pair(a, b), "netem"]
            rate = queues.get((_pair(a, b), "tbf"), {"drops": 0})
            rows.append(
                {
                    "from": a,
                    "to": b,
                    "sent": root["packets"] + root["drops"],
                    "delivered": root["packets"],
                    "delivered_bytes": root["bytes"] - _ETHERNET * root["packets"],
                    "dropped": rate["drops"],
                    "lost": root["drops"] - rate["drops"],
                }
            )
        return {"pairs": rows}

    def close(self) -> None:
        """Nothing runs outside the kernel."""

    def _change(self, a: int, b: int, link: Link, cut: bool) -> None:
        before, _ = self._now[a, b]
        if (before.rate_mbit > 0) == (link.rate_mbit > 0):
            self._hosts.ip(self._core, ["tc"], self._queues("change", a, b, link, cut))
        else:  # a queue appears or goes: what is on its way is lost
            again = [f"qdisc del dev {_pair(a, b)} root", *self._queues("add", a, b, link, cut)]
            self._hosts.ip(self._core, ["tc"], again)

    def _queues(self, verb: str, a: int, b: int, link: Link, cut: bool) -> list[str]:
        """First the delay, then the rate: in the end it is the same, and only so can they be put
        together."""
        self._now[a, b] = link, cut
        jitter = f" {link.jitter_ms * 1e3:.0f}us" if link.jitter_ms else ""
        loss = 1.0 if cut else link.loss
        device = _pair(a, b)
        lines = [
            f"qdisc {verb} dev {device} root handle 1: netem limit {_HELD} "
            f"delay {link.rtt_ms / 2 * 1e3:.0f}us{jitter} loss {loss * 100:.7f}%"
        ]
        if link.rate_mbit > 0:
            tbf = self._tbf(link.rate_mbit, link.queue_ms)
            lines.append(f"qdisc {verb} dev {device} parent 1:1 handle 2: {tbf}")
        return lines

    def _tbf(self, mbit: float, queue_ms: float) -> str:
        frame = self._mtu + _ETHERNET
        bits_per_s = mbit * 1e6 * frame / self._mtu
        burst = max(2 * frame, bits_per_s / 8 * 0.5e-3)
        limit = max(burst, bits_per_s / 8 * queue_ms / 1e3)
        return f"tbf rate {bits_per_s:.0f}bit burst {burst:.0f} limit {limit:.0f}"


def _pair(a: int, b: int) -> str:
    return f"p{a}.{b}"


def _forward(device: str, to: str) -> list[str]:
    """What comes in here goes out there. Only IP: the rest (neighbour discovery) is of no use."""
    return [
        f"qdisc add dev {device} ingress",
        *(
            f"filter add dev {device} parent ffff: protocol {protocol} prio {prio} u32 "
            f"match u32 0 0 action mirred egress redirect dev {to}"
            for prio, protocol in ((1, "ip"), (2, "ipv6"))
        ),
    ]
