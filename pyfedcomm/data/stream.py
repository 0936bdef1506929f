"""The sequences that one rank trains on, in an order that follows from a seed.

A sequence is ``seq_len + 1`` tokens; consecutive ones share one token, so that every token but
the first is predicted exactly once an epoch. Each epoch of each part is a new permutation. The
queue of a cloud (see ``deal``) goes through these; of its places rank r of n takes r, n + r,
2n + r and so on. So what ranks take never overlaps, nothing is left over at the end of an epoch,
and one number says where a rank is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyfedcomm.data.deal import Deal
from pyfedcomm.data.tokenizers import Tokens
from pyfedcomm.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """What a rank takes at once."""

    tokens: NDArray[np.int64]
    """Shape ``(n, seq_len + 1)``."""
    samples: NDArray[np.int64]
    """Which ones they are: (epoch, part, sequence of the part), shape ``(n, 3)``."""


class Sequences:
    """The sequences of all parts that this rank can reach; reading one changes nothing."""

    def __init__(self, parts: Sequence[Tokens], seq_len: int, seed: int) -> None:
        """parts: of each cloud of the deal; the deal of a private cloud has only its own."""
        self._parts, self._seq_len, self._seed = list(parts), seq_len, seed
        self.lengths = [count(tokens, seq_len) for tokens in parts]
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def batch(
        self, deal: Deal, cloud: int, begin: int, n: int, *, rank: int, n_ranks: int
    ) -> Batch:
        """Sequences ``begin`` to ``begin + n``, n >= 1, of one of a cloud's ``n_ranks`` ranks."""
        runs = deal.take(cloud, begin * n_ranks, (begin + n) * n_ranks)
        samples = np.concatenate(
            [
                np.stack(
                    [
                        np.full(len(run), run.epoch),
                        np.full(len(run), run.part),
                        self._order(run.epoch, run.part)[run.begin : run.end],
                    ],
                    axis=1,
                )
                for run in runs
            ]
        )[rank::n_ranks]
        rows = np.empty((n, self._seq_len + 1), np.int64)
        for part in np.unique(samples[:, 1]):
            own = samples[:, 1] == part
            rows[own] = cut(self._parts[part], self._seq_len, samples[own, 2])
        return Batch(rows, samples)

    def _order(self, epoch: int, part: int) -> NDArray[np.int64]:
        key = (epoch, part)
        if key not in self._orders:
            while len(self._orders) > 2 * len(self._parts):  # two epochs may be under way
                del self._orders[next(iter(self._orders))]
            self._orders[key] = permutation(self._seed, epoch, part, self.lengths[part])
        return self._orders[key]


def permutation(seed: int, epoch: int, part: int, n: int) -> NDArray[np.int64]:
    """An order of n sequences; the same with every version of numpy.

    All clouds must have the same one. numpy promises that of its bit generators, and not of what is
    made from them.
    """
    keys = np.random.PCG64([seed, epoch, part]).random_raw(n)
    return np.argsort(keys, kind="stable")


def check_lengths(lengths: Sequence[int], names: Sequence[str], n_ranks: Sequence[int]) -> None:
    """Raises ConfigError if a cloud's part has fewer sequences than it has ranks.

    lengths, names, n_ranks: of each part.
    """
    for length, name, needed in zip(lengths, names, n_ranks, strict=True):
        if length < needed:
            raise ConfigError(
                f"the training data of cloud {name} is too short: {length} sequences for {needed} "
                "ranks; give it more data, or lower data.seq_len"
            )


def count(tokens: Tokens, seq_len: int) -> int:
    """How many sequences the tokens hold."""
    return max(0, (len(tokens) - 1) // seq_len)


def cut(tokens: Tokens, seq_len: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sequences by index, shape ``(len(indices), seq_len + 1)``."""
    starts = indices[:, None] * seq_len
    return np.asarray(tokens[starts + np.arange(seq_len + 1)], dtype=np.int64)


def heldout_sequences(
    tokens: Tokens, seq_len: int, limit: int, *, shard: int = 0, n_shards: int = 1
) -> NDArray[np.int64]:
    """This shard's part of at most ``limit`` (0: all) held-out sequences, spread evenly.

    Raises ConfigError if there is not one sequence.
    """
    total = count(tokens, seq_len)
    if total == 0:
        raise ConfigError(
            f"the held-out data is too short: {len(tokens)} tokens, but a sequence takes "
            f"{seq_len + 1}; give more data, raise data.heldout, or lower data.seq_len"
        )
    n = total if limit == 0 else min(limit, total)
    indices = np.arange(n, dtype=np.int64) * total // n
    return cut(tokens, seq_len, indices[shard::n_shards])
