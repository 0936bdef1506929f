"""What a run knows of its links between clouds, and tells whoever watches."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.train.config import TrainConfig


def say_links(
    config: TrainConfig, model: nn.Module, hierarchy: Hierarchy, say: Callable[[str], None]
) -> None:
    """What this gateway's exchange of all parameters would take, and by which algorithm."""
    inter = hierarchy.inter
    if inter is None or config.sync.rule == "isolated":
        return
    links = inter.links()
    if links is not None:
        say(str(links))
    n_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shard = hierarchy.shard(hierarchy.padded(n_params))
    assert shard is not None
    choice = str(inter.explain(shard.stop - shard.start, config.sync.codec))
    if config.sync.algorithm != "auto":
        choice += f"\nsync.algorithm = {config.sync.algorithm!r} is taken instead"
    say(choice)


def link_rate(hierarchy: Hierarchy) -> float | None:
    """Bytes a second of this rank's slowest link to another cloud; None: not measured."""
    links = None if hierarchy.inter is None else hierarchy.inter.links()
    if links is None or hierarchy.inter is None:
        return None
    own = [link.rate for link in links.links if link.source == hierarchy.inter.rank]
    return min((rate for rate in own if rate is not None), default=None)
