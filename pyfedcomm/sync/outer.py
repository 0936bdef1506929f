"""Outer optimizers: from the mean of the clouds' deltas to the next anchor.

fp32, element by element, on any device. Products and sums are separate operations: one fused
multiply-add would give other bits on other machines. It knows nothing of clouds and of rounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

State = dict[str, torch.Tensor]
"""By name; each like the anchor."""


class OuterOptimizer(ABC):
    """Descends along deltas, which count as gradients (delta = anchor - parameters)."""

    def start(self, anchor: torch.Tensor) -> State:
        """The state before the first step; default none."""
        del anchor
        return {}

    @abstractmethod
    def step(
        self, anchor: torch.Tensor, state: State, delta: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, State]:
        """(next anchor, next state); takes ``delta``'s memory, leaves the others as they are.

        scale: what the learning rate is multiplied by in this step.
        """


class Remembering(OuterOptimizer):
    """Another optimizer, and how far it has moved the anchor in its last step (``movement``)."""

    def __init__(self, optimizer: OuterOptimizer) -> None:
        self._optimizer = optimizer

    def start(self, anchor: torch.Tensor) -> State:
        """The other one's, and ``movement``: zeros."""
        return {**self._optimizer.start(anchor), "movement": torch.zeros_like(anchor)}

    def step(
        self, anchor: torch.Tensor, state: State, delta: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, State]:
        """See `OuterOptimizer.step`."""
        moved, state = self._optimizer.step(anchor, state, delta, scale)
        return moved, {**state, "movement": moved - anchor}


class Sgd(OuterOptimizer):
    """Gradient descent, with momentum if there is any (else it keeps no state).

        m <- mu m + d;  a <- a - lr (d + mu m)  with Nesterov,  a - lr m  without

    as `torch.optim.SGD` defines it; lr = 1 without momentum makes the anchor the mean of the
    clouds' parameters.
    """

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov

    def start(self, anchor: torch.Tensor) -> State:
        """``momentum``: zeros."""
        return {"momentum": torch.zeros_like(anchor)} if self.momentum else {}

    def step(
        self, anchor: torch.Tensor, state: State, delta: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, State]:
        """See `OuterOptimizer.step`."""
        if self.momentum:
            momentum = state["momentum"].mul(self.momentum).add_(delta)
            state = {"momentum": momentum}
            if self.nesterov:
                delta.add_(momentum.mul(self.momentum))
            else:
                delta.copy_(momentum)
        delta.mul_(self.lr * scale)
        return torch.sub(anchor, delta, out=delta), state
