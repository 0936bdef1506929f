"""Deals the sequences of a corpus to the ranks of a cloud, in an order that follows from a seed.

A sequence is ``seq_len + 1`` tokens; consecutive ones share one token, so that every token but
the first is predicted exactly once an epoch. Each epoch is a new permutation; shard s of n takes
every n-th of it, starting with the s-th, so shards never overlap. The position is one number, so
that a resumed run goes on with exactly the next sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyfedcomm.data.tokenizers import Tokens
from pyfedcomm.errors import ConfigError


class TokenStream:
    """An endless stream of training sequences for one rank."""

    def __init__(
        self, tokens: Tokens, seq_len: int, *, seed: int, shard: int = 0, n_shards: int = 1
    ) -> None:
        """Serves shard ``shard`` of ``n_shards``; all shards must give equal tokens and seed.

        Raises ConfigError if there are fewer sequences than shards.
        """
        self.n_sequences = count(tokens, seq_len)
        if self.n_sequences < n_shards:
            raise ConfigError(
                f"the training data is too short: {len(tokens)} tokens are {self.n_sequences} "
                f"sequences of {seq_len} for {n_shards} ranks; give more data, or lower "
                "data.seq_len"
            )
        self._tokens, self._seq_len, self._seed = tokens, seq_len, seed
        self._shard, self._n_shards = shard, n_shards
        # What is left over when the shards do not divide the sequences: other ones every epoch.
        self.epoch_length = self.n_sequences // n_shards
        self.position = 0
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def epoch(self) -> float:
        """Epochs of this shard that were dealt."""
        return self.position / self.epoch_length

    def seek(self, position: int) -> None:
        """Goes to where ``position`` sequences of this shard have been dealt."""
        self.position = position

    def next_batch(self, n_sequences: int) -> NDArray[np.int64]:
        """The next sequences, shape ``(n_sequences, seq_len + 1)``."""
        chosen = []
        for _ in range(n_sequences):
            epoch, index = divmod(self.position, self.epoch_length)
            chosen.append(self._epoch_order(epoch)[index * self._n_shards + self._shard])
            self.position += 1
        return cut(self._tokens, self._seq_len, np.array(chosen))

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = (epoch, generator.permutation(self.n_sequences))
        return self._order[1]


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
