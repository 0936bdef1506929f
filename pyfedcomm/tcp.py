"""The TCP transport's options, and opening it.

A fabric needs two things from outside: every rank's addresses, and a random token that keeps other
runs and strangers out. How the ranks tell each other is the caller's: over MPI (`Group.world`), or
at a ``rendezvous`` (`Group.connect`). What the sockets do, and what happens when one is lost, is in
``csrc/transport/tcp.h``.
"""

from __future__ import annotations

import atexit
import secrets
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyfedcomm import _core
from pyfedcomm.errors import ConfigError, CorruptFrame, Error

if TYPE_CHECKING:
    from pyfedcomm.group import Group


@dataclass(frozen=True)
class TcpOptions:
    """How a rank connects to others; each rank may have its own, ``streams`` is the dialler's."""

    streams: int = 0
    """Sockets between two ranks; 0: ``PYFEDCOMM_TCP_STREAMS``, else 1 inside a host, 4 on a round
    trip below 1 ms, 8 beyond. The higher rank of a pair decides, for it connects."""
    interface: str = ""
    """Name (``eth1``) or address of the interface to listen on and connect from; empty:
    ``PYFEDCOMM_TCP_INTERFACE``, else all."""
    port: int = 0
    """To listen on; 0: any."""
    n_ports: int = 1
    """How many ports from ``port`` upwards may be tried."""
    congestion: str = ""
    """``bbr``, ``cubic``, ...; empty: bbr between hosts, cubic inside one. Where the kernel has not
    got it, its default; `Group.link_stats` tells which."""
    socket_bytes: int = 0
    """Size of each socket's two buffers; 0: as the kernel tunes them. A size ends its tuning, and
    is capped by ``net.core.wmem_max`` and ``rmem_max`` without CAP_NET_ADMIN."""

    def __post_init__(self) -> None:
        if not 0 <= self.streams <= 64:
            raise ConfigError(f"tcp.streams is {self.streams}; it must be 0 (by the path) to 64")
        if not 0 <= self.port <= 65535 or not 1 <= self.n_ports <= 65536 - self.port:
            raise ConfigError(
                f"tcp.port is {self.port} and tcp.n_ports {self.n_ports}; ports end at 65535"
            )
        if self.socket_bytes < 0:
            raise ConfigError(f"tcp.socket_bytes is {self.socket_bytes}; it must be 0 or more")


Exchange = Callable[[dict[str, Any]], list[Any]]
"""Tells the others something; returns what all ranks told, by rank. Collective."""


_groups: weakref.WeakSet[Group] = weakref.WeakSet()
_fabrics: weakref.WeakSet[_core.TcpFabric] = weakref.WeakSet()


def close_at_exit(group: Group) -> None:
    """Closes the group, and its connections, in order before the process ends, if nobody has."""
    atexit.unregister(_leave)
    atexit.register(_leave)
    _groups.add(group)


def _leave() -> None:
    for group in list(_groups):
        group.close()
    for fabric in list(_fabrics):
        fabric.close()


def open_fabric(rank: int, exchange: Exchange, options: TcpOptions | None) -> _core.TcpFabric:
    """Listens, learns the others' addresses through ``exchange``, connects in the background.

    A rank that cannot listen tells the others instead of its addresses: ConfigError on all.
    """
    given: dict[str, Any] = asdict(options or TcpOptions())
    listener: _core.TcpListener | None = None
    failure: Error | None = None
    mine: dict[str, Any] = {"session": secrets.randbits(63), "token": secrets.token_hex(16)}
    try:
        listener = _core.TcpListener(given)
        mine["addresses"] = listener.addresses()
    except Error as error:
        failure, mine = error, {"error": str(error)}
    told = exchange(mine)
    if failure is not None:
        raise failure
    try:
        for other, row in enumerate(told):
            if "error" in row:
                raise ConfigError(f"rank {other}: {row['error']}")
        addresses = [[str(address) for address in row["addresses"]] for row in told]
        session, token = int(told[0]["session"]), bytes.fromhex(told[0]["token"])
        if not 0 <= session < 1 << 63:
            raise ValueError("session")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Error):
            raise
        raise CorruptFrame(f"[tcp] a rank told addresses that make no sense: {error!r}") from error
    assert listener is not None
    fabric = _core.TcpFabric(given, listener, rank, session, token, addresses)
    _fabrics.add(fabric)
    return fabric
