"""What a cloud and the host of `async` tell each other, two messages at a time: push and reply.

    cloud -- push: weight, steps; delta --> host -- reply: progress; difference --> cloud

Each is a few numbers and a payload, over a group of the two. It knows no rule: what the numbers
mean, and when they are sent, is ``asynchronous``'s.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Generic, TypeVar

import numpy as np

from pyfedcomm.codecs import Codec, Floats, Payload
from pyfedcomm.errors import CorruptFrame, Timeout
from pyfedcomm.group import Group

T = TypeVar("T")
EMPTY: Payload = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Push:
    """What a cloud did since its last one."""

    weight: float
    """0: the delta does not count, and no payload comes with it."""
    steps: float
    final: float = 0.0
    """1 with the last push before the end; its reply, when all clouds have made theirs, comes with
    the model instead of a payload."""
    left_out: float = 0.0
    """1 where there is no delta because it was not finite."""


@dataclass(frozen=True)
class Reply:
    """How the run is going."""

    progress: float
    """Steps of the run: the mean over clouds of those that were pushed."""
    version: float
    """Of the host's model."""
    meet: float
    """The step of the run that the cloud is to be taken to be at, and to wait at; -1: go on."""


class Line:
    """One end; the other end makes the same calls, sending where this one receives."""

    def __init__(self, group: Group, codec: Codec, n_elems: int) -> None:
        """group: of two. n_elems: that payloads are of."""
        self._group, self._codec, self._n_elems = group, codec, n_elems

    def send(
        self, numbers: Push | Reply, rest: Sequence[float] = (), data: Payload = EMPTY
    ) -> None:
        """rest: more numbers, as many as the other end expects.

        Raises what operations of a group raise; the line is then of no more use.
        """
        row = np.array([len(data), *astuple(numbers), *rest], np.float64)
        self._group.broadcast(row, root=self._group.rank)
        if len(data):
            self._group.broadcast(data, root=self._group.rank)

    def receive_push(self) -> tuple[Push, Payload]:
        """See `Push`. Raises CorruptFrame for what no cloud can mean."""
        numbers, _, data = self._receive(4, 0)
        return Push(*numbers), data

    def receive_reply(self, n_rest: int) -> tuple[Reply, list[float], Payload]:
        """A reply and ``n_rest`` more numbers."""
        numbers, rest, data = self._receive(3, n_rest)
        return Reply(*numbers), rest, data

    def send_model(self, flat: Floats) -> None:
        """fp32, as it is."""
        self._group.broadcast(flat, root=self._group.rank)

    def receive_model(self, flat: Floats) -> None:
        """Into ``flat``, of ``n_elems``."""
        self._group.broadcast(flat, root=1 - self._group.rank)

    def decode(self, data: Payload) -> Floats:
        """Raises CorruptFrame if it is no payload of ``n_elems``."""
        return self._codec.decode(data, self._n_elems)

    def _receive(self, n: int, n_rest: int) -> tuple[list[float], list[float], Payload]:
        row = np.zeros(1 + n + n_rest)
        self._group.broadcast(row, root=1 - self._group.rank)
        n_bytes, *numbers = (float(x) for x in row)
        longest = self._codec.wire_bytes(self._n_elems)
        sound = all(math.isfinite(x) and x >= -1 for x in numbers)
        if not (sound and 0 <= n_bytes <= longest and n_bytes.is_integer()):
            raise CorruptFrame(
                f"a message between clouds says {row.tolist()}; its payload has at most {longest} "
                "bytes: use one version and one [sync] in all clouds"
            )
        data = np.empty(int(n_bytes), np.uint8)
        if len(data):
            self._group.broadcast(data, root=1 - self._group.rank)
        return numbers[:n], numbers[n:], data


class Call(Generic[T]):
    """A function that runs beside the training; waited for as a `Work` is."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._result: T | None = None
        self._error: Exception | None = None
        # A daemon: its own operations have deadlines, and nobody waits for it at the exit.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> T:
        """The result, or the function's error; Timeout after so many seconds, while it goes on."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise Timeout(f"{self._thread.name}: not done within {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set where there is no error

    def done(self) -> bool:
        """True once it has ended, well or badly."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except Exception as error:
            self._error = error
