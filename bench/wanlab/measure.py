"""Measurements of a laboratory by its own means: does it do what it was asked, and what is the
least time that so many bytes can take on it?

Counts come from the kernels of the clouds (datagrams that arrived, time stamps of echoes), not
from whatever makes the links.
"""

from __future__ import annotations

import itertools
import json
import math
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pyfedcomm.errors import Timeout

from .backend import LabError
from .lab import Lab, stop

_PROBE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("probe.py"))]
_ANSWER_S = 90.0
_PORT = 7707
_IP_UDP = 28
_SMALL = 36  # payload of packets that are only counted: 64 bytes of IP


class _Probe:
    """A probe in a cloud, and its JSON lines."""

    def __init__(self, lab: Lab, cloud: int, *arguments: object) -> None:
        self._what = f"{arguments[0]} in cloud {cloud}"
        self._process = lab.popen(
            [*_PROBE, *map(str, arguments)],
            cloud=cloud,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_ANSWER_S):
                raise Timeout(f"[wanlab] {self._what}: nothing for {_ANSWER_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"{self._what} failed: {self._process.stderr.read().strip()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, **what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        stop(self._process)


@contextmanager
def _probe(lab: Lab, cloud: int, *arguments: object) -> Iterator[_Probe]:
    probe = _Probe(lab, cloud, *arguments)
    try:
        yield probe
    finally:
        probe.stop()


# --- does it do what it was asked? ----------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One direction, as asked and as measured. None: not asked, or not measured."""

    a: int
    b: int
    rtt_asked_ms: float
    rtt_ms: float | None
    """Median of the echoes."""
    rtt_min_ms: float | None
    rtt_max_ms: float | None
    rate_asked_mbit: float | None
    """What should arrive of a stream that is larger than the link: its rate, less the loss."""
    rate_mbit: float | None
    loss_asked: float
    loss: float
    packets: int
    """Of those that ``loss`` is the lost part."""
    problems: tuple[str, ...]
    """What is not as asked."""


def rtts_ms(lab: Lab, a: int, b: int, *, count: int = 20, ipv6: bool = False) -> list[float]:
    """Round trips of echoes from cloud ``a`` to ``b``; those that were lost are not there."""
    with _probe(lab, a, "rtt", lab.address(b, 6 if ipv6 else 4), count, 0.01) as probe:
        times: list[float] = probe.hear()["rtts_ms"]
    return times


def check_pair(lab: Lab, a: int, b: int, *, seconds: float = 1.0) -> Check:
    """Measures one direction of an idle laboratory, ``seconds`` each for rate and loss."""
    link, back = lab.link(a, b), lab.link(b, a)
    asked_rtt = (link.rtt_ms + back.rtt_ms) / 2
    problems = []

    times = rtts_ms(lab, a, b, count=max(5, round(20 * min(seconds, 5))))
    median = statistics.median(times) if times else None
    slack = 1 + (link.jitter_ms + back.jitter_ms)
    if median is None:
        problems.append("no echo came back")
    elif not asked_rtt - slack <= median <= asked_rtt + slack:
        problems.append(f"round trip {median:.2f} ms is not within {slack:g} ms of {asked_rtt:g}")

    capacity = lab.capacity_mbit(a, b)
    asked_rate = rate = None
    if capacity > 0:
        asked_rate = capacity * (1 - link.loss)
        rate = rates_mbit(lab, [(a, b)], capacity * 1.15, seconds=seconds)[b]
        if not 0.95 * asked_rate <= rate <= 1.02 * asked_rate:
            problems.append(f"rate {rate:.1f} Mbit/s is not 95 to 102 % of {asked_rate:.1f}")

    # Half of what fits, in small packets, so that no queue can drop any.
    n, lost = _loss(lab, a, b, min(capacity / 2 or 25.0, 25.0), seconds)
    expected = n * link.loss
    if abs(lost - expected) > 3.3 * math.sqrt(expected * (1 - link.loss)) + 1:
        problems.append(f"{lost} of {n} packets were lost, {expected:.1f} were to be expected")
    return Check(
        a=a,
        b=b,
        rtt_asked_ms=asked_rtt,
        rtt_ms=median,
        rtt_min_ms=min(times, default=None),
        rtt_max_ms=max(times, default=None),
        rate_asked_mbit=asked_rate,
        rate_mbit=rate,
        loss_asked=link.loss,
        loss=lost / n,
        packets=n,
        problems=tuple(problems),
    )


def check(
    lab: Lab, pairs: Iterable[tuple[int, int]] | None = None, *, seconds: float = 1.0
) -> Iterator[Check]:
    """`check_pair` of every direction, one after the other."""
    n = lab.n_clouds
    everything = ((a, b) for a in range(n) for b in range(n) if a != b)
    for a, b in pairs if pairs is not None else everything:
        yield check_pair(lab, a, b, seconds=seconds)


def _streams(
    lab: Lab, pairs: Sequence[tuple[int, int]], payload: int, mbit: float, seconds: float
) -> tuple[int, dict[int, list[tuple[float, int]]]]:
    """Packets that were sent; for each receiver, samples of time and packets received."""
    with ExitStack() as stack:
        receivers = {
            b: stack.enter_context(_probe(lab, b, "count", lab.address(b), _PORT))
            for b in {b for _, b in pairs}
        }
        for receiver in receivers.values():
            receiver.hear()
        senders = [
            stack.enter_context(
                _probe(lab, a, "udp", lab.address(b), _PORT, payload, mbit, seconds)
            )
            for a, b in pairs
        ]
        packets = sum(sender.hear()["packets"] for sender in senders)
        links = [lab.link(a, b) for a, b in pairs]
        time.sleep(max(x.rtt_ms / 2 + x.jitter_ms + 3 * x.queue_ms for x in links) / 1e3 + 0.05)
        samples = {}
        for b, receiver in receivers.items():
            receiver.end()
            samples[b] = receiver.hear()["samples"]
    return packets, samples


def rates_mbit(
    lab: Lab, pairs: Sequence[tuple[int, int]], mbit: float, *, seconds: float = 1.0
) -> dict[int, float]:
    """What arrives in each receiving cloud while ``pairs`` send ``mbit`` each, in bits of IP."""
    payload = lab.mtu - _IP_UDP
    _, samples = _streams(lab, pairs, payload, mbit, seconds)
    return {b: _slope(of_b) * lab.mtu * 8e-6 for b, of_b in samples.items()}


def _slope(samples: Sequence[tuple[float, int]]) -> float:
    """Packets a second. The median of ten parts: a pause of this machine is none of the link."""
    first, last = samples[0][1], samples[-1][1]
    low, high = first + 0.15 * (last - first), first + 0.95 * (last - first)
    middle = [s for s in samples if low <= s[1] <= high]
    marks = [middle[round(i * (len(middle) - 1) / 10)] for i in range(11)] if middle else []
    rates = [
        (n_after - n_before) / (end - begin)
        for (begin, n_before), (end, n_after) in itertools.pairwise(marks)
        if end > begin
    ]
    if len(rates) < 10:
        raise LabError("too few packets came through to tell the rate")
    return statistics.median(rates)


def _loss(lab: Lab, a: int, b: int, mbit: float, seconds: float) -> tuple[int, int]:
    sent, samples = _streams(lab, [(a, b)], _SMALL, mbit, seconds)
    return sent, sent - (samples[b][-1][1] - samples[b][0][1])


def table(checks: Sequence[Check]) -> list[str]:
    """Lines for people, asked beside measured."""
    lines = [
        f"{'link':>7}  {'rtt ms':>8} {'measured':>8} {'min':>8} {'max':>8}  "
        f"{'Mbit/s':>8} {'measured':>8}  {'loss':>8} {'measured':>8} {'packets':>8}"
    ]
    for c in checks:
        link = f"{c.a}->{c.b}"
        times = " ".join(_cell(t, ".2f") for t in (c.rtt_ms, c.rtt_min_ms, c.rtt_max_ms))
        rates = f"{_cell(c.rate_asked_mbit, '.1f')} {_cell(c.rate_mbit, '.1f')}"
        lines.append(
            f"{link:>7}  {c.rtt_asked_ms:8.2f} {times}  {rates}  "
            f"{c.loss_asked:8.2g} {c.loss:8.2g} {c.packets:8d}"
        )
        lines += [f"{'':>7}  NOT AS ASKED: {problem}" for problem in c.problems]
    return lines


def _cell(value: float | None, form: str) -> str:
    return f"{'-':>8}" if value is None else f"{value:8{form}}"


# --- the least time -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """The time that so many bytes take over well-tuned TCP streams."""

    n_bytes: int
    directions: str
    streams: int
    congestion: str
    computed_ms: float
    """Bytes / rate + one way; headers not counted."""
    median_ms: float
    min_ms: float
    max_ms: float

    @property
    def share(self) -> float:
        """Of the link's rate, by payload, while it was in use."""
        return self.computed_ms / self.median_ms

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def floor(
    lab: Lab,
    n_bytes: int,
    *,
    pair: tuple[int, int] = (0, 1),
    directions: Literal["both", "one"] = "both",
    streams: int = 8,
    repeats: int = 5,
    congestion: str = "bbr",
) -> Floor:
    """Sends ``n_bytes`` from the first of ``pair`` to the second, again and again.

    directions: ``"both"`` sends as many the other way at the same time, as an all-reduce does.
    congestion: TCP's algorithm; a kernel that does not have it uses its default.

    The clock runs from the first call of ``send`` to the last byte received in either cloud. The
    streams are open and warm, as those of a transport are: two transfers are not counted.
    """
    a, b = pair
    capacity = min(lab.capacity_mbit(a, b), lab.capacity_mbit(b, a))
    link, back = lab.link(a, b), lab.link(b, a)
    one_way_ms = max(link.rtt_ms, back.rtt_ms) / 2
    round_trip_ms = (link.rtt_ms + back.rtt_ms) / 2
    # Twice the bandwidth-delay product, which each stream may need for itself, and the queue.
    buffer = int(2 * (capacity or 1e4) * 1e3 / 8 * (round_trip_ms + link.queue_ms))
    buffer = min(max(buffer, 1 << 20), 1 << 28)
    address = lab.address(a)
    tuning = (streams, buffer, congestion)
    backwards = n_bytes if directions == "both" else 0
    times: list[float] = []
    with _probe(lab, a, "transfer", address, _PORT, "listen", *tuning) as here:
        here.hear()
        with _probe(lab, b, "transfer", address, _PORT, "connect", *tuning) as there:
            congestion = there.hear()["congestion"]
            here.hear()
            for i in range(repeats + 2):
                at = time.monotonic() + 0.02
                here.tell(at=at, send=n_bytes, receive=backwards)
                there.tell(at=at, send=backwards, receive=n_bytes)
                arrivals = [probe.hear()["received_at"] for probe in (here, there)]
                if None in arrivals:
                    raise Timeout(f"[wanlab] a transfer of {n_bytes} bytes has not ended")
                if i >= 2:
                    times.append((max(arrivals) - at) * 1e3)
    return Floor(
        n_bytes=n_bytes,
        directions=directions,
        streams=streams,
        congestion=congestion,
        computed_ms=(n_bytes * 8e-3 / capacity if capacity else 0.0) + one_way_ms,
        median_ms=statistics.median(times),
        min_ms=min(times),
        max_ms=max(times),
    )
