"""A small model, crafted gradients and plain SGD: what the tests of sync rules train.

One rank per cloud, in threads; gradients depend on (step, rank) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyfedcomm import sync
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import SyncConfig, SyncRule
from pyfedcomm.topology import Topology, from_labels

SHAPES = {"embed.weight": (40, 16), "norm.bias": (), "empty": (0,), "head.weight": (7, 11)}
N_ELEMS = 40 * 16 + 1 + 7 * 11
INNER_LR = 0.25

Named = list[tuple[str, torch.nn.Parameter]]


def one_rank_per_cloud(group: Group) -> Topology:
    labels = [f"c{i}" for i in range(group.size)]
    return from_labels(labels, ["host"] * group.size, group.rank)


@contextmanager
def opened(group: Group) -> Iterator[Hierarchy]:
    hierarchy = Hierarchy(group, one_rank_per_cloud(group))
    try:
        yield hierarchy
    finally:
        hierarchy.close()


def crafted(seed: int, n: int = N_ELEMS) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Integers of -8 to 8: sums and products of a few of them do not round."""
    return np.random.default_rng(seed).integers(-8, 9, n).astype(np.float32)


def make_parameters(dtype: torch.dtype = torch.float32) -> Named:
    flat, named, offset = torch.from_numpy(crafted(0)), [], 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        value = flat[offset : offset + size].reshape(shape).to(dtype)
        named.append((name, torch.nn.Parameter(value.clone())))
        offset += size
    return named


def flat_of(named: Named) -> np.ndarray[Any, np.dtype[np.float32]]:
    return torch.cat([p.detach().float().reshape(-1) for _, p in named]).numpy()


def set_gradients(named: Named, flat: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    offset = 0
    for _, p in named:
        part = torch.from_numpy(flat[offset : offset + p.numel()].copy())
        p.grad = part.reshape(p.shape).to(p)
        offset += p.numel()


def train(
    rule: SyncRule, named: Named, rank: int, steps: range, tokens: Callable[[int, int], int]
) -> None:
    """Plain SGD on gradients that depend on (step, rank) alone."""
    optimizer = torch.optim.SGD([p for _, p in named if p.requires_grad], lr=INNER_LR)
    for step in steps:
        set_gradients(named, crafted(1000 * step + rank))
        n_tokens = tokens(step, rank)
        rule.after_backward(n_tokens)
        optimizer.step()
        rule.after_step(n_tokens)


EXACT = SyncConfig(
    local_steps=3,
    outer_lr=0.5,
    outer_decay=0.0,
    outer_momentum=0.5,
    fragments=2,
    overlap_steps=1,
    mixing=0.5,
    codec="fp32",
    algorithm="auto",
)
"""Powers of two: with crafted gradients nothing rounds (but the roots of fedopt)."""

IN_ROUNDS = [name for name in sync.names() if name != "async"]
"""Rules whose clouds exchange at the same step; what the others do depends on who comes first."""

REPEATING = [name for name in IN_ROUNDS if name not in ("gradient", "isolated")]
"""Those that take many local steps in a round, ``local_momentum`` and ``adaptive``."""

CARRYING = ("sparse", "onebit")
"""Those that do not do without error feedback."""

FRAGMENTS = (np.r_[0:640, 640:640], np.r_[640:641, 641 : 641 + 77])
"""What ``fragments=2`` makes of the model: embed.weight and empty, norm.bias and head.weight."""


def config_for(rule: str, config: SyncConfig, **change: Any) -> SyncConfig:
    """The same for another rule, with error feedback where it does not do without."""
    feedback = config.error_feedback or rule in CARRYING
    return replace(config, **{"rule": rule, "error_feedback": feedback, **change})


def bits(state: Any) -> dict[str, bytes]:
    """Every bit of a state dict or of named tensors, NaNs included."""
    items = state.items() if isinstance(state, dict) else state

    def of(value: Any) -> bytes:
        if not isinstance(value, torch.Tensor):
            return repr(value).encode()
        value = value.detach().cpu()  # numpy has no bf16; a float of it has all of its bits
        value = value.float() if value.dtype == torch.bfloat16 else value
        return bytes(value.numpy().tobytes())

    return {name: of(value) for name, value in items}
