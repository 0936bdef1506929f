"""Clouds count by their held-out loss: a softmax with a temperature, which sums to 1 over clouds.

    w_i = exp(-L_i / T) / sum_j exp(-L_j / T)

With T > 0 a cloud of lower loss counts more, as FedLW (Yao et al., APNet 2025) has it: what it
learnt is worth more. T < 0 turns it round, and clouds that lag behind are heard most, in the spirit
of agnostic federated learning (Mohri et al., arXiv 1902.00146). The larger |T|, the more alike.
"""

from __future__ import annotations

import math

from pyfedcomm.errors import ConfigError
from pyfedcomm.weights.base import Contribution, WeightRule


class Loss(WeightRule):
    """Softmax of -loss / T over the clouds whose loss is finite; 0 for others."""

    needs = ("loss",)

    def __init__(self, temperature: float = 1.0) -> None:
        """temperature: T, in nats a token; not 0."""
        if temperature == 0 or not math.isfinite(temperature):
            raise ConfigError(
                f"sync.weights: the temperature of loss is {temperature:g}; it must not be 0 "
                "(above 0 a lower loss counts more, below 0 a higher one)"
            )
        self.temperature = temperature

    def weight(self, contribution: Contribution) -> float:
        """The softmax; alike for all clouds before the first evaluation."""
        if contribution.n_tokens <= 0:
            return 0.0
        if any(each.loss is None for each in contribution.observed) or not contribution.observed:
            return 1.0
        scores = [
            -each.loss / self.temperature if math.isfinite(each.loss) else -math.inf
            for each in contribution.observed
            if each.loss is not None
        ]
        best = max(scores)
        if best == -math.inf:
            return 0.0
        # Counted from the best one: nothing overflows, and its own term is 1.
        terms = [math.exp(score - best) for score in scores]
        return terms[contribution.cloud] / math.fsum(terms)
