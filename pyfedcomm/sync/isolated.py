"""The baseline: every cloud trains by itself, and nothing crosses between clouds."""

from __future__ import annotations

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.base import SyncRule
from pyfedcomm.sync.config import SyncConfig


class Isolated(SyncRule):
    """Gradients are averaged inside each cloud; clouds drift apart. ``round`` stays 0."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config)
        self._memory = self._scratch()

    def _after_backward(self, n_tokens: int) -> None:
        self._average_inside(n_tokens, self._memory)

    def after_step(self, n_tokens: int) -> None:
        """Nothing to exchange."""

    def finish(self) -> None:
        """Nothing to exchange: equal inside each cloud, different between clouds."""
