"""Clouds count by how fast they are, not by how much they happened to do in this round.

    r_i = tokens_i / seconds_i                          throughput
    r_i = tokens_i / (seconds_i + sent_i / link_i)      throughput(bandwidth)
    w_i = r_i / sum_j r_j

The second is the rate at which a cloud would train if it never waited for another: the time that
its slowest link takes for what it sent counts like time to compute.
"""

from __future__ import annotations

import math

from pyfedcomm.errors import ConfigError
from pyfedcomm.weights.base import Contribution, Observation, WeightRule


class Throughput(WeightRule):
    """Share of a cloud's rate in the sum of all."""

    def __init__(self, argument: str | None = None) -> None:
        """argument: None, or ``bandwidth``."""
        if argument not in (None, "bandwidth"):
            raise ConfigError(
                f"sync.weights is 'throughput({argument})'; it must be throughput or "
                "throughput(bandwidth)"
            )
        self.needs = ("n_tokens", "seconds")
        if argument is not None:
            self.needs += ("sent_bytes", "link_bytes_per_s")

    def weight(self, contribution: Contribution) -> float:
        """The share; alike for all clouds until all have been measured."""
        if contribution.n_tokens <= 0:
            return 0.0
        rates = [self._rate(each) for each in contribution.observed]
        known = [rate for rate in rates if rate is not None]
        if not rates or len(known) < len(rates):
            return 1.0
        total = math.fsum(known)
        # It trained in this round, so it counts, if it did nothing when it was measured.
        return known[contribution.cloud] / total if total > 0 else 1.0

    def _rate(self, each: Observation) -> float | None:
        """Tokens a second; None: not measured."""
        if any(getattr(each, name) is None for name in self.needs):
            return None
        seconds = each.seconds or 0.0
        if "link_bytes_per_s" in self.needs:
            if not each.link_bytes_per_s:
                return None
            seconds += (each.sent_bytes or 0) / each.link_bytes_per_s
        return (each.n_tokens or 0) / seconds if seconds > 0 else None
