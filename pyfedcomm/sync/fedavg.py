"""Federated averaging: the next parameters are the weighted mean of the clouds' parameters.

    w <- sum_k (n_k / n) w_k

computed as anchor - sum_k (n_k / n) (anchor - w_k): differences are what codecs are good at, and
what is left out of them can be carried to the next round.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
arXiv 1602.05629, algorithm 1. Every cloud takes part in every round (C = 1), and a cloud's local
work is ``local_steps`` optimizer steps, not epochs. It is `diloco` without an outer optimizer.
"""

from __future__ import annotations

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.local import LocalRule
from pyfedcomm.sync.outer import Sgd


class FedAvg(LocalRule):
    """One round in ``local_steps`` steps. State: 4 bytes a parameter."""

    decays = False

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config, Sgd(1.0))
