"""The sync rules once more: one process, plain numpy, as slow and as obvious as possible.

The truth that `pyfedcomm.sync` is held against, with the ``fp32`` codec and plain SGD as the inner
optimizer. It shares no code with the library. Parameters are one flat fp32 vector a cloud. Inputs
are meant to be small integers times powers of two, for which no sum rounds: the order in which the
library adds cannot matter, and the comparison can be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
F = np.float32


def weighted_mean(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """sum(w_i x_i) / sum(w_i) in fp32, in order; zeros where all weights are zero."""
    total = np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        if weight:
            total = total + F(weight) * vector
    return total / F(sum(weights)) if sum(weights) else total


@dataclass
class Run:
    """Clouds that train one vector: ``clouds[c]`` lists the ranks of cloud c."""

    start: Vector
    clouds: Sequence[Sequence[int]]
    inner_lr: float
    rule: str = "diloco"
    local_steps: int = 1
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    nesterov: bool = True
    weights: str = "tokens"
    params: list[Vector] = field(init=False)
    """Of each cloud, now."""

    def __post_init__(self) -> None:
        n = len(self.clouds)
        self.params = [self.start.copy() for _ in range(n)]
        self.anchor = self.start.copy()
        self.momentum = np.zeros_like(self.start)
        self.tokens = [0] * n
        self.steps = 0

    def step(self, gradients: Sequence[Vector], tokens: Sequence[int]) -> None:
        """One optimizer step: gradients and tokens of each rank."""
        inside = [
            weighted_mean([gradients[r] for r in ranks], [tokens[r] for r in ranks])
            for ranks in self.clouds
        ]
        in_step = [sum(tokens[r] for r in ranks) for ranks in self.clouds]
        if self.rule == "gradient":
            inside = [weighted_mean(inside, self._weights(in_step))] * len(inside)
        for c, gradient in enumerate(inside):
            self.params[c] = self.params[c] - F(self.inner_lr) * gradient
            self.tokens[c] += in_step[c]
        self.steps += 1
        if self.rule == "diloco" and self.steps == self.local_steps:
            self.round()

    def finish(self) -> None:
        if self.rule == "diloco" and self.steps:
            self.round()

    def round(self) -> None:
        deltas = [self.anchor - params for params in self.params]
        delta = weighted_mean(deltas, self._weights(self.tokens))
        mu = F(self.outer_momentum)
        self.momentum = mu * self.momentum + delta
        step = delta + mu * self.momentum if self.nesterov else self.momentum
        self.anchor = self.anchor - F(self.outer_lr) * step
        self.params = [self.anchor.copy() for _ in self.clouds]
        self.tokens = [0] * len(self.clouds)
        self.steps = 0

    def _weights(self, tokens: Sequence[int]) -> list[float]:
        if self.weights == "uniform":
            return [1.0 if n else 0.0 for n in tokens]
        return [float(n) for n in tokens]
