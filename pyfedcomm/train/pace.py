"""Where clouds come together in a run, and how much of their time they train.

For rules whose clouds are not always at the same step (see `SyncRule.common_step`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyfedcomm.topology import Topology
from pyfedcomm.train.config import TrainConfig


def next_stop(config: TrainConfig, step: int) -> int:
    """The next step after ``step`` that all ranks have to come together at.

    To evaluate, to deal data out again, to write a checkpoint, or because it is the last one.
    Logging is no reason; it is done on the way.
    """
    stops = [config.train.steps]
    saves = config.checkpoint.every if config.checkpoint.enabled else 0
    for every in (config.eval.every, config.data.redeal_every, saves):
        if every:
            stops.append((step // every + 1) * every)
    return min(stops)


def utilisation(topology: Topology, times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each cloud, by name: the share of its ranks' training time that was ``compute``.

    times: of each global rank, seconds by phase (see `metrics.StepRecord`). What evaluation,
    checkpoints and loading took is in neither.
    """
    shares = {}
    for name, ranks in zip(topology.names, topology.clouds, strict=True):
        whole = sum(sum(times[rank].values()) for rank in ranks)
        shares[name] = sum(times[rank]["compute"] for rank in ranks) / whole if whole else 0.0
    return shares
