"""What makes links: the interface of ``delay_line.py`` and ``netem.py``, and the errors of both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pyfedcomm.errors import Error

from .links import Link

PROGRAM = [sys.executable, "-I", "-S", str(Path(__file__).with_name("namespaces.py"))]
"""``namespaces.py``, which needs nothing but the standard library."""
COMMAND_S = 30.0
"""Deadline of the short commands that set a laboratory up."""


def has_ipv6() -> bool:
    """Whether this kernel knows IPv6 at all."""
    return Path("/proc/sys/net/ipv6").exists()


class LabError(Error):
    """A laboratory cannot be made, or one of its parts has failed."""


class Unavailable(LabError):
    """This machine, or this user, cannot have a laboratory; the message says what is missing."""


@dataclass(frozen=True)
class Hosts:
    """The namespaces that the keeper holds; process ids as seen from outside."""

    init: int
    pids: list[int]
    """One a cloud."""
    inner: list[int]
    """The same as seen inside."""
    core: int | None
    """A host between the clouds, where a backend asked for it."""

    def popen(self, pid: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a command on the host of ``pid``. It is killed if its starter ends."""
        return subprocess.Popen([*PROGRAM, "enter", str(pid), "pid,net,uts,mnt", *argv], **options)

    def popen_inside(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a command that ends with the laboratory, but in this process's network."""
        return subprocess.Popen([*PROGRAM, "enter", str(self.init), "pid,mnt", *argv], **options)

    def ip(self, pid: int, program: Sequence[str], lines: Sequence[str]) -> None:
        """Gives lines to ``ip -batch -`` or ``tc -batch -``. Raises `LabError`."""
        process = self.popen(
            pid,
            [*program, "-batch", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = process.communicate("\n".join(lines) + "\n", timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise LabError(f"{program[0]} has not ended after {COMMAND_S:g} s") from None
        if process.returncode != 0:
            raise LabError(f"{program[0]}: {errors.strip()} (lines: {'; '.join(lines)})")


class Backend(Protocol):
    """Makes a device in every cloud, and the links between them."""

    name: str

    def set_link(self, a: int, b: int, link: Link) -> None:
        """Changes one direction, from now on."""

    def set_cut(self, a: int, b: int, cut: bool) -> None:
        """A cut direction loses everything."""

    def counters(self) -> dict[str, Any]:
        """``pairs``: for each direction what was sent, delivered, dropped and lost, in packets."""

    def close(self) -> None:
        """Ends what was started; the namespaces remain."""
