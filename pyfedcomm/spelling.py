"""``name`` or ``name(argument)``: how a config chooses a rule of a registry.

Codecs, which nest, are read in the core.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from pyfedcomm.errors import ConfigError

_CALL = re.compile(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*")


def split(key: str, text: str, known: Iterable[str]) -> tuple[str, str | None]:
    """(name, argument) of ``text``; the argument is None where there are no parentheses.

    key: what messages call it, ``sync.weights``. known: the names there are.
    Raises ConfigError, which lists them, for any other.
    """
    match = _CALL.fullmatch(text)
    if match is None or match[1] not in known:
        raise ConfigError(f"{key} is {text!r}; it must be one of {', '.join(known)}")
    return match[1], match[2]


def no_argument(key: str, text: str, argument: str | None) -> None:
    """Raises ConfigError if there is one."""
    if argument is not None:
        raise ConfigError(f"{key} is {text!r}; {text.partition('(')[0].strip()} takes no argument")


def number(key: str, text: str, argument: str | None, default: float | None = None) -> float:
    """The argument as a finite number; without one the default, if there is any."""
    if argument is None and default is not None:
        return default
    try:
        value = float(argument or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        name = text.partition("(")[0].strip()
        raise ConfigError(f"{key} is {text!r}; {name} takes a number, as in {name}(0.5)")
    return value
