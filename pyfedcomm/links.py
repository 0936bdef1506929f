"""What a group knows of its links: records, and how they look as text.

How links are measured is in ``csrc/collective/measure.h``, how an algorithm is chosen by them in
``csrc/collective/choose.h``. Nothing here measures or decides anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyfedcomm import _core


@dataclass(frozen=True)
class LinkStats:
    """What passed between this rank and another one.

    Payload and frame bytes are those of one group. The rest is the operating system's or the TCP
    transport's count for the connection, which all groups of a process share; None over transports
    that cannot tell.
    """

    payload_bytes_sent: int
    payload_bytes_received: int
    frame_bytes_sent: int
    """Payload plus headers and seals."""
    frame_bytes_received: int
    received_rate: float | None
    """Bytes a second: the fastest of the last spans of 0.4 s and 16 MiB or more; None: too little
    came since `Group.measure`."""
    address: str | None = None
    congestion: str | None = None
    streams: int | None = None
    """Connected now."""
    wire_bytes_sent: int | None = None
    """Frames and what surrounds their pieces; without TCP's own headers."""
    resent_bytes: int | None = None
    """Of pieces that a lost stream did not deliver."""
    reconnects: int | None = None
    sent_segments: int | None = None
    """With data, by TCP; those sent again count again."""
    retransmitted_segments: int | None = None
    """By TCP."""
    stalled_s: float | None = None
    """Seconds with frames to send and no socket with room."""
    rtt_s: float | None = None
    """Smoothed round trip, the smallest of the streams; it grows with the queues on the way."""
    pace_bytes_per_s: float | None = None
    """What all streams together keep to, so that the path is full and its queues are not; None:
    they have not been seen to overrun it."""


@dataclass(frozen=True)
class Link:
    """One direction of a pair of members."""

    source: int
    destination: int
    rate: float | None
    """Bytes a second as operations get them; None: not known."""
    round_trip_s: float | None
    """Of an empty frame and its answer, the least seen; None: not known."""
    loss: float | None
    """Fraction of TCP's segments that were sent again; None where nobody counts them."""


@dataclass(frozen=True)
class Links:
    """The link of every member to every other; equal on all members. ``print`` shows a table."""

    labels: tuple[str, ...]
    """What messages call the members."""
    links: tuple[Link, ...]
    """By source, then destination."""
    ring: tuple[int, ...]
    """The order in which a ring passes the members; empty while some link is not known."""

    def link(self, source: int, destination: int) -> Link:
        """The one from ``source`` to ``destination``, members; KeyError where there is none."""
        for each in self.links:
            if (each.source, each.destination) == (source, destination):
                return each
        raise KeyError((source, destination))

    def to_json(self) -> str:
        """All of it, as `from_json` reads it: bytes a second, seconds, fractions."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Links:
        """What `to_json` wrote."""
        raw = json.loads(text)
        return cls(
            tuple(raw["labels"]), tuple(Link(**each) for each in raw["links"]), tuple(raw["ring"])
        )

    @classmethod
    def of(cls, raw: _core.RawMeasured, labels: tuple[str, ...]) -> Links:
        """From what the core tells."""
        return cls(labels, tuple(Link(*each) for each in raw["links"]), tuple(raw["ring"]))

    def __str__(self) -> str:
        rows = [("link", "rate", "round trip", "loss")]
        rows += [
            (
                f"{self.labels[each.source]} -> {self.labels[each.destination]}",
                rate_text(each.rate),
                time_text(each.round_trip_s),
                "-" if each.loss is None else f"{100 * each.loss:.3g} %",
            )
            for each in self.links
        ]
        text = table(rows)
        if len(self.ring) > 2:
            text += "\nring: " + " -> ".join(self.labels[member] for member in self.ring)
        return text


@dataclass(frozen=True)
class Forecast:
    """What one algorithm would take: see ``csrc/collective/choose.h``."""

    algorithm: str
    n_steps: int
    latency_s: float
    """Of the steps, one after the other."""
    moving_s: float
    """Of the bytes, over what is slowest."""
    computing_s: float
    """Of coding and adding values, and of copying and checking frames, on the slowest member."""
    total_s: float
    """Latency, and moving and computing, which overlap."""
    source: int | None
    """Of the slowest link; without ``destination`` it is all that this member sends."""
    destination: int | None
    """Of the slowest link; without ``source`` it is all that this member receives."""


@dataclass(frozen=True)
class Choice:
    """What ``algorithm="auto"`` stands for, and why. ``print`` shows a table."""

    algorithm: str
    n_elems: int
    codec: str
    payload_bytes: int
    """Of the whole bucket, coded."""
    forecasts: tuple[Forecast, ...]
    """Of all algorithms that could be taken; none where links were not measured."""
    labels: tuple[str, ...]

    @classmethod
    def of(cls, raw: _core.RawChoice, n_elems: int, codec: str, labels: tuple[str, ...]) -> Choice:
        """From what the core tells."""
        forecasts = tuple(Forecast(**each) for each in raw["forecasts"])
        return cls(raw["algorithm"], n_elems, codec, raw["payload_bytes"], forecasts, labels)

    def __str__(self) -> str:
        text = (
            f"{self.n_elems:,} elements as {self.codec}, {bytes_text(self.payload_bytes)}, "
            f"{len(self.labels)} members: {self.algorithm}"
        )
        if not self.forecasts:
            return text + " (by size and members; links are not measured, or nothing to choose)"
        rows = [("algorithm", "steps", "time", "latency", "moving", "computing", "slowest")]
        rows += [
            (
                each.algorithm,
                str(each.n_steps),
                time_text(each.total_s),
                time_text(each.latency_s),
                time_text(each.moving_s),
                time_text(each.computing_s),
                self._slowest(each),
            )
            for each in self.forecasts
        ]
        return text + "\n" + table(rows)

    def _slowest(self, each: Forecast) -> str:
        if each.source is None and each.destination is None:
            return "-"
        if each.source is None:
            return f"all to {self.labels[each.destination or 0]}"
        if each.destination is None:
            return f"all from {self.labels[each.source]}"
        return f"{self.labels[each.source]} -> {self.labels[each.destination]}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two spaces apart; the first is flush left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def bytes_text(n_bytes: float) -> str:
    """``16.8 MB``: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def rate_text(rate: float | None) -> str:
    """``24.9 MB/s``."""
    return "-" if rate is None else bytes_text(rate) + "/s"


def time_text(seconds: float | None) -> str:
    """``20.1 ms``."""
    if seconds is None:
        return "-"
    for scale, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * scale < 999.5:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"
