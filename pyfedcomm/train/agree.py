"""One rank's error becomes the same error on every rank, at once and by name.

A rank that fails alone (a missing file, a full disk) would leave the others waiting for it. So
whatever can fail on one rank only runs inside `agree`: every rank tells the others how it went,
and if any failed, all raise. `agree_on` does the same for values that must be equal.

Control plane only: two small all-gathers a call. Not for the inside of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pyfedcomm import errors
from pyfedcomm.errors import ConfigError, Error
from pyfedcomm.group import Group

T = TypeVar("T")

_KINDS: dict[str, type[Error]] = {
    kind.__name__: kind
    for kind in (
        errors.ConfigError,
        errors.CorruptFrame,
        errors.CudaError,
        errors.InvalidArgument,
        errors.NonFinite,
        errors.Timeout,
    )
}


def agree(group: Group, who: str, fn: Callable[[], T], *, timeout: float | None = None) -> T:
    """Runs ``fn`` on every rank; returns this rank's result if it went well everywhere.

    group: all ranks that must know.
    who: this rank in messages, ``"rank 3 (cloud aws)"``.
    timeout: seconds to wait for the slowest rank's ``fn``.
    Raises on every rank, if any rank's ``fn`` raised: the kind of error of the first rank that
    failed (ConfigError where that is none of ours), naming every rank that did. ``fn`` itself must
    not communicate: a rank that fails would leave the others waiting inside it.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = fn()
    except Exception as error:
        failure = error
    told = group.all_gather_object(
        [who, None if failure is None else [_kind(failure), _describe(failure)]], timeout=timeout
    )
    failed = [(name, *report) for name, report in told if report is not None]
    if failed:
        kind = _KINDS[failed[0][1]]
        message = _merge([(name, text) for name, _, text in failed], group.size)
        raise _everywhere(kind(message)) from failure
    return result  # type: ignore[return-value]  # set, since fn() did not fail


def agree_on(
    group: Group,
    who: str,
    values: Mapping[str, Any],
    *,
    remedy: str = "make them equal",
    timeout: float | None = None,
) -> None:
    """Ranks that give a value for the same key must give the same (JSON) value.

    Raises ConfigError on every rank naming each key that differs and who has which value.
    """
    told = group.all_gather_object([who, dict(values)], timeout=timeout)
    keys = list(dict.fromkeys(key for _, given in told for key in given))
    differences = []
    for key in keys:
        holders: dict[str, list[str]] = {}
        for name, given in told:
            if key in given:
                holders.setdefault(repr(given[key]), []).append(name)
        if len(holders) > 1:
            differences.append(
                f"{key}: "
                + ", ".join(f"{shown} on {_list(names)}" for shown, names in holders.items())
            )
    if differences:
        raise _everywhere(ConfigError(f"the ranks disagree on {'; '.join(differences)}: {remedy}"))


def is_everywhere(error: BaseException) -> bool:
    """True if every rank raises this error, so that nobody needs to be told.

    Those of `agree` and `agree_on`; and what an exchange or a sync rule finds wrong with the
    configuration or with the numbers, because they agree on it before they raise.
    """
    if isinstance(error, (errors.ConfigError, errors.NonFinite)):
        return True
    return getattr(error, "raised_everywhere", False)


def _everywhere(error: Error) -> Error:
    error.raised_everywhere = True  # type: ignore[attr-defined]
    return error


def _kind(error: Exception) -> str:
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "ConfigError")


def _describe(error: Exception) -> str:
    if isinstance(error, Error):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _merge(failed: list[tuple[str, str]], size: int) -> str:
    """``who: what`` for every failure; ranks that failed alike are listed together."""
    by_text: dict[str, list[str]] = {}
    for who, text in failed:
        by_text.setdefault(text, []).append(who)
    return "; ".join(
        f"{'all ranks' if len(names) == size > 1 else _list(names)}: {text}"
        for text, names in by_text.items()
    )


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
