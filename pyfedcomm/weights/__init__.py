"""Who counts how much: rules that give a cloud's weight in the mean over clouds.

Inside a cloud every rank counts by its tokens, so that a cloud contributes the exact mean over
its own batch; a rule decides only between clouds. A new rule is one file with one `WeightRule`
and one line in `_RULES`.
"""

from __future__ import annotations

from pyfedcomm.errors import ConfigError
from pyfedcomm.weights.base import Contribution, WeightRule
from pyfedcomm.weights.tokens import Tokens
from pyfedcomm.weights.uniform import Uniform

__all__ = ["Contribution", "Tokens", "Uniform", "WeightRule", "make", "names"]

_RULES: dict[str, type[WeightRule]] = {
    "tokens": Tokens,
    "uniform": Uniform,
}


def names() -> tuple[str, ...]:
    """Every rule that a config can name."""
    return tuple(_RULES)


def make(name: str) -> WeightRule:
    """The rule of this name; `ConfigError`, which lists them, where there is none."""
    if name not in _RULES:
        raise ConfigError(f"weights is {name!r}; it must be one of {', '.join(_RULES)}")
    return _RULES[name]()
