"""Streaming DiLoCo: fragments of the parameters take turns, and training goes on meanwhile.

Each of P fragments is exchanged as `diloco` does the whole, every H steps and H / P steps after
the one before it, so that a link carries 1/P of the bytes at a time. A fragment sent after step t
is applied after step t + tau (``overlap_steps``), with alpha = ``mixing``:

    d = mean over clouds of (anchor - parameters) at t;  anchor <- outer step(anchor, d)
    parameters <- alpha parameters + (1 - alpha) anchor

Source: Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv 2501.18512,
algorithm 2; its fragments are made of whole layers, too, strided or sequential.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.errors import ConfigError
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.local import LocalRule
from pyfedcomm.sync.outer import Sgd

FRAGMENTS = 4
"""As many there are if no number was asked for and there can be."""
_LAYER = re.compile(r"(?:.*?\.)??\d+(?=\.)")


class Streaming(LocalRule):
    """P rounds in ``local_steps`` steps. State: as `diloco`."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(
            parameters,
            hierarchy,
            config,
            Sgd(config.outer_lr, config.outer_momentum, config.nesterov),
            divide=functools.partial(
                divide,
                n=config.fragments,
                most=min(FRAGMENTS, config.local_steps),
                order=config.fragment_order,
            ),
            overlap=config.overlap_steps,
            mixing=config.mixing,
        )

    @classmethod
    def check(cls, config: SyncConfig) -> None:
        """A step sends one fragment at most, and a fragment arrives before it is sent again."""
        super().check(config)
        if config.fragments > config.local_steps:
            raise ConfigError(
                f"sync.fragments is {config.fragments}, but sync.local_steps {config.local_steps}: "
                "two fragments would have the same turn; use fewer fragments or more local steps"
            )
        if config.overlap_steps >= config.local_steps:
            raise ConfigError(
                f"sync.overlap_steps is {config.overlap_steps}; it must be below sync.local_steps, "
                f"{config.local_steps}, so that a fragment arrives before it is sent again"
            )


def divide(names: Sequence[str], *, n: int, most: int = FRAGMENTS, order: str) -> list[list[int]]:
    """The parameters of each of ``n`` fragments, as indices of ``names``; all, and each once.

    n: 0 for as many as there are blocks, up to ``most``.

    Fragments are made of blocks. A block is a layer, told by the first number in its parameters'
    names (``model.layers.3.``), or a module outside of all layers (an embedding, the last norm).
    order: ``strided`` gives blocks p, p + n, p + 2n, ... to fragment p; ``sequential`` a run.
    Raises ConfigError where there are fewer blocks than ``n``.
    """
    blocks: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        layer = _LAYER.match(name)
        block = layer.group() if layer else name.rpartition(".")[0] or name
        blocks.setdefault(block, []).append(i)
    if n > len(blocks):
        raise ConfigError(
            f"sync.fragments is {n}, but the model has {len(blocks)} layers and other blocks "
            f"({', '.join(blocks)}), and a fragment must have one; use at most as many, or leave "
            "that key out"
        )
    n = n or min(most, len(blocks))
    parts = list(blocks.values())
    if order == "strided":
        chosen = [parts[p::n] for p in range(n)]
    else:
        bounds = [p * len(parts) // n for p in range(n + 1)]
        chosen = [parts[bounds[p] : bounds[p + 1]] for p in range(n)]
    return [[i for block in fragment for i in block] for fragment in chosen]
