"""How the ranks of one cloud share the work on one model: ``run.parallel``.

Both are data-parallel. With ``ddp`` every rank holds the model; the sync rule averages gradients.
With ``fsdp`` (FSDP2) every rank holds some rows of each parameter, of its gradient and of its
optimizer state; torch gathers a layer's parameters while they are needed, in fp32, and averages
gradients. Clouds may differ in it, and in their numbers of ranks: see ``holding``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pyfedcomm import dtensor
from pyfedcomm.errors import ConfigError
from pyfedcomm.hierarchy import Hierarchy

PARALLEL = ("ddp", "fsdp")


def shard(model: nn.Module, hierarchy: Hierarchy) -> None:
    """Spreads a model over the ranks of the cloud, layer by layer; a lone rank keeps it all.

    Moves it to the hierarchy's device, a layer at a time if it is not there. Collective over the
    cloud, but sends nothing. Raises ConfigError for a model that FSDP cannot shard.
    """
    mesh = hierarchy.device_mesh()
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        try:
            # Sharded after each forward pass, too: what a round writes to the shards must not miss
            # a copy of the whole that somebody keeps, as after an evaluation.
            for layer in _layers(model):
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            fully_shard(model, mesh=mesh, reshard_after_forward=True)
        except ValueError as error:
            raise ConfigError(
                f"run.parallel is 'fsdp', which cannot shard this model: {error}"
            ) from error
    model.to(hierarchy.device)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` of a state in which every tensor is whole."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    ids = [i for group in saved["param_groups"] for i in group["params"]]
    state = {
        i: {
            name: dtensor.sharded_like(p, value) if _is_of(value, p) else value
            for name, value in saved["state"].get(i, {}).items()
        }
        for i, p in zip(ids, own, strict=False)
    }
    optimizer.load_state_dict({**saved, "state": {**saved["state"], **state}})


def _is_of(value: Any, parameter: torch.Tensor) -> bool:
    """Whether it has an element for each of the parameter's, unlike a count of steps."""
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost lists of modules: a transformer's layers."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)
