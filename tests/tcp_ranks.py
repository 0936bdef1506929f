"""Ranks of the TCP transport as threads of this process, and as processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pyfedcomm import _core
from pyfedcomm.group import Group
from pyfedcomm.tcp import TcpOptions

R = TypeVar("R")
LOOPBACK = "127.0.0.1"


def free_port(host: str = LOOPBACK) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def together(*calls: Callable[[], R]) -> list[R | Exception]:
    """What each call returned or raised, all of them at the same time."""

    def caught(call: Callable[[], R]) -> R | Exception:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(caught, calls))


def tcp_fabrics(size: int, options: TcpOptions) -> list[_core.TcpFabric]:
    """Fabrics of ``size`` ranks of this process."""
    listeners = [_core.TcpListener(asdict(options)) for _ in range(size)]
    addresses = [listener.addresses() for listener in listeners]
    return [
        _core.TcpFabric(asdict(options), listener, rank, 7, b"0123456789abcdef", addresses)
        for rank, listener in enumerate(listeners)
    ]


def tcp_groups(size: int, *, streams: int = 3, timeout: float = 20.0) -> list[Group]:
    """Members of one group over TCP on the loopback interface, one for each thread of a test."""
    options = TcpOptions(interface=LOOPBACK, streams=streams)
    fabrics = tcp_fabrics(size, options)
    groups = together(*(lambda f=f: Group(_core.Group.open(f, timeout)) for f in fabrics))
    for each in groups:
        if isinstance(each, Exception):
            raise each
    return [each for each in groups if isinstance(each, Group)]


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process of its own, which can import what tests import."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
