"""How much of their time clouds compute: with an exchange beside the same clouds without one.

The rules take turns in one run, so that whatever else the machine does falls on all of them. In a
laboratory of wanlab that this program makes; or, with --plain, without one, behind the library's
own limit to what a cloud sends, where clouds of GPUs can be.

    python bench/bench_utilization.py                   # streaming and sparse beside isolated
    python bench/bench_utilization.py --slower 3        # cloud 1 sleeps two thirds of its steps
    python bench/bench_utilization.py --plain --preset llama --ranks 2 --rate 1000

What the rows mean is said in bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import facts
import running
from wanlab import Lab
from wanlab.arguments import add_laboratory, laboratory

from pyfedcomm.errors import ConfigError
from pyfedcomm.train.config import TrainConfig, load

RANKS = [sys.executable, str(Path(__file__).with_name("utilization_ranks.py"))]
PRESETS = Path(__file__).with_name("utilization")
ALONE = "isolated"
Row = dict[str, Any]

RULES: dict[str, list[str]] = {
    ALONE: ["sync.rule=isolated"],
    "default": [],
    "diloco": ["sync.rule=diloco"],
    "diloco, adaptive": ["sync.rule=diloco", "sync.adaptive=true"],
    "streaming": ["sync.rule=streaming"],
    "streaming, adaptive": ["sync.rule=streaming", "sync.adaptive=true"],
    "sparse": ["sync.rule=sparse"],
    "sparse, adaptive": ["sync.rule=sparse", "sync.adaptive=true"],
    "async": ["sync.rule=async"],
}
EQUAL = (ALONE, "streaming", "sparse")
UNEQUAL = ("streaming", "streaming, adaptive", "async")
PLAIN = (ALONE, "default")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None,
        epilog="Exit status: 1 if a rank failed or ranks ended with different parameters, 2 for a "
        "bad argument, 3 if there can be no laboratory here.",
    )
    parser.add_argument(
        "--preset",
        default="laboratory",
        help=f"{', '.join(sorted(p.stem for p in PRESETS.glob('*.toml')))} [laboratory]",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the preset, as for `pyfedcomm train`; a rule's own keys stay",
    )
    parser.add_argument("--rules", help=f"with ';' between them: {'; '.join(RULES)} [by the rest]")
    parser.add_argument("--slower", type=float, default=1.0, help="cloud 1, that many times [1]")
    parser.add_argument("--turns", type=int, default=5, help="of each rule [5]")
    parser.add_argument("--rounds", type=int, default=1, help="in a turn [1]")
    parser.add_argument(
        "--pieces", type=int, default=4, help="that a turn is made of, without --slower [4]"
    )
    parser.add_argument("--ranks", type=int, default=1, help="of each cloud [1]")
    parser.add_argument(
        "--devices", default="auto", help="of each cloud: cuda or cpu, by commas; or auto [auto]"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="without a laboratory; of its arguments --clouds and --rate count",
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="of the whole run, s [1800]")
    parser.add_argument("--json", type=Path, help="also one JSON object a row, added to this file")
    add_laboratory(parser)
    parser.set_defaults(rate_mbit=100.0, rtt_ms=50.0)
    arguments = parser.parse_args(argv)
    chosen = UNEQUAL if arguments.slower > 1 else PLAIN if arguments.plain else EQUAL
    if arguments.rules is not None:
        chosen = tuple(name.strip() for name in arguments.rules.split(";"))
    for name in chosen:
        if name not in RULES:
            parser.error(f"--rules: {name!r} is none of {'; '.join(RULES)}")
    arguments.rules = {name: [*arguments.overrides, *RULES[name]] for name in chosen}
    for name in ("turns", "rounds", "pieces", "ranks", "clouds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if arguments.slower < 1 or arguments.limit <= 0 or arguments.rate_mbit < 0:
        parser.error("--slower must be 1 or more, --limit above 0, --rate 0 or more")
    return arguments


def order_of(arguments: argparse.Namespace) -> Row:
    """What the ranks are to do. Raises ConfigError for what cannot be done."""
    preset = PRESETS / f"{arguments.preset}.toml"
    configs = {name: load(preset, rule) for name, rule in arguments.rules.items()}
    local_steps = local_steps_of(configs)
    n_steps = arguments.rounds * local_steps
    # In short pieces the rules take turns quickly, so that load falls on all alike.
    pieces = arguments.pieces if arguments.slower == 1 else 1
    if n_steps % pieces:
        raise ConfigError(f"--pieces: {pieces} does not divide a turn's {n_steps} steps")
    # A round before the first turn, and what is then under way. Adaptive clouds are together only
    # where a round ends, and have found their pace in the third one.
    overlap = max(config.sync.overlap_steps for config in configs.values())
    offset = local_steps + (overlap if arguments.slower == 1 else local_steps)
    return {
        "preset": str(preset),
        "rules": arguments.rules,
        "slower": arguments.slower,
        "turns": arguments.turns,
        "pieces": pieces,
        "steps": n_steps,
        "offset": offset,
        "clouds": arguments.clouds,
        "devices": arguments.devices,
        "limit_mbit": arguments.rate_mbit if arguments.plain else 0,
    }


def local_steps_of(configs: dict[str, TrainConfig]) -> int:
    """The steps of a round, which must be as many with all rules: their turns are as long."""
    exchanging = {name: c.sync for name, c in configs.items() if c.sync.rule != ALONE}
    steps = {name: keys.local_steps for name, keys in exchanging.items()}
    if not steps:
        raise ConfigError(f"--rules: there is nothing beside {ALONE} to measure")
    if len(set(steps.values())) > 1:
        raise ConfigError(f"rounds differ in length, {steps}; use --set sync.local_steps=NUMBER")
    return next(iter(steps.values()))


def measured(arguments: argparse.Namespace) -> list[Row]:
    """One row for each rule and cloud. Raises LabError, ConfigError; Error where ranks failed."""
    order = order_of(arguments)
    with ExitStack() as stack:
        lab: Lab | None = None
        if not arguments.plain:
            lab = stack.enter_context(laboratory(arguments))
        n_ranks = arguments.ranks * arguments.clouds
        rows = running.run(RANKS, order, n_ranks=n_ranks, lab=lab, limit_s=arguments.limit)
        about: Row = {
            "preset": arguments.preset,
            "overrides": arguments.overrides,
            "slower": arguments.slower,
            "rate_mbit": arguments.rate_mbit,
            "rtt_ms": None if lab is None else arguments.rtt_ms,
            "backend": "rate limit" if lab is None else lab.backend,
            **facts.here(),
        }
        return [finished(row, rows) | about for row in rows]


def finished(row: Row, rows: list[Row]) -> Row:
    """With the ratio to the same cloud without exchange: the median over turns, each by its own."""
    alone = next((r for r in rows if (r["rule"], r["cloud"]) == (ALONE, row["cloud"])), None)
    if alone is None:
        return {**row, "ratio": None, "utilisation": row["busy"]}
    pairs = zip(row["turn_step_s"], alone["turn_step_s"], strict=True)
    ratio = statistics.median(mine / other for mine, other in pairs)
    return {**row, "ratio": ratio, "utilisation": 1 / ratio}


def print_rows(rows: list[Row]) -> None:
    print(f"{rows[0]['n_params'] / 1e6:.1f} million parameters, {rows[0]['turns']} turns")
    print(
        f"{'rule':<22} cloud  step ms (min to max)      computing  of isolated  MB a step (floor)"
    )
    for row in rows:
        spread = f"({1e3 * row['step_min_s']:.0f} to {1e3 * row['step_max_s']:.0f})"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        least = row["floor_bytes_per_step"]
        floor = "" if least is None else f" ({least / 1e6:.3f})"
        print(
            f"{row['rule']:<22} {row['cloud']:>5}  {1e3 * row['step_s']:7.1f} {spread:<18} "
            f"{100 * row['busy']:8.1f} %  {ratio:>11}  {row['bytes_per_step'] / 1e6:9.3f}{floor}"
            + ("  RANKS DIFFER" if row["verified"] is False else "")
        )
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    def job() -> int:
        rows = measured(arguments)
        print_rows(rows)
        if arguments.json is not None:
            with arguments.json.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        return running.FAILED if any(row["verified"] is False for row in rows) else 0

    return running.status_of("bench_utilization", job)


if __name__ == "__main__":
    sys.exit(main())
