"""Held-out loss: every cloud on its own text, then averaged over the clouds.

With ``across`` each cloud's model is also evaluated on the other clouds' text: it is the models
that travel, the text stays. Where parameters are equal everywhere that changes nothing and
nothing is sent; between rounds, or in clouds that never exchange, it tells how good a cloud's
model is for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pyfedcomm import buckets, dtensor
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class EvalResult:
    """Equal on all ranks."""

    loss: float
    """Mean of ``by_cloud``: clouds count alike, however much text they hold out."""
    by_cloud: dict[str, float]
    """Loss in nats a token on each cloud's held-out text."""


def token_losses(
    model: nn.Module, sequences: torch.Tensor, *, reduction: str = "mean"
) -> torch.Tensor:
    """Cross-entropy of each sequence's tokens but the first, given those before, in fp32.

    sequences: ids, shape ``(n, seq_len + 1)``.
    """
    logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), sequences[:, 1:].flatten(), reduction=reduction
    )


def evaluate(
    model: nn.Module,
    heldout: NDArray[np.int64],
    world: Group,
    topology: Topology,
    *,
    batch: int,
    autocast: Autocast,
    across: bool,
    timeout: float,
) -> EvalResult:
    """Held-out loss of the clouds' models. Collective over all ranks.

    heldout: this rank's sequences, shape ``(n, seq_len + 1)``; may be none if others of its cloud
        have some. batch: sequences of one forward pass. timeout: seconds to wait for the slowest.
    """
    if across and not parameters_equal(model, world, timeout=timeout):
        results = [
            _visit(model, cloud, heldout, world, topology, batch, autocast, timeout)
            for cloud in range(topology.n_clouds)
        ]
        by_cloud = {
            name: sum(r.by_cloud[name] for r in results) / len(results) for name in topology.names
        }
        return _result(by_cloud)
    return _at_home(model, heldout, world, topology, batch, autocast, timeout)


def parameters_equal(model: nn.Module, world: Group, *, timeout: float | None = None) -> bool:
    """True if every bit of every parameter is the same on all ranks. Collective."""
    mine = buckets.fingerprint(model.named_parameters())
    return len(set(world.all_gather_object(mine, timeout=timeout))) == 1


def _at_home(
    model: nn.Module,
    heldout: NDArray[np.int64],
    world: Group,
    topology: Topology,
    batch: int,
    autocast: Autocast,
    timeout: float,
) -> EvalResult:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = 0.0
    # Ranks that share a model compute together: who has fewer sequences runs some in vain.
    n_passes = dtensor.most(next(model.parameters()), -(-len(heldout) // batch))
    nothing = np.zeros((1, heldout.shape[1]), np.int64)
    with torch.no_grad(), autocast():
        for begin in range(0, n_passes * batch, batch):
            mine = heldout[begin : begin + batch]
            sequences = torch.from_numpy(mine if len(mine) else nothing).to(device)
            losses = token_losses(model, sequences, reduction="sum").item()
            total += losses if len(mine) else 0.0
    model.train(was_training)
    n_tokens = heldout.shape[0] * (heldout.shape[1] - 1)
    told = world.all_gather_object([total, n_tokens], timeout=timeout)
    return _result(
        {
            name: sum(told[r][0] for r in ranks) / sum(told[r][1] for r in ranks)
            for name, ranks in zip(topology.names, topology.clouds, strict=True)
        }
    )


def _visit(
    model: nn.Module,
    cloud: int,
    heldout: NDArray[np.int64],
    world: Group,
    topology: Topology,
    batch: int,
    autocast: Autocast,
    timeout: float,
) -> EvalResult:
    """The model of one cloud on every cloud's text; every rank has its own model back after."""
    own = [dtensor.local(p).clone() for p in model.parameters()]
    try:
        for parameter in model.parameters():
            value = dtensor.whole(parameter)
            world.broadcast(value, root=topology.clouds[cloud][0], timeout=timeout)
            dtensor.set_whole(parameter, value)
        return _at_home(model, heldout, world, topology, batch, autocast, timeout)
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), own, strict=True):
                dtensor.local(parameter).copy_(value)


def _result(by_cloud: dict[str, float]) -> EvalResult:
    return EvalResult(sum(by_cloud.values()) / len(by_cloud), by_cloud)
