"""When clouds exchange, what, and what they do with it: one rule a file, chosen by name.

    rule = sync.make(SyncConfig(), model.named_parameters(), hierarchy)
    loss.backward(); rule.after_backward(n_tokens); optimizer.step(); rule.after_step(n_tokens)
    rule.finish()

A new rule is one file with one `SyncRule` and one line in `_RULES`.
"""

from __future__ import annotations

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.errors import ConfigError
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.asynchronous import Asynchronous
from pyfedcomm.sync.base import SyncRule
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.diloco import DiLoCo
from pyfedcomm.sync.fedavg import FedAvg
from pyfedcomm.sync.fedopt import FedOpt
from pyfedcomm.sync.gradient import Gradient
from pyfedcomm.sync.isolated import Isolated
from pyfedcomm.sync.master import MasterWeights
from pyfedcomm.sync.onebit import OneBit
from pyfedcomm.sync.reshard import Whole, assemble, distribute, for_joining, residual_squares
from pyfedcomm.sync.sparse import Sparse
from pyfedcomm.sync.streaming import Streaming

__all__ = [
    "MasterWeights",
    "SyncConfig",
    "SyncRule",
    "Whole",
    "assemble",
    "check",
    "distribute",
    "for_joining",
    "make",
    "names",
    "residual_squares",
]

_RULES: dict[str, type[SyncRule]] = {
    "gradient": Gradient,
    "fedavg": FedAvg,
    "diloco": DiLoCo,
    "fedopt": FedOpt,
    "streaming": Streaming,
    "sparse": Sparse,
    "onebit": OneBit,
    "async": Asynchronous,
    "isolated": Isolated,
}


def names() -> tuple[str, ...]:
    """Every rule that a config can name."""
    return tuple(_RULES)


def make(config: SyncConfig, parameters: NamedParameters, hierarchy: Hierarchy) -> SyncRule:
    """The rule that ``config`` names, for these parameters. Collective over all ranks.

    parameters: ``model.named_parameters()``, on the hierarchy's device and with the values that
        training starts from; the same on all ranks.
    Raises `ConfigError` for an unknown rule, and on every rank where ranks disagree.
    """
    return _rule(config)(parameters, hierarchy, config)


def check(config: SyncConfig) -> None:
    """Raises `ConfigError` for what is wrong with a config whatever the model is."""
    _rule(config).check(config)


def _rule(config: SyncConfig) -> type[SyncRule]:
    if config.rule not in _RULES:
        raise ConfigError(f"sync.rule is {config.rule!r}; it must be one of {', '.join(_RULES)}")
    return _RULES[config.rule]
