"""FedOpt: local training with an adaptive outer optimizer: FedAdam, FedYogi or FedAdagrad.

With D = mean over clouds of (anchor - parameters), for each element:

    m <- beta1 m + (1 - beta1) D
    v <- v + D^2                                    adagrad
    v <- v - (1 - beta2) D^2 sign(v - D^2)          yogi
    v <- beta2 v + (1 - beta2) D^2                  adam
    anchor <- anchor - lr m / (sqrt(v) + tau)

from m = 0 and v = tau^2, without bias correction.

Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, algorithm 2; its Delta is
-D, and so is its m.
"""

from __future__ import annotations

import torch

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.local import LocalRule
from pyfedcomm.sync.outer import OuterOptimizer, State


class Adaptive(OuterOptimizer):
    """``sync.outer_optimizer``; see the equations above."""

    def __init__(self, kind: str, lr: float, beta1: float, beta2: float, tau: float) -> None:
        """kind: one of `sync.config.OUTER_OPTIMIZERS`."""
        self.kind, self.lr, self.beta1, self.beta2, self.tau = kind, lr, beta1, beta2, tau

    def start(self, anchor: torch.Tensor) -> State:
        """``mean`` (m): zeros; ``square`` (v): tau squared."""
        tau = torch.full_like(anchor, self.tau)
        return {"mean": torch.zeros_like(anchor), "square": tau.mul_(tau)}

    def step(
        self, anchor: torch.Tensor, state: State, delta: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, State]:
        """See `OuterOptimizer.step`."""
        mean = state["mean"].mul(self.beta1).add_(delta.mul(1 - self.beta1))
        square = self._square(state["square"], delta.mul_(delta))
        # Roots of floats are not rounded alike everywhere (MKL's are off by a last bit at times);
        # those of doubles, rounded to float, are the nearest floats even if a last bit is off.
        step = delta.copy_(square.double().sqrt_()).add_(self.tau)
        torch.div(mean, step, out=step).mul_(self.lr * scale)
        return torch.sub(anchor, step, out=step), {"mean": mean, "square": square}

    def _square(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The next v, from this one and D^2."""
        match self.kind:
            case "adagrad":
                return old.add(new)
            case "yogi":
                return old.sub(torch.sign(old.sub(new)).mul_(new.mul(1 - self.beta2)))
            case _:
                return old.mul(self.beta2).add_(new.mul(1 - self.beta2))


class FedOpt(LocalRule):
    """One round in ``local_steps`` steps. State: 12 bytes a parameter; a round takes 20 more."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        optimizer = Adaptive(
            config.outer_optimizer,
            config.outer_lr,
            config.outer_beta1,
            config.outer_beta2,
            config.outer_tau,
        )
        super().__init__(parameters, hierarchy, config, optimizer)
