"""Times an all-reduce by pyfedcomm beside MPI_Allreduce and torch's gloo, in one run, in turns.

In a laboratory of wanlab, which this program makes, with the floor of its links (raw TCP, and bytes
/ rate + the way) measured in the same run; or, with --plain, over this machine's loopback. What the
rows mean is said in bench/README.md.

    python bench/bench_collective_peers.py --rate 1000 --rtt 50 --sizes 1M,64M --json peers.jsonl
    python bench/bench_collective_peers.py --plain --ranks 4
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import facts
import running
from arguments import codec_names, sizes_of
from wanlab import Lab, measure
from wanlab.arguments import add_laboratory, laboratory

from pyfedcomm.tcp import TcpOptions

RANKS = [sys.executable, str(Path(__file__).with_name("collective_peers.py"))]
Row = dict[str, Any]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None,
        epilog="Exit status: 1 if a sum was wrong, 2 for a bad argument, 3 if there can be no "
        "laboratory here.",
    )
    parser.add_argument("--sizes", default="1M,64M", help="bytes of a rank's tensor [1M,64M]")
    parser.add_argument("--iters", type=int, default=5, help="timed rounds [5]")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those [1]")
    parser.add_argument("--codecs", default="fp32,int8,int4", help="of ours [fp32,int8,int4]")
    parser.add_argument("--algorithm", default="auto", help="of ours [auto]")
    parser.add_argument("--transports", default="tcp", help="of ours: tcp, mpi [tcp]")
    parser.add_argument("--streams", type=int, default=0, help="of ours; 0: by the path [0]")
    parser.add_argument("--congestion", default="", help="of ours [bbr where the kernel has it]")
    parser.add_argument("--gloo-groups", default="1,8", help="gloo groups at once [1,8]")
    parser.add_argument("--timeout", type=float, default=60.0, help="of one operation, s [60]")
    parser.add_argument("--limit", type=float, default=3600.0, help="of the whole run, s [3600]")
    parser.add_argument("--plain", action="store_true", help="loopback, without a laboratory")
    parser.add_argument("--ranks", type=int, default=2, help="with --plain [2]")
    parser.add_argument("--json", type=Path, help="also one JSON object a row, to this file")
    add_laboratory(parser)
    arguments = parser.parse_args(argv)
    arguments.sizes = sizes_of(parser, arguments.sizes)
    arguments.codecs = codec_names(parser, arguments.codecs)
    arguments.transports = arguments.transports.split(",")
    if not set(arguments.transports) <= {"tcp", "mpi"}:
        parser.error(f"--transports: {','.join(arguments.transports)}: they are tcp and mpi")
    if arguments.algorithm not in ("auto", "direct", "ring", "all_gather", "sparse"):
        parser.error(
            f"--algorithm: {arguments.algorithm}: auto, direct, ring, all_gather or sparse"
        )
    try:
        arguments.gloo_groups = [int(part) for part in arguments.gloo_groups.split(",")]
    except ValueError:
        parser.error(f"--gloo-groups: {arguments.gloo_groups} is no list of numbers; e.g. 1,8")
    if not all(1 <= n <= 64 for n in arguments.gloo_groups):
        parser.error("--gloo-groups: from 1 to 64")
    if arguments.iters < 1 or arguments.warmup < 0 or arguments.ranks < 1:
        parser.error("--iters and --ranks must be 1 or more, --warmup 0 or more")
    if arguments.timeout <= 0 or arguments.limit <= 0:
        parser.error("--timeout and --limit must be above 0")
    return arguments


# --- the floor ------------------------------------------------------------------------------------


def computed_floor_ms(lab: Lab, n_bytes: int) -> float:
    """The least time that links leave: each cloud sends every other its share and gets a sum.

    Two clouds send each other everything at once, one way; more send 2/N of it to each, in two
    steps. The slowest link, uplink or downlink decides.
    """
    n = lab.n_clouds
    if n == 1:
        return 0.0
    of_pair = 2 * n_bytes / n
    slowest = 0.0
    one_way = 0.0
    for a in range(n):
        site = lab.links.site(a)
        for rate in (site.uplink_mbit, site.downlink_mbit):
            slowest = max(slowest, (n - 1) * of_pair * 8e-3 / rate if rate > 0 else 0.0)
        for b in range(n):
            if a == b:
                continue
            link = lab.link(a, b)
            if link.rate_mbit > 0:
                slowest = max(slowest, of_pair * 8e-3 / link.rate_mbit)
            one_way = max(one_way, link.rtt_ms / 2)
    return slowest + one_way * (1 if n == 2 else 2)


def floors(lab: Lab, arguments: argparse.Namespace) -> dict[int, Row]:
    """Of each size. Raw TCP is measured where the link of one pair is all that matters."""
    found: dict[int, Row] = {}
    for n_bytes in arguments.sizes:
        row: Row = {"floor_computed_ms": computed_floor_ms(lab, n_bytes), "floor_ms": None}
        if lab.n_clouds == 2:
            raw = measure.floor(lab, n_bytes, repeats=arguments.iters)
            row |= {"floor_ms": raw.median_ms, "floor_min_ms": raw.min_ms}
            row |= {"floor_max_ms": raw.max_ms, "floor_congestion": raw.congestion}
        found[n_bytes] = row
    return found


# --- the run --------------------------------------------------------------------------------------


def order_of(arguments: argparse.Namespace) -> Row:
    tcp = TcpOptions(streams=arguments.streams, congestion=arguments.congestion)
    order = {name: getattr(arguments, name) for name in ("sizes", "iters", "warmup", "codecs")}
    order |= {name: getattr(arguments, name) for name in ("algorithm", "transports", "gloo_groups")}
    return order | {"timeout_s": arguments.timeout, "tcp": asdict(tcp)}


def measured(arguments: argparse.Namespace) -> list[Row]:
    """Rows of all contestants, with the floor of their size."""
    with ExitStack() as stack:
        lab: Lab | None = None
        about: Row = facts.here()
        found: dict[int, Row] = {}
        if not arguments.plain:
            lab = stack.enter_context(laboratory(arguments))
            found = floors(lab, arguments)
            about |= {"links": _links(arguments), "backend": lab.backend}
        n_ranks = arguments.ranks if lab is None else lab.n_clouds
        rows = running.run(
            RANKS, order_of(arguments), n_ranks=n_ranks, lab=lab, limit_s=arguments.limit
        )
        nothing: Row = {"floor_computed_ms": None, "floor_ms": None}
        return [finished(row, rows, found.get(row["n_bytes"], nothing)) | about for row in rows]


def _links(arguments: argparse.Namespace) -> Row:
    names = ("rate_mbit", "rtt_ms", "jitter_ms", "loss", "queue_ms", "uplink_mbit", "downlink_mbit")
    links: Row = {name: getattr(arguments, name) for name in names}
    return links | {"table": str(arguments.links) if arguments.links is not None else None}


def finished(row: Row, rows: list[Row], floor: Row) -> Row:
    """The row with what follows from others: rates, and ratios to the floor and to ours."""
    median, n = row["median_ms"], row["clouds"]
    algbw = row["n_bytes"] / median / 1e6 if median else None
    ours = next(
        (
            other["median_ms"]
            for other in rows
            if other["peer"] == "pyfedcomm"
            and other["codec"] == row["codec"]
            and other["n_bytes"] == row["n_bytes"]
        ),
        None,
    )
    least = floor["floor_ms"]
    return {
        **row,
        "algbw_gbps": algbw,
        "busbw_gbps": algbw * 2 * (n - 1) / n if algbw is not None else None,
        **floor,
        "ratio_to_floor": median / least if median and least else None,
        "ratio_ours_to_peer": ours / median if ours and median else None,
    }


def print_rows(rows: list[Row]) -> None:
    size = None
    for row in rows:
        if row["n_bytes"] != size:
            size = row["n_bytes"]
            print(f"\nall_reduce, {size} bytes, {row['clouds']} ranks")
            if row["floor_computed_ms"] is not None:
                print(f"  {'bytes / rate + way':<28} {row['floor_computed_ms']:10.2f} ms")
            if row["floor_ms"] is not None:
                name = f"raw TCP, 8 streams ({row['floor_congestion']})"
                spread = f"({row['floor_min_ms']:.2f} to {row['floor_max_ms']:.2f})"
                print(f"  {name:<28} {row['floor_ms']:10.2f} ms {spread}")
        name = f"  {row['peer']:<14} {row['codec']:<8} {row['transport']:<4}"
        if row["missing"] is not None:
            print(f"{name} {row['missing']}")
            continue
        line = f"{name} {row['median_ms']:10.2f} ms ({row['min_ms']:.2f} to {row['max_ms']:.2f})"
        if row["ratio_to_floor"] is not None:
            line += f"  {row['ratio_to_floor']:.2f} x raw TCP"
        if row["ratio_ours_to_peer"] is not None and row["peer"] != "pyfedcomm":
            line += f"  ours : this = {row['ratio_ours_to_peer']:.3f}"
        print(line + (f"  WRONG: {row['problem']}" if row["problem"] else ""))
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    def job() -> int:
        rows = measured(arguments)
        print_rows(rows)
        if arguments.json is not None:
            arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return running.FAILED if any(row["problem"] for row in rows) else 0

    return running.status_of("bench_collective_peers", job)


if __name__ == "__main__":
    sys.exit(main())
