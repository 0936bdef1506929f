"""A fragment: parameters that are exchanged together, and what a rank keeps of them.

The anchor is where the clouds last agreed, in fp32 whatever the parameters are, and exists once
per cloud: each gateway keeps its rail's shard of it, and of the outer optimizer's state. When a
fragment is exchanged is decided in ``local``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyfedcomm.exchange import Exchange, Exchanged
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.holding import Bucket
from pyfedcomm.sync.on_host import empty_like, parts, to_host
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
        bucket: Bucket,
        optimizer: OuterOptimizer,
        *,
        on_host: bool = False,
    ) -> None:
        """Collective over the cloud. The parameters have the values that training starts from.

        index: the bucket's number. on_host: keep anchor and outer state in host memory.
        """
        self.index, self.bucket = index, bucket
        self.values = [tensor for _, tensor in named]
        self.feedback: ErrorFeedback | None = None
        self.steps = 0
        """Optimizer steps since it was last sent; on this rank ``tokens`` of them."""
        self.tokens = 0
        self.movement: torch.Tensor | None = None
        """What this rank holds of the anchor's last movement; None until `recall`."""
        self.anchor = bucket.shard_of(self.values)
        self.outer: State = {}
        if self.anchor is not None:
            self.anchor = to_host(self.anchor) if on_host else self.anchor
            self.outer = optimizer.start(self.anchor)
            if on_host:
                like = self.anchor
                self.outer = {name: empty_like(like).copy_(t) for name, t in self.outer.items()}

    def delta(self) -> torch.Tensor | None:
        """This cloud's contribution to its gateway's shard: where it started minus where it is.

        Collective over the cloud.
        """
        now, shard = self.bucket.shard_of(self.values), self.bucket.shard
        if now is None or self.anchor is None or shard is None:
            return None
        for part in parts(now.numel()):
            start = self.anchor[part].to(now.device, copy=True)
            self.bucket.layout.round_(start, begin=shard.start + part.start)
            torch.sub(start, now[part], out=now[part])
        return now

    def last_movement(self, outer: State) -> torch.Tensor:
        """What this rank holds of ``outer["movement"]``, in memory of its own. Collective."""
        held = self.bucket.spread(outer.get("movement"))[: self.bucket.n_held]
        return held.to(self.bucket.device, copy=self.bucket.memory is not None)

    def recall(self) -> None:
        """Makes the last movement known to this rank, if it is not. Collective."""
        if self.movement is None:
            self.movement = self.last_movement(self.outer)

    def repeat(self, share: float) -> None:
        """Parameters move by ``share`` of the last movement."""
        assert self.movement is not None, "recall() comes first"
        self.bucket.add(self.movement, self.values, share)

    def set_values(self, values: torch.Tensor, *, mixing: float) -> None:
        """Parameters become ``mixing * parameters + (1 - mixing) * values``, rounded once.

        values: as `Bucket.spread` returns them.
        """
        if mixing:
            own = torch.empty(self.bucket.n_held, device=self.bucket.device)
            self.bucket.pack(self.values, own)
            others = values[: self.bucket.n_held].to(own.device).mul(1 - mixing)
            values = own.mul_(mixing).add_(others)
        self.bucket.unpack(values, self.values)


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
    done: int
    """Steps of the run when it was sent: the same in all clouds, where own steps are not."""
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
    """What this rank holds of the new anchor."""
    movement: torch.Tensor | None
    """And of its movement, where local steps repeat it."""
    exchanged: Exchanged
