"""The sync rules once more: one process, plain numpy, as slow and as obvious as possible.

The truth that `pyfedcomm.sync` is held against, with plain SGD as the inner optimizer. It shares no
code with the library. Parameters are one flat fp32 vector a cloud. Inputs are meant to be small
integers times powers of two, for which no sum over clouds rounds: the order in which the library
adds cannot matter, and the comparison can be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
F = np.float32


def weighted_mean(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """sum(w_i x_i) / sum(w_i) in fp32, in order; zeros where all weights are zero."""
    if len(vectors) == 1 and weights[0]:
        return vectors[0]  # as it is: w x / w may round
    total = np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        if weight:
            total = total + F(weight) * vector
    return total / F(sum(weights)) if sum(weights) else total


class Outer:
    """A rule's outer optimizer, for one fragment: from a mean delta to how far the anchor moves."""

    def __init__(self, run: Run, n: int) -> None:
        self.run = run
        self.momentum = np.zeros(n, F)
        self.mean = np.zeros(n, F)
        self.square = np.full(n, F(run.tau) * F(run.tau), F)

    def step(self, delta: Vector, scale: float) -> Vector:
        run = self.run
        lr, mu = F(run.outer_lr * scale), F(run.outer_momentum)
        move: Vector
        match run.rule:
            case "fedavg":
                move = delta
            case "sparse" | "onebit":
                move = lr * delta
            case "fedopt":
                self.mean = F(run.beta1) * self.mean + F(1 - run.beta1) * delta
                self.square = self.next_square(delta * delta)
                move = lr * (self.mean / (np.sqrt(self.square) + F(run.tau)))
            case _:
                self.momentum = mu * self.momentum + delta
                move = lr * (delta + mu * self.momentum if run.nesterov else self.momentum)
        return move

    def next_square(self, new: Vector) -> Vector:
        old, beta2 = self.square, F(self.run.beta2)
        rest = F(1 - self.run.beta2)
        result: Vector
        match self.run.optimizer:
            case "adagrad":
                result = old + new
            case "adam":
                result = beta2 * old + rest * new
            case _:
                result = old - (rest * new) * np.sign(old - new)
        return result


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
    optimizer: str = "adam"
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    fragments: Sequence[Any] = (slice(None),)
    """Indices of each, for streaming; the others have one, of all elements."""
    overlap: int = 0
    mixing: float = 0.0
    local_momentum: float = 0.0
    horizon: int = 0
    """Steps of the run, if the outer step size falls towards its end."""
    decay: float = 0.0
    end: float = 1.0
    coded: Callable[[int, Vector], Vector] = lambda _, delta: delta
    """What the clouds decode of a cloud's delta; may remember errors."""
    params: list[Vector] = field(init=False)
    """Of each cloud, now."""

    def __post_init__(self) -> None:
        n = len(self.clouds)
        if self.rule != "streaming":
            self.fragments, self.overlap, self.mixing = (slice(None),), 0, 0.0
        self.params = [self.start.copy() for _ in range(n)]
        self.anchor = self.start.copy()
        self.movement = np.zeros_like(self.start)  # of the anchor, in each fragment's last round
        self.outer = [Outer(self, len(self.anchor[part])) for part in self.fragments]
        self.tokens = [[0] * n for _ in self.fragments]
        self.flying: dict[int, tuple[int, int, Vector]] = {}  # sent and due after, mean delta
        self.rounds = self.steps = 0
        self.position = 0  # steps in this round

    def step(self, gradients: Sequence[Vector], tokens: Sequence[int]) -> None:
        """One optimizer step: gradients and tokens of each rank."""
        inside = [
            weighted_mean([gradients[r] for r in ranks], [tokens[r] for r in ranks])
            for ranks in self.clouds
        ]
        in_step = [sum(tokens[r] for r in ranks) for ranks in self.clouds]
        if self.rule == "gradient":
            inside = [weighted_mean(inside, self._weights(in_step))] * len(inside)
            self.rounds += 1
        for c, gradient in enumerate(inside):
            repeated = F(self.local_momentum / self.local_steps) * self.movement
            self.params[c] = self.params[c] + repeated - F(self.inner_lr) * gradient
            for counted in self.tokens:
                counted[c] += in_step[c]
        self.steps += 1
        self.position = self.position % self.local_steps + 1
        if self.rule in ("gradient", "isolated"):
            return
        for p in range(len(self.fragments)):
            offset = (p + 1) * self.local_steps // len(self.fragments)
            if self.position == offset:
                self.send(p)
        for p, (_, due, _) in list(self.flying.items()):
            if due == self.steps:
                self.arrive(p, self.mixing)

    def finish(self) -> None:
        if self.rule in ("gradient", "isolated"):
            return
        for p in range(len(self.fragments)):
            if p not in self.flying and any(self.tokens[p]):
                self.send(p)
            if p in self.flying:
                self.arrive(p, 0.0)
            self.tokens[p] = [0] * len(self.clouds)
        self.position = 0
        self.params = [self.anchor.copy() for _ in self.clouds]

    def send(self, p: int) -> None:
        part = self.fragments[p]
        deltas = [self.anchor[part] - params[part] for params in self.params]
        deltas = [self.coded(c, delta) for c, delta in enumerate(deltas)]
        mean = weighted_mean(deltas, self._weights(self.tokens[p]))
        self.flying[p] = (self.steps, self.steps + self.overlap, mean)
        self.tokens[p] = [0] * len(self.clouds)

    def arrive(self, p: int, mixing: float) -> None:
        part = self.fragments[p]
        sent_after, _, mean = self.flying.pop(p)
        before = self.anchor[part].copy()
        self.anchor[part] = self.anchor[part] - self.outer[p].step(mean, self.scale(sent_after))
        self.movement[part] = self.anchor[part] - before
        for params in self.params:
            if mixing:
                params[part] = F(mixing) * params[part] + F(1 - mixing) * self.anchor[part]
            else:
                params[part] = self.anchor[part]
        self.rounds += 1

    def scale(self, sent_after: int) -> float:
        """Of the outer step size, for a fragment that was sent after so many steps."""
        if not self.horizon:
            return 1.0
        left = max(0.0, 1 - sent_after / self.horizon)
        return 1.0 if left >= self.decay else self.end + (1 - self.end) * left / self.decay

    def _weights(self, tokens: Sequence[int]) -> list[float]:
        if self.weights != "tokens":  # alike, while nothing is known of the clouds
            return [1.0 if n else 0.0 for n in tokens]
        return [float(n) for n in tokens]
