"""``[inter]``: what carries the exchange between clouds, and how their ranks find each other.

Either one ``mpirun`` starts the ranks of all clouds, or each cloud starts its own and they meet at
``rendezvous``. What the sockets do is in `pyfedcomm.tcp`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.tcp import TcpOptions
from pyfedcomm.topology import CLOUD_VARIABLE

TRANSPORTS = ("mpi", "tcp")
# Who started the ranks of this cloud: their number and this one's, as mpirun tells them.
_LAUNCHERS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


def local(default: Any) -> Any:
    """A field of a configuration that may differ between clouds."""
    return field(default=default, metadata={"local": True})


@dataclass(frozen=True)
class InterConfig:
    """``[inter]``; the keys from ``streams`` on are those of `pyfedcomm.TcpOptions`."""

    transport: str = "mpi"
    """``mpi``, or ``tcp``, which fills long and lossy links."""
    measure: bool = False
    """Measure the links before the first step: ``sync.algorithm = "auto"`` then chooses by them.
    Not by default: two runs may find, and choose, differently, and then end in other bits."""
    rate_limit: float = local(0.0)
    """Bytes a second that a gateway sends at most to all other clouds together; 0: any number."""
    rails: int = 0
    """Ranks of each cloud that exchange, each a part of the model; 0: as many as the smallest cloud
    has. 1: one gateway exchanges all of it."""
    rendezvous: str = ""
    """``host:port`` that rank 0 serves, for clouds that share no ``mpirun``; empty: they do."""
    clouds: tuple[str, ...] = ()
    """With ``rendezvous``: every cloud as ``"name"`` or ``"name:ranks"``; the first has rank 0. The
    later of two clouds connects to the earlier, which must be reachable for it."""
    key_file: str = local("")
    """With ``rendezvous``: a file with a secret that all ranks know; others are turned away."""
    meet_timeout_s: float = local(600.0)
    """With ``rendezvous``: seconds until all ranks must have come."""
    streams: int = local(0)
    interface: str = local("")
    port: int = local(0)
    n_ports: int = local(1)
    congestion: str = local("")
    socket_bytes: int = local(0)

    def tcp(self) -> TcpOptions:
        """As the transport takes them. Raises ConfigError for what is out of range."""
        return TcpOptions(**{item.name: getattr(self, item.name) for item in fields(TcpOptions)})

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"inter.transport is {self.transport!r}; it must be {' or '.join(TRANSPORTS)}"
            )
        self.tcp()
        if not 0 <= self.rate_limit < float("inf"):
            raise ConfigError(
                f"inter.rate_limit is {self.rate_limit}; it must be a number of bytes a second, or "
                "0 for no limit"
            )
        if self.rails < 0:
            raise ConfigError(f"inter.rails is {self.rails}; it must be 0 (automatic) or more")
        if not 0 < self.meet_timeout_s < float("inf"):
            raise ConfigError(
                f"inter.meet_timeout_s is {self.meet_timeout_s}; it must be a positive number of "
                "seconds"
            )
        if bool(self.rendezvous) != bool(self.clouds):
            raise ConfigError(
                "inter.rendezvous and inter.clouds need each other: where to meet, and who"
            )
        if self.rendezvous and self.transport != "tcp":
            raise ConfigError('inter.rendezvous needs inter.transport = "tcp"')
        self.ranks()

    def ranks(self) -> dict[str, int]:
        """Ranks of each cloud of the list, in its order."""
        ranks: dict[str, int] = {}
        for entry in self.clouds:
            name, colon, number = entry.partition(":")
            if not name or (colon and not number.isdecimal()) or number == "0":
                raise ConfigError(
                    f'inter.clouds has {entry!r}; an entry is "name", or "name:ranks" as in "aws:4"'
                )
            if name in ranks:
                raise ConfigError(f"inter.clouds lists {name!r} twice")
            ranks[name] = int(number or 1)
        return ranks


def open_world(config: InterConfig, *, timeout: float) -> Group:
    """All ranks of all clouds. Collective. Raises ConfigError, Timeout, AuthenticationError."""
    if not config.rendezvous:
        return Group.world(timeout=timeout)
    rank, size = place(config.ranks(), os.environ)
    key = ""
    if config.key_file:
        try:
            key = Path(config.key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"inter.key_file {config.key_file}: {error}") from error
        if not key:
            raise ConfigError(f"inter.key_file {config.key_file} is empty")
    return Group.connect(
        config.rendezvous,
        rank=rank,
        size=size,
        key=key,
        tcp=config.tcp(),
        timeout=timeout,
        meet_timeout=config.meet_timeout_s,
    )


def place(ranks: Mapping[str, int], environ: Mapping[str, str]) -> tuple[int, int]:
    """This process's rank, and how many there are, by its cloud and by its own ``mpirun``."""
    cloud = environ.get(CLOUD_VARIABLE, "")
    if cloud not in ranks:
        raise ConfigError(
            f"{CLOUD_VARIABLE} is {cloud!r}; with inter.rendezvous it must be one of inter.clouds: "
            f"{', '.join(ranks)}"
        )
    index, number = 0, 1
    for rank_variable, size_variable in _LAUNCHERS:
        if rank_variable in environ and size_variable in environ:
            index, number = int(environ[rank_variable]), int(environ[size_variable])
            break
    if number != ranks[cloud]:
        raise ConfigError(
            f"cloud {cloud} was started with {number} ranks, but inter.clouds says "
            f"{ranks[cloud]}; start as many, or write {cloud}:{number} there, in all clouds"
        )
    names = list(ranks)
    before = sum(ranks[name] for name in names[: names.index(cloud)])
    return before + index, sum(ranks.values())
