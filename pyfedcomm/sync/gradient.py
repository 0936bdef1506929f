"""Data-parallel training across clouds: gradients are averaged over all ranks at every step.

The plainest rule and the most bytes; every other rule is compared with it. The optimizer sees
the same gradients on every rank, so parameters stay equal without being exchanged.
"""

from __future__ import annotations

import torch

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.base import SyncRule
from pyfedcomm.sync.config import SyncConfig


class Gradient(SyncRule):
    """One round a step. Memory: one fp32 copy of the gradients."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config)
        n_elems = hierarchy.padded(self._gradient_layout.n_elems)
        self._flat = torch.zeros(n_elems, device=hierarchy.device)
        self._feedback = self._add_feedback(n_elems)

    def _after_backward(self, n_tokens: int) -> None:
        self._pack_gradients(self._flat)
        with self._naming(self._gradient_layout, self.round):
            exchanged = self.hierarchy.all_reduce(
                self._flat,
                weight=n_tokens,
                cloud_weight=self._cloud_weight,
                codec=self.config.codec,
                algorithm=self.config.algorithm,
                feedback=self._feedback,
                round=self.round,
                nonfinite=self.config.nonfinite,
            )
        if self._feedback is not None:
            self._feedback.commit()
        self._set_gradients(self._flat)
        self._count_excluded(exchanged)
        self.round += 1

    def after_step(self, n_tokens: int) -> None:
        """Nothing: the gradients were already everybody's."""

    def finish(self) -> None:
        """Nothing: parameters are equal after every step."""
