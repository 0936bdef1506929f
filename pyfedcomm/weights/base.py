"""What a weighting rule is: from what a cloud did in a round to what it counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Contribution:
    """What one cloud did in one round."""

    n_tokens: int
    """Tokens that its ranks trained on, together."""


class WeightRule(ABC):
    """Gives a cloud's weight; the same on all its ranks, finite and >= 0."""

    @abstractmethod
    def weight(self, contribution: Contribution) -> float:
        """Weight of the cloud's contribution; only its ratio to the other clouds' matters.

        0 for a cloud that did nothing: it then receives the round's result and adds nothing.
        """
