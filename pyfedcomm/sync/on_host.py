"""Outer state in host memory, while the model is on a GPU.

It is needed once a round and is one to three fp32 copies of the model. It is streamed: some of it
at a time goes to the GPU, is worked on there, and comes back. Every element goes through the
operations that it would go through if it lived on the GPU, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pyfedcomm.sync.outer import OuterOptimizer, State

CHUNK = 1 << 24
"""Elements on the GPU at a time: 64 MiB of each tensor."""


def parts(n_elems: int, chunk: int | None = None) -> Iterator[slice]:
    """What is streamed together, in order; ``chunk`` elements, default `CHUNK`."""
    chunk = chunk or CHUNK
    for begin in range(0, n_elems, chunk):
        yield slice(begin, min(begin + chunk, n_elems))


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory: pinned, which a GPU reads at full speed, if ``tensor`` is on one.

    A tensor in host memory stays where it is.
    """
    if tensor.device.type == "cpu":
        return tensor
    pinned = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned).copy_(tensor)


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """New memory, of the same kind."""
    if tensor.device.type == "cpu" and tensor.is_pinned():
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return torch.empty_like(tensor)


def step(
    optimizer: OuterOptimizer,
    anchor: torch.Tensor,
    state: State,
    delta: torch.Tensor,
    scale: float = 1.0,
) -> tuple[torch.Tensor, State]:
    """`OuterOptimizer.step`, streamed where anchor and state are not where ``delta`` is."""
    if anchor.device == delta.device:
        return optimizer.step(anchor, state, delta, scale)
    return streamed_step(optimizer, anchor, state, delta, scale)


def streamed_step(
    optimizer: OuterOptimizer,
    anchor: torch.Tensor,
    state: State,
    delta: torch.Tensor,
    scale: float = 1.0,
    *,
    chunk: int | None = None,
) -> tuple[torch.Tensor, State]:
    """`OuterOptimizer.step` of ``chunk`` elements at a time, on the device of ``delta``."""
    device, new_anchor = delta.device, empty_like(anchor)
    new_state = {name: empty_like(tensor) for name, tensor in state.items()}
    for part in parts(anchor.numel(), chunk):
        here = {name: tensor[part].to(device, non_blocking=True) for name, tensor in state.items()}
        value = anchor[part].to(device, non_blocking=True)
        value, here = optimizer.step(value, here, delta[part], scale)
        # These wait, so that what is read later has arrived.
        new_anchor[part].copy_(value)
        for name, tensor in here.items():
            new_state[name][part].copy_(tensor)
    return new_anchor, new_state
