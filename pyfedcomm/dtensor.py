"""Parameters of which each rank of a cloud holds a part: FSDP2's ``fully_shard``.

The only place that knows torch's DTensor. A model counts as *sharded* if its parameters are
DTensors over the ranks of this rank's cloud, each rank with some of the first dimension's rows
(``Shard(0)``). What else a DTensor can be (tensor-parallel, on a mesh of more dimensions) is
refused by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch

from pyfedcomm.errors import ConfigError


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor."""
    # Loading the module takes half a second, and without it there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it, the memory itself; a plain tensor is held as a whole."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor
    with torch.no_grad():
        part: torch.Tensor = sharded.to_local()
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it; the tensor itself if it is plain. Collective over the ranks that hold a part."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor
    with torch.no_grad():
        full: torch.Tensor = sharded.full_tensor()
    return full


def set_whole(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """The tensor becomes ``value``, of the whole tensor's shape: each rank takes what it holds."""
    part = local(tensor)
    if is_sharded(tensor):
        sharded: Any = tensor
        mesh = sharded.device_mesh
        value = value[rows(tensor.shape[0], mesh.size(), mesh.get_local_rank())]
    with torch.no_grad():
        part.copy_(value)


def sharded_like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value``, of the whole parameter's shape, held as the parameter is; its dtype stays."""
    if not is_sharded(parameter):
        return value
    held = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
    set_whole(held, value)
    return held


def gathered(tree: Any, *, keep: bool) -> Any:
    """The same nested dicts and lists with whole tensors, in host memory, for sharded ones.

    keep: False where they are not needed; they are empty then. One that occurs twice is one
    afterwards. Collective over the ranks that hold parts.
    """
    seen: dict[int, torch.Tensor] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: visit(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(visit(value) for value in node)
        if isinstance(node, torch.Tensor) and is_sharded(node):
            if id(node) not in seen:
                value = whole(node)
                seen[id(node)] = value.cpu() if keep else value.new_empty(0, device="cpu")
            return seen[id(node)]
        return node

    return visit(tree)


def most(tensor: torch.Tensor, number: int) -> int:
    """The largest ``number`` among the ranks that hold parts of a tensor. Collective over them."""
    if not is_sharded(tensor):
        return number
    sharded: Any = tensor
    numbers = torch.tensor([number], device=local(tensor).device)
    torch.distributed.all_reduce(
        numbers, torch.distributed.ReduceOp.MAX, group=sharded.device_mesh.get_group()
    )
    return int(numbers.item())


def rows(n_rows: int, n_ranks: int, rank: int) -> slice:
    """The rows that one of ``n_ranks`` holds by ``Shard(0)``: equally many, the last ones fewer."""
    each = -(-n_rows // n_ranks)
    return slice(min(rank * each, n_rows), min((rank + 1) * each, n_rows))


def check(named: Iterable[tuple[str, torch.Tensor]], n_ranks: int, rank: int) -> bool:
    """Whether these parameters are sharded over the ranks of a cloud.

    n_ranks, rank: the cloud's ranks, and this one's index among them.
    Raises ConfigError for a placement that is not understood, and where some are sharded and others
    are not.
    """
    named = list(named)
    for name, tensor in named:
        if is_sharded(tensor):
            _check_placement(name, tensor, n_ranks, rank)
    plain = [name for name, tensor in named if not is_sharded(tensor)]
    if plain and len(plain) < len(named):
        raise ConfigError(
            f"parameter {plain[0]!r} is not sharded, but others of the model are; call fully_shard "
            "on the model itself, too, after its layers"
        )
    return bool(named) and not plain


def _check_placement(name: str, tensor: Any, n_ranks: int, rank: int) -> None:
    from torch.distributed.tensor import Shard

    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    what = f"parameter {name!r} is a DTensor with placements {list(placements)} on {mesh}"
    # By type: other placements are made as subclasses of this one.
    if mesh.ndim != 1 or type(placements[0]) is not Shard or placements[0].dim != 0:
        raise ConfigError(
            f"{what}; inside a cloud parameters may be whole on each rank or sharded by rows over "
            "all of its ranks (fully_shard on Hierarchy.device_mesh()), but not tensor-parallel or "
            "on a mesh of several dimensions"
        )
    if (mesh.size(), mesh.get_local_rank()) != (n_ranks, rank):
        raise ConfigError(
            f"{what}, where this process is {mesh.get_local_rank()} of {mesh.size()}; the mesh "
            f"must be the ranks of the cloud, in their order, and this one is {rank} of {n_ranks}: "
            "use Hierarchy.device_mesh()"
        )
