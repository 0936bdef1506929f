"""A fragment: parameters that are exchanged together, and what a rank keeps of them.

The anchor is where the clouds last agreed, in fp32 whatever the parameters are, and exists once
per cloud: each gateway keeps its rail's shard of it, and of the outer optimizer's state. When a
fragment is exchanged is decided in ``local``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyfedcomm.buckets import BucketLayout
from pyfedcomm.exchange import Exchange, Exchanged
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.outer import OuterOptimizer, State


class Fragment:
    """Some of the model's parameters, as one bucket.

    Parameters of lower precision restart from the *rounded* anchor, and the delta counts from
    there: rounding is no movement, and what it hides of the anchor is not lost.
    """

    def __init__(
        self,
        index: int,
        named: Sequence[tuple[str, torch.Tensor]],
        hierarchy: Hierarchy,
        optimizer: OuterOptimizer,
    ) -> None:
        """index: the bucket's number. The parameters have the values that training starts from."""
        self.index, self.device = index, hierarchy.device
        self.values = [tensor for _, tensor in named]
        self.layout = BucketLayout.of(named)
        self.n_elems = hierarchy.padded(self.layout.n_elems)
        self.shard = hierarchy.shard(self.n_elems)
        self.feedback: ErrorFeedback | None = None
        self.steps = 0
        """Optimizer steps since it was last sent; on this rank ``tokens`` of them."""
        self.tokens = 0
        self.memory: torch.Tensor | None = None
        """Where its cloud's ranks receive it, `n_elems` elements; None for a lone rank."""
        self.anchor = self._packed_shard()
        self.outer: State = {} if self.anchor is None else optimizer.start(self.anchor)

    def delta(self) -> torch.Tensor | None:
        """This cloud's contribution to its gateway's shard: where it started minus where it is."""
        now = self._packed_shard()
        if now is None or self.anchor is None or self.shard is None:
            return None
        start = self.layout.round_(self.anchor.clone(), begin=self.shard.start)
        return torch.sub(start, now, out=now)

    def spread(self, anchor: torch.Tensor | None, hierarchy: Hierarchy) -> torch.Tensor:
        """The whole of an anchor, from the shards of the cloud's gateways; in `memory`."""
        if self.memory is None:
            assert anchor is not None  # a lone rank is its cloud's only gateway
            return anchor
        if anchor is not None and self.shard is not None:
            self.memory[self.shard].copy_(anchor)
        hierarchy.gather_inside(self.memory)
        return self.memory

    def set_values(self, values: torch.Tensor, *, mixing: float) -> None:
        """Parameters become ``mixing * parameters + (1 - mixing) * values``, rounded once."""
        if mixing:
            own = torch.empty(self.layout.n_elems, device=self.device)
            self.layout.pack(self.values, own)
            values = own.mul_(mixing).add_(values[: self.layout.n_elems].mul(1 - mixing))
        self.layout.unpack(values, self.values)

    def _packed_shard(self) -> torch.Tensor | None:
        if self.shard is None:
            return None
        part = torch.empty(self.shard.stop - self.shard.start, device=self.device)
        self.layout.pack(self.values, part, begin=self.shard.start)
        return part


@dataclass
class Flight:
    """A fragment's delta under way."""

    fragment: Fragment
    delta: torch.Tensor | None
    """This gateway's shard; None if this rank is no gateway."""
    weight: float
    """Of the cloud."""
    round: int
    due: int
    """The step after which its result is applied."""
    out: torch.Tensor | None = None
    """Where the clouds' mean arrives."""
    exchange: Exchange | None = None
    """None after a resume, until it is begun again."""


@dataclass(frozen=True)
class Arrival:
    """What came of a flight, not yet applied."""

    fragment: Fragment
    anchor: torch.Tensor | None
    outer: State
    values: torch.Tensor
    """The whole new anchor."""
    exchanged: Exchanged
