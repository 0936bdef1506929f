"""What a weighting rule is: from what clouds did in a round to what one of them counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pyfedcomm.errors import NonFinite


@dataclass(frozen=True)
class Observation:
    """What the training loop measured of one cloud of late; None: not yet, or not at all."""

    loss: float | None = None
    """Nats a token, of its model on its held-out text."""
    n_tokens: int | None = None
    """Trained on since the observation before."""
    seconds: float | None = None
    """That its slowest rank computed for them."""
    sent_bytes: int | None = None
    """Frames to other clouds in this time, of its busiest rank."""
    link_bytes_per_s: float | None = None
    """Of its slowest link to another cloud, as measured."""


@dataclass(frozen=True)
class Contribution:
    """What one cloud did in one round, and what is known of all."""

    n_tokens: int
    """Tokens that its ranks trained on, together."""
    cloud: int = 0
    """Its index."""
    observed: tuple[Observation, ...] = ()
    """Of every cloud, in cloud order, the same on all ranks; empty: nothing yet."""


class WeightRule(ABC):
    """Gives a cloud's weight; the same on all its ranks, finite and >= 0."""

    needs: tuple[str, ...] = ()
    """Fields of `Observation` without which the rule has nothing to go by."""

    @abstractmethod
    def weight(self, contribution: Contribution) -> float:
        """Weight of the cloud's contribution; only its ratio to the other clouds' matters.

        0 for a cloud that did nothing: it then receives the round's result and adds nothing.
        """

    def check(self, observed: Sequence[Observation], names: Sequence[str]) -> None:
        """Raises NonFinite for what cannot be weighed, naming the cloud; the same on all ranks."""
        for name, each in zip(names, observed, strict=True):
            if "loss" in self.needs and each.loss is not None and not math.isfinite(each.loss):
                raise NonFinite(
                    f"[weights] the held-out loss of cloud {name} is {each.loss}, which gives no "
                    "weight: it diverged; lower train.lr or set train.clip, or let it count for "
                    "nothing until it is better: sync.nonfinite = 'exclude'"
                )
