"""Clouds count alike, however fast they are: as DiLoCo (arXiv 2311.08105) averages them."""

from __future__ import annotations

from pyfedcomm.weights.base import Contribution, WeightRule


class Uniform(WeightRule):
    """Weight = 1 for every cloud that trained at all."""

    def weight(self, contribution: Contribution) -> float:
        """1, or 0 for a cloud without tokens."""
        return 1.0 if contribution.n_tokens > 0 else 0.0
