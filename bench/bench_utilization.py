"""How much of their time clouds compute: with an exchange beside the same clouds without one.

In a laboratory of wanlab that this program makes, one rank of one thread a cloud; the rules take
turns in one run, so that whatever else the machine does falls on all of them.

    python bench/bench_utilization.py                   # streaming and sparse beside isolated
    python bench/bench_utilization.py --slower 3        # cloud 1 sleeps two thirds of its steps

What the rows mean is said in bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import facts
from wanlab import LabError
from wanlab.arguments import add_laboratory, laboratory

from pyfedcomm.errors import ConfigError, Error
from pyfedcomm.tcp import TcpOptions

RANKS = [sys.executable, str(Path(__file__).with_name("utilization_ranks.py"))]
BAD_ARGUMENT, FAILED, NO_LABORATORY = 2, 1, 3
ALONE = "isolated"
Row = dict[str, Any]

RULES: dict[str, Row] = {
    ALONE: {"rule": "isolated"},
    "diloco": {"rule": "diloco"},
    "diloco, adaptive": {"rule": "diloco", "adaptive": True},
    "streaming": {"rule": "streaming"},
    "streaming, adaptive": {"rule": "streaming", "adaptive": True},
    "sparse": {"rule": "sparse"},
    "sparse, adaptive": {"rule": "sparse", "adaptive": True},
    "async": {"rule": "async"},
}
EQUAL = (ALONE, "streaming", "sparse")
UNEQUAL = ("streaming", "streaming, adaptive", "async")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None,
        epilog="Exit status: 1 if a rank failed, 2 for a bad argument, 3 if there can be no "
        "laboratory here.",
    )
    parser.add_argument("--rules", help=f"with ';' between them: {'; '.join(RULES)} [by --slower]")
    parser.add_argument("--slower", type=float, default=1.0, help="cloud 1, that many times [1]")
    parser.add_argument("--turns", type=int, default=5, help="of each rule [5]")
    parser.add_argument("--rounds", type=int, default=1, help="in a turn [1]")
    parser.add_argument(
        "--pieces", type=int, default=4, help="that a turn is made of, without --slower [4]"
    )
    parser.add_argument("--local-steps", type=int, default=20, help="of a round [20]")
    parser.add_argument("--overlap-steps", type=int, default=2, help="of streaming and async [2]")
    parser.add_argument("--layers", type=int, default=4, help="of the GPT-2 [4]")
    parser.add_argument("--width", type=int, default=256, help="a multiple of 64 [256]")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step [4]")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens of a sequence [128]")
    parser.add_argument("--timeout", type=float, default=60.0, help="of an exchange, s [60]")
    parser.add_argument("--limit", type=float, default=1800.0, help="of the whole run, s [1800]")
    parser.add_argument("--json", type=Path, help="also one JSON object a row, added to this file")
    add_laboratory(parser)
    parser.set_defaults(rate_mbit=100.0, rtt_ms=50.0)
    arguments = parser.parse_args(argv)
    chosen = UNEQUAL if arguments.slower > 1 else EQUAL
    if arguments.rules is not None:
        chosen = tuple(name.strip() for name in arguments.rules.split(";"))
    for name in chosen:
        if name not in RULES:
            parser.error(f"--rules: {name!r} is none of {'; '.join(RULES)}")
    arguments.rules = {name: RULES[name] for name in chosen}
    for name in ("turns", "rounds", "pieces", "local_steps", "layers", "batch", "seq_len"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if arguments.rounds * arguments.local_steps % arguments.pieces:
        parser.error(f"--pieces: {arguments.pieces} does not divide a turn's steps")
    if arguments.width < 64 or arguments.width % 64:
        parser.error(f"--width: {arguments.width}: a multiple of 64")
    if arguments.slower < 1 or arguments.timeout <= 0 or arguments.limit <= 0:
        parser.error("--slower must be 1 or more, --timeout and --limit above 0")
    return arguments


def order_of(arguments: argparse.Namespace, results: Path) -> str:
    names = ["rules", "slower", "turns", "layers", "width", "batch", "seq_len", "local_steps"]
    names += ["overlap_steps"]
    order = {name: getattr(arguments, name) for name in names}
    order |= {
        # In short pieces the rules take turns quickly, so that load falls on all alike.
        "pieces": arguments.pieces if arguments.slower == 1 else 1,
        "steps": arguments.rounds * arguments.local_steps,
        # Adaptive clouds are together only where a round ends, and have found their pace in the
        # third one; others get past an exchange.
        "offset": 2 * arguments.local_steps if arguments.slower > 1 else 3,
        "timeout_s": arguments.timeout,
        "tcp": asdict(TcpOptions()),
        "results": str(results),
    }
    return json.dumps(order)


def measured(arguments: argparse.Namespace) -> list[Row]:
    """One row for each rule and cloud. Raises LabError, ConfigError; Error where ranks failed."""
    with tempfile.TemporaryDirectory() as folder, laboratory(arguments) as lab:
        results, log = Path(folder) / "rows.json", Path(folder) / "output.txt"
        with log.open("w") as sink:
            status = lab.run(
                lab.mpirun([*RANKS, order_of(arguments, results)]),
                timeout_s=arguments.limit,
                stdout=sink,
                stderr=subprocess.STDOUT,
            ).returncode
        if status != 0 or not results.exists():
            said = log.read_text(errors="replace")[-4000:]
            raise Error(f"the ranks ended with status {status}:\n{said}")
        rows: list[Row] = json.loads(results.read_text())
        names = (
            "rate_mbit",
            "rtt_ms",
            "slower",
            "local_steps",
            "overlap_steps",
            "batch",
            "seq_len",
        )
        about: Row = {name: getattr(arguments, name) for name in names}
        about |= {"backend": lab.backend, **facts.here()}
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
    print(f"{'rule':<22} cloud  step ms (min to max)      computing  of isolated  MB a step")
    for row in rows:
        spread = f"({1e3 * row['step_min_s']:.0f} to {1e3 * row['step_max_s']:.0f})"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        print(
            f"{row['rule']:<22} {row['cloud']:>5}  {1e3 * row['step_s']:7.1f} {spread:<18} "
            f"{100 * row['busy']:8.1f} %  {ratio:>11}  {row['bytes_per_step'] / 1e6:9.3f}"
        )
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        rows = measured(arguments)
    except ConfigError as error:
        print(f"bench_utilization: {error}", file=sys.stderr)
        return BAD_ARGUMENT
    except LabError as error:
        print(f"bench_utilization: {error}", file=sys.stderr)
        return NO_LABORATORY
    except Error as error:
        print(f"bench_utilization: {error}", file=sys.stderr)
        return FAILED
    print_rows(rows)
    if arguments.json is not None:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
