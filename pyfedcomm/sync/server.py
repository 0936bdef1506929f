"""The model that clouds without rounds of their own push to: FedBuff and FedAsync.

FedBuff collects K deltas and steps along their mean, each damped by how old the model was that it
counts from:

    s(tau) = (tau + 1)^-a;  d = sum w_i s(tau_i) delta_i / sum w_i;  model <- model - lr d

FedAsync takes every cloud's parameters as they come, and mixes them in:

    model <- (1 - m) model + m w_i;  m = min(1, alpha s(tau) w_i / mean of the clouds' weights)

tau counts the model's versions since the one that the cloud started from. Weights, the second
paper's FedBuff has none and the first one's FedAsync neither, make a cloud count by what it did.

Arithmetic and bookkeeping only: it sends nothing, and what is pushed arrives decoded. One thread at
a time.

Sources: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", arXiv
2106.06639, algorithm 1, and its polynomial damping with a = 1/2; Xie et al., "Asynchronous
Federated Optimization", arXiv 1903.03934, algorithm 1 and section 5.2 (polynomial).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyfedcomm.errors import ConfigError
from pyfedcomm.sync.config import SyncConfig


@dataclass
class Client:
    """What the server knows of one cloud."""

    model: torch.Tensor
    """What the cloud has: the sum of all that was sent to it, bit for bit the same at both ends."""
    version: int = 0
    """Of the model that it was last sent."""
    weight: float = 0.0
    """Of its last push; 0 before."""
    steps: int = 0
    """Optimizer steps of all its pushes."""


class Server:
    """fp32, on one device; 4 bytes a parameter, 4 for each cloud, and 4 for the buffer."""

    def __init__(self, model: torch.Tensor, n_clouds: int, config: SyncConfig) -> None:
        """model: flat, what all clouds start from; copied."""
        self._buffers = config.aggregation == "fedbuff"
        self._alpha, self._decay, self._lr = config.alpha, config.staleness, config.outer_lr
        self._size = config.buffer or n_clouds
        self.model = model.clone()
        self.clients = [Client(model.clone()) for _ in range(n_clouds)]
        self.version = self.pushes = 0
        self._sum = torch.zeros_like(model)
        self._weights: list[float] = []

    @property
    def steps(self) -> float:
        """How far the run is: the mean over clouds of the optimizer steps that were pushed."""
        return sum(client.steps for client in self.clients) / len(self.clients)

    def push(self, cloud: int, delta: torch.Tensor, weight: float, steps: int) -> None:
        """A cloud has moved by ``-delta`` from what it was last sent, in ``steps`` steps.

        weight: 0 where nothing is to count; ``delta`` is then not looked at. Takes its memory.
        """
        client = self.clients[cloud]
        client.steps += steps
        self.pushes += 1
        if weight <= 0:
            return
        client.weight = weight
        damped = (self.version - client.version + 1) ** -self._decay
        if self._buffers:
            self._sum.add_(delta.mul_(weight * damped))
            self._weights.append(weight)
            if len(self._weights) >= self._size:
                self.flush()
            return
        known = [c.weight for c in self.clients if c.weight > 0]
        share = min(1.0, self._alpha * damped * weight * len(known) / sum(known))
        theirs = torch.sub(client.model, delta, out=delta)
        self.model.mul_(1 - share).add_(theirs.mul_(share))
        self.version += 1

    def flush(self) -> None:
        """Steps along what is in the buffer, however much that is."""
        if self._weights:
            mean = self._sum.div_(sum(self._weights))
            self.model.sub_(mean.mul_(self._lr))
            self._sum.zero_()
            self._weights.clear()
            self.version += 1

    def difference(self, cloud: int) -> torch.Tensor:
        """What that cloud lacks; new memory."""
        return torch.sub(self.model, self.clients[cloud].model)

    def sent(self, cloud: int, decoded: torch.Tensor | None = None) -> None:
        """The cloud has been sent so much of it, default all, and starts from there."""
        client = self.clients[cloud]
        if decoded is None:
            client.model.copy_(self.model)
        else:
            client.model.add_(decoded)
        client.version = self.version

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values by flat name."""
        return {
            "server.version": self.version,
            "server.pushes": self.pushes,
            "server.model": self.model.clone(),
            "server.sum": self._sum.clone(),
            "server.weights": list(self._weights),
            "server.clients": [[c.version, c.weight, c.steps] for c in self.clients],
            **{f"server.client.{i}": c.model.clone() for i, c in enumerate(self.clients)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`. Raises `ConfigError` where it does not fit."""
        names = ["model", "sum", *(f"client.{i}" for i in range(len(self.clients)))]
        for name in names:
            tensor = state.get(f"server.{name}")
            if not isinstance(tensor, torch.Tensor) or tensor.shape != self.model.shape:
                raise ConfigError(
                    f"the checkpoint's sync state has no 'server.{name}' of "
                    f"{self.model.numel()} elements; resume with the model and the clouds that it "
                    "was written with"
                )
        self.version, self.pushes = int(state["server.version"]), int(state["server.pushes"])
        self.model.copy_(state["server.model"])
        self._sum.copy_(state["server.sum"])
        self._weights = [float(w) for w in state["server.weights"]]
        for i, (version, weight, steps) in enumerate(state["server.clients"]):
            client = self.clients[i]
            client.model.copy_(state[f"server.client.{i}"])
            client.version, client.weight, client.steps = int(version), float(weight), int(steps)
