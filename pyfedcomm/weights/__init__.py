"""Who counts how much: rules that give a cloud's weight in the mean over clouds.

Inside a cloud every rank counts by its tokens, so that a cloud contributes the exact mean over
its own batch; a rule decides only between clouds. A new rule is one file with one `WeightRule`
and one line in `_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable

from pyfedcomm import spelling
from pyfedcomm.weights.base import Contribution, Observation, WeightRule
from pyfedcomm.weights.loss import Loss
from pyfedcomm.weights.throughput import Throughput
from pyfedcomm.weights.tokens import Tokens
from pyfedcomm.weights.uniform import Uniform

__all__ = [
    "Contribution",
    "Loss",
    "Observation",
    "Throughput",
    "Tokens",
    "Uniform",
    "WeightRule",
    "make",
    "names",
]

_KEY = "sync.weights"


def _plain(rule: type[WeightRule]) -> Callable[[str, str | None], WeightRule]:
    def make_one(text: str, argument: str | None) -> WeightRule:
        spelling.no_argument(_KEY, text, argument)
        return rule()

    return make_one


_RULES: dict[str, Callable[[str, str | None], WeightRule]] = {
    "tokens": _plain(Tokens),
    "uniform": _plain(Uniform),
    "loss": lambda text, argument: Loss(spelling.number(_KEY, text, argument, 1.0)),
    "throughput": lambda _, argument: Throughput(argument),
}


def names() -> tuple[str, ...]:
    """Every rule that a config can name."""
    return tuple(_RULES)


def make(name: str) -> WeightRule:
    """The rule of this name, as in ``loss(0.5)``; `ConfigError`, which lists them, if none."""
    rule, argument = spelling.split(_KEY, name, _RULES)
    return _RULES[rule](name, argument)
