"""Data-parallel training across clouds: gradients are averaged over all ranks at every step.

The plainest rule and the most bytes; every other rule is compared with it. The optimizer sees
the same gradients on every rank, so parameters stay equal without being exchanged.
"""

from __future__ import annotations

from typing import Any

import torch

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.exchange import Exchanged
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.base import SyncRule
from pyfedcomm.sync.config import SyncConfig


class Gradient(SyncRule):
    """One round a step. Memory: one fp32 copy of the gradients that the rank holds."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config)
        self._flat: torch.Tensor | None = None
        if not self._sharded:
            self._flat = torch.zeros(self._gradients.n_elems, device=hierarchy.device)
        self._feedback = self._add_feedback(self._gradients.n_elems)

    def _after_backward(self, n_tokens: int) -> None:
        with self._naming(self._gradients.layout, self.round):
            held, exchanged = self._mean(
                n_tokens,
                codec=self.config.codec,
                algorithm=self.config.algorithm,
                feedback=self._feedback,
                round=self.round,
                nonfinite=self.config.nonfinite,
            )
        if self._feedback is not None:
            self._feedback.commit()
        self._set_gradients(held)
        self._count_excluded(exchanged)
        self.round += 1

    def _mean(self, n_tokens: int, **options: Any) -> tuple[torch.Tensor, Exchanged]:
        """The mean over all clouds, as this rank holds it."""
        bucket, hierarchy = self._gradients, self.hierarchy
        gradients = [p.grad for p in self._parameters]
        if self._flat is None:
            weight = self._cloud_weight(hierarchy.sum_inside(n_tokens))
            part = bucket.shard_of(gradients)
            done = hierarchy.exchange_shard(
                part, part, n_elems=bucket.n_elems, weight=weight, **options
            )
            return bucket.spread(part), done
        bucket.pack(gradients, self._flat)
        done = hierarchy.all_reduce(
            self._flat, weight=n_tokens, cloud_weight=self._cloud_weight, **options
        )
        return self._flat, done

    def after_step(self, n_tokens: int) -> None:
        """Nothing: the gradients were already everybody's."""

    def finish(self) -> None:
        """Nothing: parameters are equal after every step."""
