"""Clouds count by the tokens they trained on: the mean over tokens, as FedAvg weighs clients.

Source: McMahan et al., arXiv 1602.05629, algorithm 1 (n_k / n).
"""

from __future__ import annotations

from pyfedcomm.weights.base import Contribution, WeightRule


class Tokens(WeightRule):
    """Weight = tokens."""

    def weight(self, contribution: Contribution) -> float:
        """``n_tokens``."""
        return float(contribution.n_tokens)
