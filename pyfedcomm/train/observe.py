"""What the loop measured, as the rules of weights take it: one `Observation` a cloud.

Made from numbers that all ranks have gathered anyhow, so it is the same on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pyfedcomm import weights
from pyfedcomm.errors import ConfigError
from pyfedcomm.topology import Topology
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.weights import Observation


@dataclass(frozen=True)
class Pace:
    """Of one rank, since it was last asked."""

    n_tokens: int
    compute_s: float
    sent_bytes: int
    """To other clouds."""
    link_bytes_per_s: float | None
    """See `links.link_rate`."""


def check(config: TrainConfig) -> None:
    """Raises ConfigError if the rule of weights would wait in vain for what it needs."""
    needs = weights.make(config.sync.weights).needs
    if "loss" in needs and not config.eval.every:
        raise ConfigError(
            f"sync.weights is {config.sync.weights!r}, which goes by held-out losses, but "
            "eval.every is 0; set it to some steps, as in eval.every = 100"
        )
    if "link_bytes_per_s" in needs and not config.inter.measure:
        raise ConfigError(
            f"sync.weights is {config.sync.weights!r}, but links are not measured; set "
            "inter.measure = true, or use 'throughput'"
        )


def with_losses(
    before: Sequence[Observation], topology: Topology, by_cloud: Mapping[str, float]
) -> list[Observation]:
    """The observations with new held-out losses. before: of each cloud, or empty."""
    known = before or [Observation()] * topology.n_clouds
    return [
        replace(each, loss=by_cloud[name]) for each, name in zip(known, topology.names, strict=True)
    ]


def with_paces(
    before: Sequence[Observation], topology: Topology, paces: Sequence[Pace]
) -> list[Observation]:
    """The observations with new speeds. before: of each cloud, or empty. paces: of each rank."""
    known = before or [Observation()] * topology.n_clouds
    result = []
    for each, ranks in zip(known, topology.clouds, strict=True):
        own = [paces[rank] for rank in ranks]
        rates = [p.link_bytes_per_s for p in own if p.link_bytes_per_s is not None]
        result.append(
            replace(
                each,
                n_tokens=sum(p.n_tokens for p in own),
                seconds=max(p.compute_s for p in own),
                sent_bytes=max(p.sent_bytes for p in own),
                link_bytes_per_s=min(rates, default=None),
            )
        )
    return result
