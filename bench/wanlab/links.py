"""The table of links between clouds: from options, or from a TOML, JSON or CSV file.

Every ordered pair of clouds has a link; besides, a cloud's uplink and downlink may be limited,
which all its links share. Nothing here touches the network.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pyfedcomm.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CLOUDS = 64

# Largest values that make sense; they also keep nanoseconds and bits within 64 bits.
_LIMITS = {"rate_mbit": 1e6, "rtt_ms": 1e5, "jitter_ms": 1e4, "loss": 1.0, "queue_ms": 1e5}
_LIMITS |= {"uplink_mbit": 1e6, "downlink_mbit": 1e6}


@dataclass(frozen=True)
class Link:
    """One direction between two clouds."""

    rate_mbit: float = 1000.0
    """10^6 bits a second of IP packets, headers included; 0: no limit."""
    rtt_ms: float = 50.0
    """Half of it is the delay of this direction."""
    jitter_ms: float = 0.0
    """The delay wanders within ± this."""
    loss: float = 0.0
    """Probability that a packet is lost."""
    queue_ms: float = 25.0
    """A packet that would wait for longer before a transmitter is dropped."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Site:
    """What all links of one cloud share."""

    uplink_mbit: float = 0.0
    """0: no limit."""
    downlink_mbit: float = 0.0
    """0: no limit."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Links:
    """All links of a laboratory: equal ones, but for the exceptions in ``pairs`` and ``sites``."""

    rate_mbit: float = 1000.0
    rtt_ms: float = 50.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_ms: float = 25.0
    uplink_mbit: float = 0.0
    downlink_mbit: float = 0.0
    pairs: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    """(a, b): the link from a to b; also that from b to a, unless (b, a) is there, too."""
    sites: Mapping[int, Site] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def default(self) -> Link:
        """The link of all pairs that are not in ``pairs``."""
        return Link(**{each.name: getattr(self, each.name) for each in fields(Link)})

    def link(self, a: int, b: int) -> Link:
        """From cloud ``a`` to cloud ``b``."""
        return self.pairs.get((a, b)) or self.pairs.get((b, a)) or self.default

    def site(self, cloud: int) -> Site:
        """Limits of one cloud."""
        return self.sites.get(cloud) or Site(self.uplink_mbit, self.downlink_mbit)

    def check_clouds(self, n_clouds: int) -> None:
        """Raises `ConfigError` if an exception is about a cloud that there is not."""
        for a, b in self.pairs:
            if a == b or not (0 <= a < n_clouds and 0 <= b < n_clouds):
                raise ConfigError(
                    f"links: there is no pair {a}-{b}; clouds are 0 to {n_clouds - 1}"
                )
        for cloud in self.sites:
            if not 0 <= cloud < n_clouds:
                raise ConfigError(
                    f"links: there is no cloud {cloud}; clouds are 0 to {n_clouds - 1}"
                )

    @classmethod
    def read(cls, path: Path, default: Links | None = None) -> Links:
        """From a file; what it does not say is as in ``default``.

        TOML and JSON: a table ``default`` with fields of `Links`, lists ``pair`` (``from``, ``to``,
        fields of `Link`) and ``cloud`` (``cloud``, fields of `Site`). CSV: a header line with
        ``from,to`` and fields of `Link`, one pair a line; an empty field is the default.

        Raises `ConfigError`, with the file's name.
        """
        try:
            return _from_tables(_read_tables(path), default or cls())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"links: {path}: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _check(record: Link | Site | Links) -> None:
    for each in fields(record):
        if each.name not in _LIMITS:
            continue
        value, most = getattr(record, each.name), _LIMITS[each.name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"links: {each.name} is {value!r}; it must be a number")
        if not math.isfinite(value) or not 0 <= value <= most:
            raise ConfigError(f"links: {each.name} is {value:g}; it must be from 0 to {most:g}")
    if isinstance(record, Link | Links) and record.jitter_ms > record.rtt_ms / 2:
        raise ConfigError(
            f"links: jitter_ms is {record.jitter_ms:g}; it cannot be more than half of rtt_ms "
            f"({record.rtt_ms:g}), the delay of one direction"
        )


def _read_tables(path: Path) -> dict[str, Any]:
    kind = path.suffix.lower()
    if kind == ".csv":
        with path.open(newline="") as file:
            return {"pair": [_numbers(row) for row in csv.DictReader(file)]}
    try:
        if kind == ".json":
            tables = json.loads(path.read_text())
        elif kind == ".toml":
            tables = _toml(path.read_text())
        else:
            raise ConfigError("links: a table is a .toml, .json or .csv file")
    except ValueError as error:  # of either parser
        raise ConfigError(f"links: {error}") from None
    if not isinstance(tables, dict):
        raise ConfigError("links: the file must hold an object")
    return tables


def _toml(text: str) -> dict[str, Any]:
    tables: dict[str, Any] = tomllib.loads(text)
    return tables


def _numbers(row: Mapping[str | None, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ConfigError(f"links: a line has not as many fields as the header: {dict(row)}")
    values = {}
    for name, text in row.items():
        if not text.strip():
            continue
        try:
            values[str(name).strip()] = int(text) if name in ("from", "to") else float(text)
        except ValueError:
            raise ConfigError(f"links: {name} is {text!r}; it must be a number") from None
    return values


def _from_tables(tables: dict[str, Any], default: Links) -> Links:
    _known("the file", tables, ("default", "pair", "cloud"))
    names = [each.name for each in fields(Links) if each.name in _LIMITS]
    links = replace(default, **_table("default", tables.get("default", {}), names))
    pairs, sites = {}, {}
    for row in _rows("pair", tables):
        values = _table("pair", row, ["from", "to", *(each.name for each in fields(Link))])
        key = (_cloud("pair", values, "from"), _cloud("pair", values, "to"))
        if key in pairs:
            raise ConfigError(f"links: pair {key[0]}-{key[1]} is there twice")
        pairs[key] = replace(links.default, **values)
    for row in _rows("cloud", tables):
        values = _table("cloud", row, ["cloud", *(each.name for each in fields(Site))])
        cloud = _cloud("cloud", values, "cloud")
        if cloud in sites:
            raise ConfigError(f"links: cloud {cloud} is there twice")
        sites[cloud] = replace(Site(links.uplink_mbit, links.downlink_mbit), **values)
    return replace(links, pairs=pairs, sites=sites)


def _known(what: str, table: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in table:
        if name not in names:
            raise ConfigError(f"links: {what} has no {name!r}; it may have {', '.join(names)}")


def _table(what: str, table: object, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"links: {what} is {table!r}; it must be a table")
    _known(what, table, names)
    return dict(table)


def _rows(what: str, tables: dict[str, Any]) -> list[object]:
    rows = tables.get(what, [])
    if not isinstance(rows, list):
        raise ConfigError(f"links: {what} must be a list of tables")
    return rows


def _cloud(what: str, values: dict[str, Any], name: str) -> int:
    cloud = values.pop(name, None)
    if isinstance(cloud, bool) or not isinstance(cloud, int):
        raise ConfigError(f"links: a {what} needs {name!r}, the number of a cloud")
    return cloud
