"""DiLoCo: local training with an outer SGD with Nesterov momentum.

    d = mean over clouds of (anchor - parameters);  m <- mu m + d;  anchor <- anchor - lr (d + mu m)

Source: Douillard et al., "DiLoCo", arXiv 2311.08105, algorithm 1. With ``outer_momentum = 0`` and
``outer_lr = 1`` it is `fedavg`, bit for bit: both are the same optimizer.
"""

from __future__ import annotations

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.local import LocalRule
from pyfedcomm.sync.outer import Sgd


class DiLoCo(LocalRule):
    """One round in ``local_steps`` steps. State: 8 bytes a parameter, 4 without momentum."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        optimizer = Sgd(config.outer_lr, config.outer_momentum, config.nesterov)
        super().__init__(parameters, hierarchy, config, optimizer)
