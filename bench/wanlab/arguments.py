"""The arguments of a command line that describe a laboratory, and what is done in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyfedcomm.errors import ConfigError

from .lab import Lab
from .links import MAX_CLOUDS, Links


def add_laboratory(job: argparse.ArgumentParser) -> None:
    """Adds the arguments that `laboratory` reads."""
    lab = job.add_argument_group("laboratory")
    default = Links()

    def number(name: str, field: str, text: str) -> None:
        value = getattr(default, field)
        lab.add_argument(
            name, dest=field, type=float, default=value, metavar="X", help=f"{text} [{value:g}]"
        )

    lab.add_argument("--clouds", type=int, default=2, help=f"how many, up to {MAX_CLOUDS} [2]")
    number("--rate", "rate_mbit", "of each direction of each pair, Mbit/s; 0: no limit")
    number("--rtt", "rtt_ms", "round trip, ms")
    number("--jitter", "jitter_ms", "each direction's delay wanders within ± this, ms")
    number("--loss", "loss", "probability that a packet is lost, in each direction")
    number("--queue", "queue_ms", "longest wait in a queue, ms; what would wait longer is dropped")
    number("--uplink", "uplink_mbit", "of each cloud, for all its links, Mbit/s; 0: no limit")
    number("--downlink", "downlink_mbit", "of each cloud, for all its links, Mbit/s; 0: no limit")
    lab.add_argument(
        "--links", type=Path, metavar="FILE", help="exceptions: a .toml, .json or .csv table"
    )
    lab.add_argument("--mtu", type=int, default=1500, help="largest IP packet, bytes [1500]")
    lab.add_argument("--seed", type=int, default=1, help="of losses and jitter [1]")
    lab.add_argument(
        "--sysctl", action="append", default=[], metavar="NAME=VALUE", help="set in every cloud"
    )
    lab.add_argument(
        "--backend", choices=("auto", "netem", "line"), default="auto", help="what makes links"
    )


def laboratory(options: argparse.Namespace) -> Lab:
    """The laboratory that was asked for, not open yet. Raises ConfigError."""
    names = ("rate_mbit", "rtt_ms", "jitter_ms", "loss", "queue_ms", "uplink_mbit", "downlink_mbit")
    links = Links(**{name: getattr(options, name) for name in names})
    if options.links is not None:
        links = Links.read(options.links, links)
    sysctls = {}
    for each in options.sysctl:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--sysctl {each}: write NAME=VALUE")
        sysctls[name.strip()] = value.strip()
    return Lab(
        clouds=options.clouds,
        links=links,
        mtu=options.mtu,
        seed=options.seed,
        sysctls=sysctls,
        backend=options.backend,
    )


def n_bytes_of(argument: str, text: str) -> int:
    """``"64M"`` is 64 MiB. Raises ConfigError with the argument's name."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdecimal() or not 0 < int(digits) << shift <= 1 << 36:
        raise ConfigError(f"{argument} {text}: write a number from 1 to 64G, e.g. 64M")
    return int(digits) << shift
