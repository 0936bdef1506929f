"""Which rank belongs to which cloud.

Discovery uses the first of these that is given: an explicit ``clouds`` (``--clouds``), the
environment variable ``FEDCOMM_CLOUD`` of each rank, a table of hosts (``[clouds] hosts`` in a run's
config), the host name. It does not open any connection of its own: it asks one group that
spans all ranks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group

CLOUD_VARIABLE = "FEDCOMM_CLOUD"


@dataclass(frozen=True)
class Topology:
    """The clouds of a run as one of its ranks sees them; equal on all ranks but for ``rank``."""

    names: tuple[str, ...]
    """Name of each cloud."""
    clouds: tuple[tuple[int, ...], ...]
    """Global ranks of each cloud, ascending; clouds are ordered by their first rank."""
    hosts: tuple[str, ...]
    """Host name of each global rank."""
    rank: int
    """This process's global rank."""

    @property
    def n_clouds(self) -> int:
        """Number of clouds."""
        return len(self.clouds)

    @property
    def world_size(self) -> int:
        """Ranks of all clouds together."""
        return len(self.hosts)

    @property
    def cloud(self) -> int:
        """Index of this rank's cloud."""
        return next(i for i, ranks in enumerate(self.clouds) if self.rank in ranks)

    @property
    def cloud_name(self) -> str:
        """Name of this rank's cloud."""
        return self.names[self.cloud]

    @property
    def local_rank(self) -> int:
        """Index of this rank inside its cloud."""
        return self.clouds[self.cloud].index(self.rank)

    @property
    def local_size(self) -> int:
        """Ranks of this rank's cloud."""
        return len(self.clouds[self.cloud])

    @property
    def n_rails(self) -> int:
        """Gateways a cloud can have: as many as the smallest cloud has ranks."""
        return min(len(ranks) for ranks in self.clouds)

    def rail_ranks(self, rail: int) -> tuple[int, ...]:
        """Global rank of gateway ``rail`` of each cloud, in cloud order."""
        return tuple(ranks[rail] for ranks in self.clouds)

    @classmethod
    def discover(
        cls,
        group: Group,
        *,
        clouds: str | None = None,
        hosts: Mapping[str, Sequence[str]] | None = None,
    ) -> Topology:
        """Agrees on the clouds of all ranks of ``group`` (the world). Collective.

        clouds: ``"2"`` (equal contiguous blocks of ranks) or ``"1,3"`` (that many ranks each).
        hosts: cloud name -> host names (or their first labels), from a run's config.
        Raises `ConfigError` on every rank if any rank finds no cloud or the ranks disagree.
        """
        host = socket.gethostname()
        name = os.environ.get(CLOUD_VARIABLE)
        table = {c: sorted(h) for c, h in hosts.items()} if hosts else None
        told = group.all_gather_object([host, name, clouds, table])
        if any(row[2:] != told[0][2:] for row in told):
            raise ConfigError(
                "ranks disagree on the clouds: "
                + "; ".join(
                    f"rank {i} ({row[0]}): clouds={row[2]}, hosts={row[3]}"
                    for i, row in enumerate(told)
                )
            )
        all_hosts = tuple(row[0] for row in told)
        if clouds is not None:
            labels = _blocks(clouds, group.size)
        elif any(row[1] for row in told):
            labels = _named([row[1] for row in told], all_hosts)
        elif hosts:
            labels = _by_table(all_hosts, hosts)
        else:
            labels = list(all_hosts)
        return from_labels(labels, all_hosts, group.rank)


def from_labels(labels: Sequence[str], hosts: Sequence[str], rank: int) -> Topology:
    """The topology in which rank i belongs to the cloud called ``labels[i]``."""
    names = tuple(dict.fromkeys(labels))
    members = tuple(tuple(i for i, label in enumerate(labels) if label == name) for name in names)
    return Topology(names=names, clouds=members, hosts=tuple(hosts), rank=rank)


def _blocks(clouds: str, n_ranks: int) -> list[str]:
    try:
        numbers = [int(part) for part in clouds.split(",")]
    except ValueError:
        raise ConfigError(
            f"clouds is {clouds!r}; it must be a number of clouds (2) or of ranks in each (1,3)"
        ) from None
    if any(n < 1 for n in numbers):
        raise ConfigError(f"clouds is {clouds!r}; every number must be at least 1")
    if len(numbers) == 1:
        if n_ranks % numbers[0]:
            raise ConfigError(
                f"{n_ranks} ranks cannot be split evenly over {numbers[0]} clouds; "
                f"start a multiple of {numbers[0]}, or give the ranks of each cloud, as in "
                f"--clouds 1,{n_ranks - 1}"
            )
        numbers = [n_ranks // numbers[0]] * numbers[0]
    if sum(numbers) != n_ranks:
        raise ConfigError(
            f"clouds {clouds!r} adds up to {sum(numbers)} ranks, but {n_ranks} were started"
        )
    return [f"cloud{i}" for i, n in enumerate(numbers) for _ in range(n)]


def _named(names: Sequence[str | None], hosts: Sequence[str]) -> list[str]:
    missing = [f"rank {i} ({hosts[i]})" for i, name in enumerate(names) if not name]
    if missing:
        raise ConfigError(
            f"{CLOUD_VARIABLE} is set on some ranks but not on {', '.join(missing)}; "
            "set it on all, or give --clouds"
        )
    return [name for name in names if name]


def _by_table(rank_hosts: Sequence[str], table: Mapping[str, Sequence[str]]) -> list[str]:
    cloud_of: dict[str, str] = {}
    for cloud, listed in table.items():
        for host in listed:
            if cloud_of.setdefault(host, cloud) != cloud:
                raise ConfigError(
                    f"host {host!r} is listed in clouds {cloud_of[host]!r} and {cloud!r}"
                )
    labels = [cloud_of.get(host) or cloud_of.get(host.split(".")[0]) for host in rank_hosts]
    missing = [f"rank {i} ({rank_hosts[i]})" for i, label in enumerate(labels) if label is None]
    if missing:
        raise ConfigError(
            f"no cloud for {', '.join(missing)}: add the host to the table [clouds.hosts], which "
            f"lists {', '.join(sorted(cloud_of))}"
        )
    return [label for label in labels if label is not None]
