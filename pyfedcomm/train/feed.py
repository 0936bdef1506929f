"""The batches of one rank: prepared ahead in a thread, and dealt anew among the clouds.

The position counts what the loop has taken, not what was prepared, so a checkpoint goes on with the
very next sequence, and a new deal has nothing to call back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfedcomm.data.prefetch import Prefetch
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.data import Data


@dataclass(frozen=True)
class Batch:
    """What one forward pass works on."""

    sequences: torch.Tensor
    """Ids on the rank's device, shape ``(micro_batch, seq_len + 1)``."""
    samples: NDArray[np.int64]
    """Which ones: (epoch, part, sequence of the part), shape ``(micro_batch, 3)``."""


class Feed:
    """Endless; `close` ends the thread."""

    def __init__(
        self, config: TrainConfig, data: Data, topology: Topology, device: torch.device
    ) -> None:
        """Nothing runs before the first `next`."""
        self._data, self._topology, self._device = data, topology, device
        self._n = config.train.micro_batch
        self._depth, self._timeout = config.data.prefetch, config.run.timeout_s
        self._shard = config.data.shard
        self._deal = data.deal
        self._taken = 0  # by this rank, since the deal
        self._ahead: Prefetch[Batch] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread. `next` starts another one."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def next(self) -> Batch:
        """The next batch. Raises Error if it cannot be made, Timeout if it does not come."""
        if self._ahead is None:
            self._ahead = Prefetch(self._make(self._taken), self._depth, self._timeout)
        batch = self._ahead.next()
        self._taken += self._n
        sequences = batch.sequences.to(self._device, non_blocking=True)
        return Batch(sequences, batch.samples)

    def redeal(self, world: Group, *, timeout: float) -> dict[str, int]:
        """Deals what is left among the clouds by what each took since the deal before.

        Collective over all ranks, one number each; a deal of one cloud alone cannot change.
        Returns, the same on all ranks, each cloud's part of what was taken, and how many sequences
        ``moved``.
        """
        topology = self._topology
        told = world.all_gather_object(self._taken, timeout=timeout)
        taken = [told[ranks[0]] * len(ranks) for ranks in topology.clouds]
        self.close()
        moved = self._deal.redeal(taken, self._shard)
        self._taken = 0
        return {**dict(zip(topology.names, taken, strict=True)), "moved": moved}

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"taken": self._taken, "deal": self._deal.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`. Raises ConfigError if that was of other data or clouds."""
        self.close()
        self._deal.load_state_dict(state["deal"])
        self._taken = int(state["taken"])

    def _make(self, begin: int) -> Iterator[Batch]:
        """In the thread, so on a deal of its own."""
        deal, topology = self._deal.copy(), self._topology
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a thread's own; else it would open another GPU
        while True:
            made = self._data.sequences.batch(
                deal,
                self._data.queue,
                begin,
                self._n,
                rank=topology.local_rank,
                n_ranks=topology.local_size,
            )
            begin += self._n
            tokens = torch.from_numpy(made.tokens)
            if self._device.type == "cuda":
                tokens = tokens.pin_memory()
            yield Batch(tokens, made.samples)
