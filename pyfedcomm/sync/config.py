"""``[sync]``: the keys of all rules, their defaults and their ranges.

What only one rule can find wrong with them is that rule's own `SyncRule.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyfedcomm.errors import ConfigError
from pyfedcomm.exchange import NONFINITE
from pyfedcomm.group import Algorithm

OUTER_OPTIMIZERS = ("adam", "yogi", "adagrad")
FRAGMENT_ORDERS = ("strided", "sequential")
AGGREGATIONS = ("fedbuff", "fedasync")

# The default of a key whose default is the rule's own; replaced when the config is made.
_OF_RULE: Any = None
_DEFAULTS: dict[str, Any] = {
    "local_steps": 40,
    "outer_lr": 0.7,
    "outer_momentum": 0.9,
    "codec": "int8",
    "algorithm": "auto",
    "error_feedback": False,
    "overlap_steps": 1,
}
# Measured: "Quality against bytes" in bench/README.md.
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "diloco": {"outer_lr": 1.0, "outer_momentum": 0.5},
    "streaming": {"codec": "e3m0", "overlap_steps": 5},
    "fedopt": {"outer_lr": 0.01},
    "async": {"outer_lr": 1.0},
    "sparse": {
        "local_steps": 15,
        "outer_lr": 1.0,
        "codec": "chunk_topk(4096, 64, int2, beta=0.95)",
        "algorithm": "all_gather",
        "error_feedback": True,
    },
    "onebit": {
        "local_steps": 128,
        "outer_lr": 2.0,
        "outer_decay": 0.4,
        "codec": "sign",
        "algorithm": "direct",
        "error_feedback": True,
    },
}


@dataclass(frozen=True)
class SyncConfig:
    """How clouds exchange; the same on all ranks.

    A key whose default depends on the rule has it as soon as the config is made; so
    `dataclasses.replace` with another rule keeps the first one's.
    """

    rule: str = "streaming"
    """One of `sync.names()`."""
    local_steps: int = _OF_RULE
    """Optimizer steps between two exchanges of a parameter (the papers' H); default 40, ``sparse``
    15, ``onebit`` 128."""
    adaptive: bool = False
    """Clouds of different speed take different numbers of steps in a round, ``local_steps`` on
    average, and finish it together; by the time that steps have taken. Not for ``gradient``,
    ``async`` and ``isolated``. A run is then no longer the same each time."""
    adaptive_max: float = 4.0
    """``adaptive``: steps that the fastest cloud may take in a round, as a multiple of
    ``local_steps``."""
    outer_lr: float = _OF_RULE
    """Step size of the outer optimizer, which ``fedavg`` has none of; default 0.7, ``diloco``,
    ``sparse`` and ``async`` 1, ``onebit`` 2, ``fedopt`` 0.01."""
    outer_decay: float = _OF_RULE
    """Share of the run, its end, in which the step size of the outer optimizer falls in a line to
    ``outer_end`` times what it was; 0: it never does. Default 0.3 with ``streaming`` if there
    is an ``outer_momentum``, ``onebit`` 0.4, else 0. Not for ``gradient``, ``fedavg``, ``async``
    and ``isolated``."""
    outer_end: float = 0.3
    """``outer_decay``: what is left of that step size at the end of the run."""
    horizon: int = 0
    """``outer_decay``: optimizer steps of the whole run. `pyfedcomm train` and the Trainer's
    callback know it; in a loop of your own the step size does not fall without it."""
    outer_momentum: float = _OF_RULE
    """``diloco``, ``streaming``: momentum of the outer SGD; default 0.5 and 0.9."""
    nesterov: bool = True
    """``diloco``, ``streaming``: whether that momentum is Nesterov's."""
    local_momentum: float = 0.0
    """Share of the last round's common movement that every cloud's parameters repeat during a
    round, a bit of it at each step; see ``local``. Not for ``gradient``, ``async`` and
    ``isolated``."""
    outer_optimizer: str = "adam"
    """``fedopt``: ``adam``, ``yogi`` or ``adagrad``."""
    outer_beta1: float = 0.9
    """``fedopt``: decay of the mean of deltas."""
    outer_beta2: float = 0.99
    """``fedopt``: decay of the mean of their squares; ``adagrad`` adds them up instead."""
    outer_tau: float = 1e-3
    """``fedopt``: added to the root of that mean; the smaller, the more adaptive."""
    fragments: int = 0
    """``streaming``: parts that the parameters are divided into, exchanged one after the other; 0:
    4, or as many as the model has layers and other blocks and a round has steps."""
    fragment_order: str = "strided"
    """``streaming``: ``strided`` deals the model's layers out in turn, ``sequential`` cuts them
    into consecutive runs."""
    overlap_steps: int = _OF_RULE
    """``streaming``, ``async``: optimizer steps between sending and applying what came of it;
    below ``local_steps``. Default 5, ``async`` 1, or as many as ``local_steps`` allows."""
    mixing: float = 0.5
    """``streaming``: share of the cloud's own parameters when a fragment is applied: 0 drops what
    was learnt while it was under way."""
    aggregation: str = "fedbuff"
    """``async``: ``fedbuff`` steps along the mean of ``buffer`` deltas, ``fedasync`` mixes each
    cloud's parameters in as they come."""
    buffer: int = 0
    """``async`` with ``fedbuff``: deltas of a step; 0: as many as there are clouds."""
    alpha: float = 0.6
    """``async`` with ``fedasync``: share of a cloud's parameters in the model, if fresh."""
    staleness: float = 0.5
    """``async``: what counts from a model that is t versions old counts (t + 1) ** -staleness."""
    outer_on_host: bool = False
    """Keep anchor and outer optimizer's state in host memory, pinned where the model is on a GPU;
    the results are the same bits. ``async`` has it there anyway; ``gradient`` and ``isolated`` have
    none."""
    codec: str = _OF_RULE
    """How values are coded between clouds; inside a cloud they are fp32. Default ``int8``,
    ``streaming`` ``e3m0``, ``sparse`` ``chunk_topk(4096, 64, int2, beta=0.95)``,
    ``onebit`` ``sign``."""
    algorithm: Algorithm = _OF_RULE
    """See `Group.all_reduce`; default ``auto``, ``sparse`` ``all_gather``, ``onebit``
    ``direct``."""
    error_feedback: bool = _OF_RULE
    """Carry what coding left out to the next round; default only with ``sparse`` and
    ``onebit``, which do not do without."""
    weights: str = "tokens"
    """One of `weights.names()`: ``tokens``, ``uniform``, ``loss`` or ``loss(T)``, ``throughput`` or
    ``throughput(bandwidth)``."""
    nonfinite: str = "error"
    """A NaN or an infinity in what one cloud contributes: ``error`` ends the run on every rank,
    ``exclude`` goes on with the other clouds' and sets that cloud back to the common parameters."""

    def __post_init__(self) -> None:
        defaults = {**_DEFAULTS, **_OWN_DEFAULTS.get(self.rule, {})}
        overlap = defaults.pop("overlap_steps")
        self._fill(defaults)
        self._check_that("local_steps", self.local_steps >= 1, "at least 1")
        self._fill({"overlap_steps": min(overlap, self.local_steps - 1)})
        self._check_that("adaptive_max", 1 <= self.adaptive_max < float("inf"), "at least 1")
        self._check_that("outer_lr", 0 < self.outer_lr < float("inf"), "positive")
        gathers = self.rule == "streaming" and self.outer_momentum > 0
        self._fill({"outer_decay": 0.3 if gathers else 0.0})
        self._check_that("outer_decay", 0 <= self.outer_decay <= 1, "in [0, 1]")
        self._check_that("outer_end", 0 < self.outer_end <= 1, "in (0, 1]")
        self._check_that("horizon", self.horizon >= 0, "0 or more")
        for key in ("outer_momentum", "local_momentum", "outer_beta1", "outer_beta2"):
            self._check_that(key, 0 <= getattr(self, key) < 1, "in [0, 1)")
        self._check_that("outer_tau", 0 < self.outer_tau < float("inf"), "positive")
        self._check_that("fragments", self.fragments >= 0, "0 or more")
        self._check_that("overlap_steps", self.overlap_steps >= 0, "0 or more")
        self._check_that("buffer", self.buffer >= 0, "0 or more")
        self._check_that("alpha", 0 < self.alpha <= 1, "in (0, 1]")
        self._check_that("staleness", 0 <= self.staleness < float("inf"), "0 or more")
        self._check_that("mixing", 0 <= self.mixing < 1, "in [0, 1): at 1 no cloud would take over")
        for key, allowed in (
            ("outer_optimizer", OUTER_OPTIMIZERS),
            ("aggregation", AGGREGATIONS),
            ("fragment_order", FRAGMENT_ORDERS),
            ("nonfinite", NONFINITE),
        ):
            self._check_that(key, getattr(self, key) in allowed, f"one of {', '.join(allowed)}")

    def _fill(self, defaults: Mapping[str, Any]) -> None:
        for key, value in defaults.items():
            if getattr(self, key) is _OF_RULE:
                object.__setattr__(self, key, value)

    def _check_that(self, key: str, good: bool, needed: str) -> None:
        if not good:
            raise ConfigError(f"sync.{key} is {getattr(self, key)!r}; it must be {needed}")
