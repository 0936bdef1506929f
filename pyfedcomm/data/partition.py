"""Which cloud gets which document, where all clouds see the same ones: one rule a class, by name.

    own             no dealing: every cloud has its own documents, and tells nobody about them
    iid             in an order drawn from the seed, each to the cloud that is furthest behind
    source          whole packages, directories or files, so that clouds hold different text
    dirichlet(a)    between the two: how a source is divided is drawn from a Dirichlet distribution

Every document goes to exactly one cloud. All clouds compute the same from the same documents and
seed; nothing here communicates, or reads a file.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pyfedcomm import spelling
from pyfedcomm.errors import ConfigError

_KEY = "data.partition"


@dataclass(frozen=True)
class Entry:
    """What a partition knows of a document."""

    source: str
    """Package, directory or file that it belongs to."""
    n_bytes: int
    digest: bytes
    """Of its text."""


class Partition(ABC):
    """Deals documents to clouds."""

    @abstractmethod
    def assign(self, entries: Sequence[Entry], shares: Sequence[float], seed: int) -> list[int]:
        """The cloud of each document. shares: of each cloud, in any unit, positive."""


class Iid(Partition):
    """Documents in random order, each to the cloud that has least for its share."""

    def assign(self, entries: Sequence[Entry], shares: Sequence[float], seed: int) -> list[int]:
        """See `Partition.assign`; shares are met to within one document."""
        order = sorted(range(len(entries)), key=lambda i: (_uniform(seed, entries[i].digest), i))
        return _fill(order, [entry.n_bytes for entry in entries], shares)


class BySource(Partition):
    """Whole sources, largest first (Graham's LPT rule, at most 4/3 of the optimum's largest)."""

    def assign(self, entries: Sequence[Entry], shares: Sequence[float], seed: int) -> list[int]:
        """See `Partition.assign`. Raises ConfigError for fewer sources than clouds."""
        sizes = _sizes(entries)
        if len(sizes) < len(shares):
            raise ConfigError(
                f"data.partition is 'source', but {len(sizes)} sources are too few for "
                f"{len(shares)} clouds: a package, a directory or a file goes to one cloud as a "
                "whole; give more of them, or use data.partition = 'iid'"
            )
        names = sorted(sizes)
        order = sorted(range(len(names)), key=lambda i: (-sizes[names[i]], i))
        chosen = _fill(order, [sizes[name] for name in names], shares)
        cloud_of = dict(zip(names, chosen, strict=True))
        return [cloud_of[entry.source] for entry in entries]


class Dirichlet(Partition):
    """For each source the clouds' parts p ~ Dirichlet(alpha); each of its documents goes to one.

    Source: Hsu et al., arXiv 1909.06335, with sources for labels. alpha -> 0: a source is in one
    cloud; alpha -> infinity: iid.
    """

    def __init__(self, alpha: float) -> None:
        """alpha: above 0 and finite."""
        if not 0 < alpha < float("inf"):
            raise ConfigError(
                f"data.partition: the alpha of dirichlet is {alpha:g}; it must be above 0 (small: "
                "each source in one cloud, large: all sources in all clouds)"
            )
        self.alpha = alpha

    def assign(self, entries: Sequence[Entry], shares: Sequence[float], seed: int) -> list[int]:
        """See `Partition.assign`; shares are met on average."""
        limits = {name: self._limits(name, shares, seed) for name in _sizes(entries)}
        return [
            int(np.searchsorted(limits[entry.source], _uniform(seed, entry.digest), side="right"))
            for entry in entries
        ]

    def _limits(self, source: str, shares: Sequence[float], seed: int) -> np.ndarray:
        """Where each cloud but the last ends, of [0, 1)."""
        key = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
        drawn = np.random.default_rng([seed, key]).dirichlet([self.alpha] * len(shares))
        parts = drawn * np.array(shares) / sum(shares)
        return np.asarray(np.cumsum(parts / parts.sum())[:-1])


def make(text: str) -> Partition | None:
    """The partition of this name; None for ``own``, which deals nothing.

    Raises ConfigError for an unknown name or an argument out of range.
    """
    name, argument = spelling.split(_KEY, text, NAMES)
    if name == "dirichlet":
        return Dirichlet(spelling.number(_KEY, text, argument))
    spelling.no_argument(_KEY, text, argument)
    return {"own": None, "iid": Iid(), "source": BySource()}[name]


NAMES = ("own", "iid", "source", "dirichlet")
"""Every name that a config can give; ``dirichlet`` with its alpha, as in ``dirichlet(0.3)``."""


def assign(
    partition: Partition,
    entries: Sequence[Entry],
    shares: Sequence[float],
    seed: int,
    names: Sequence[str],
) -> list[int]:
    """`Partition.assign`, checked: every cloud of ``names`` has a document.

    Raises ConfigError, which names the clouds that would have none.
    """
    if len(entries) < len(shares):
        raise ConfigError(
            f"{len(entries)} documents are too few for {len(shares)} clouds: each goes to one; "
            "give more files, or start fewer clouds"
        )
    chosen = partition.assign(entries, shares, seed)
    idle = [name for cloud, name in enumerate(names) if cloud not in set(chosen)]
    if idle:
        raise ConfigError(
            f"data.partition leaves cloud {', '.join(idle)} without a document, of {len(entries)} "
            f"of {len(_sizes(entries))} sources; raise the alpha of dirichlet or that cloud's "
            "share, choose another run.seed, or use data.partition = 'iid'"
        )
    return chosen


def digest(entries: Iterable[Entry], chosen: Iterable[int]) -> str:
    """Equal where two clouds see the same documents in the same order and deal them alike."""
    total = hashlib.sha256()
    for entry, cloud in zip(entries, chosen, strict=True):
        total.update(f"{cloud} {entry.n_bytes} {len(entry.source)} {entry.source}".encode())
        total.update(entry.digest)
    return total.hexdigest()


def _sizes(entries: Iterable[Entry]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.source] = sizes.get(entry.source, 0) + entry.n_bytes
    return sizes


def _fill(order: Iterable[int], sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Items, in this order, each to the cloud that has least for its share; the first of equals."""
    chosen = [0] * len(sizes)
    totals = [0] * len(shares)
    for i in order:
        cloud = min(range(len(shares)), key=lambda c: (totals[c] / shares[c], c))
        chosen[i] = cloud
        totals[cloud] += sizes[i]
    return chosen


def _uniform(seed: int, data: bytes) -> float:
    """A number in [0, 1), another one for each seed; not that by which text is held out."""
    key = hashlib.sha256(b"deal %d " % seed + data).digest()
    return (int.from_bytes(key[:8], "big") >> 11) / 2.0**53
