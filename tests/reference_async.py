"""The rule `async` once more: one process, plain numpy, told in which order things happen.

The truth that `pyfedcomm.sync.asynchronous` is held against, with plain SGD as the inner optimizer.
It shares no code with the library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from reference_sync import F, Vector


def as_it_is(_: int, values: Vector) -> Vector:
    return values


@dataclass
class Cloud:
    params: Vector
    start: Vector
    """What it was last sent, and so what its delta counts from."""
    version: int = 0
    steps: int = 0
    since: int = 0
    """Steps since its last push."""
    weight: float = 0.0
    sent: Vector | None = None
    """Its parameters when it pushed, while the reply is under way."""
    reply: tuple[Vector, int] | None = None
    due: int = 0


@dataclass
class AsyncRun:
    """Steps one cloud after the other, in an order that the caller gives."""

    start: Vector
    tokens: Sequence[int]
    """Of a step of each cloud."""
    gradient: Callable[[int, int], Vector]
    """Of (cloud, step of that cloud)."""
    inner_lr: float
    local_steps: int
    overlap: int = 0
    aggregation: str = "fedbuff"
    buffer: int = 2
    lr: float = 1.0
    alpha: float = 0.5
    staleness: float = 0.5
    up: Callable[[int, Vector], Vector] = as_it_is
    """What the host decodes of a cloud's delta; may remember errors."""
    down: Callable[[int, Vector], Vector] = as_it_is
    """What a cloud decodes of a difference."""
    clouds: list[Cloud] = field(init=False)

    def __post_init__(self) -> None:
        self.clouds = [Cloud(self.start.copy(), self.start.copy()) for _ in self.tokens]
        self.model, self.version = self.start.copy(), 0
        self.sum, self.weights = np.zeros_like(self.start), list[float]()

    def step(self, c: int) -> None:
        cloud = self.clouds[c]
        cloud.params = cloud.params - F(self.inner_lr) * self.gradient(c, cloud.steps)
        cloud.steps += 1
        if cloud.sent is not None and cloud.steps == cloud.due:
            self.arrive(c)
        cloud.since += 1
        if cloud.since == self.local_steps:
            self.push(c)
            self.answer(c)
            if self.overlap == 0:
                self.arrive(c)

    def push(self, c: int) -> None:
        cloud = self.clouds[c]
        delta = cloud.start - cloud.params
        weight = float(cloud.since * self.tokens[c])
        if weight:
            self.apply(c, delta if c == 0 else self.up(c, delta), weight)
        cloud.sent, cloud.since = cloud.params, 0
        cloud.due = cloud.steps + self.overlap

    def apply(self, c: int, delta: Vector, weight: float) -> None:
        cloud = self.clouds[c]
        cloud.weight = weight
        damped = (self.version - cloud.version + 1) ** -self.staleness
        if self.aggregation == "fedasync":
            weights = [each.weight for each in self.clouds if each.weight]
            share = min(1.0, self.alpha * damped * weight / (sum(weights) / len(weights)))
            theirs = cloud.start - delta
            self.model = F(1 - share) * self.model + F(share) * theirs
            self.version += 1
            return
        self.sum = self.sum + F(weight * damped) * delta
        self.weights.append(weight)
        if len(self.weights) == self.buffer:
            self.flush()

    def flush(self) -> None:
        if self.weights:
            self.model = self.model - F(self.lr) * (self.sum / F(sum(self.weights)))
            self.version += 1
        self.sum, self.weights = np.zeros_like(self.start), []

    def answer(self, c: int) -> None:
        cloud = self.clouds[c]
        model = self.model
        if c > 0:
            model = cloud.start + self.down(c, self.model - cloud.start)
        cloud.reply = model.copy(), self.version

    def arrive(self, c: int) -> None:
        cloud = self.clouds[c]
        assert cloud.reply is not None
        assert cloud.sent is not None
        cloud.start, cloud.version = cloud.reply
        if cloud.params is cloud.sent:
            cloud.params = cloud.start.copy()
        else:
            cloud.params = cloud.start + (cloud.params - cloud.sent)
        cloud.sent = cloud.reply = None

    def finish(self) -> None:
        for c, cloud in enumerate(self.clouds):
            if cloud.sent is not None:
                self.arrive(c)
        for c in range(len(self.clouds)):
            self.push(c)
        self.flush()
        for cloud in self.clouds:
            cloud.params, cloud.start = self.model.copy(), self.model.copy()
            cloud.version, cloud.sent = self.version, None
