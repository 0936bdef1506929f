"""Times pyfedcomm's CPU codecs beside torch, numpy and pi-quant, in one run.

Contestants of a task take turns, so that noise hits all alike; the medians are compared. What the
rows mean, and what is not the same work, is said in bench/README.md.

    python bench/bench_kernel_peers.py --json bench/results/peers.jsonl
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from peer_tasks import OURS, Contestant, Inputs, Task, Unavailable, tasks

from pyfedcomm import _core

# OpenMP's threads (torch's) spin for a while after their work and would slow down whoever is next.
SETTLE_S = 0.02


@dataclass
class Entrant:
    """A contestant ready to run, and what was measured; or why it cannot run."""

    contestant: Contestant
    run: Callable[[], object] | None
    missing: str | None
    verified: bool | None
    times_ms: list[float]


def enter(contestant: Contestant, inputs: Inputs) -> Entrant:
    try:
        prepared = contestant.prepare(inputs)
    except Unavailable as error:
        return Entrant(contestant, None, str(error), None, [])
    prepared.run()
    verified = prepared.check() if prepared.check is not None else None
    return Entrant(contestant, prepared.run, None, verified, [])


def race(task: Task, inputs: Inputs, n_iters: int, n_warmup: int) -> list[Entrant]:
    """Round robin over the contestants that can run."""
    entrants = [enter(each, inputs) for each in task.contestants]
    gc.collect()
    gc.disable()
    try:
        for i in range(n_warmup + n_iters):
            for entrant in entrants:
                if entrant.run is None:
                    continue
                time.sleep(SETTLE_S)
                begin = time.perf_counter()
                result = entrant.run()
                elapsed_ms = (time.perf_counter() - begin) * 1e3
                del result  # freeing what was allocated is not timed: peers keep it, too
                if i >= n_warmup:
                    entrant.times_ms.append(elapsed_ms)
    finally:
        gc.enable()
    return entrants


def median_of_ours(entrants: list[Entrant], allocates: bool) -> float | None:
    """With outputs handled alike; where we have no such thing (decode_add), as we do it."""
    ours = {
        e.contestant.allocates: statistics.median(e.times_ms)
        for e in entrants
        if e.contestant.peer == OURS and e.times_ms
    }
    return ours.get(allocates, ours.get(not allocates))


def rows_of(
    task: Task, entrants: list[Entrant], inputs: Inputs, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for entrant in entrants:
        contestant = entrant.contestant
        times = entrant.times_ms
        median = statistics.median(times) if times else None
        ours = median_of_ours(entrants, contestant.allocates)
        n_bytes = task.n_bytes(inputs.n)
        rows.append(
            {
                "kernel": task.kernel,
                "codec": contestant.what,
                "peer": contestant.peer,
                "n_elems": inputs.n,
                "threads": inputs.threads,
                "isa": _core.current_isa() if contestant.peer == OURS else None,
                "median_ms": median,
                "min_ms": min(times) if times else None,
                "max_ms": max(times) if times else None,
                "n_bytes": n_bytes,
                "gbps": n_bytes / median / 1e6 if median else None,
                "ceiling_gbps": None,  # fedcomm-bench-kernels measures those
                "share": None,
                "ratio_ours_to_peer": ours / median if ours and median else None,
                "verified": entrant.verified,
                "allocates": contestant.allocates,
                "missing": entrant.missing,
                **facts,
            }
        )
    return rows


def machine() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(": ", 1)[1]
                break
    n_cores = len(os.sched_getaffinity(0))
    return f"{model}, {n_cores} {'core' if n_cores == 1 else 'cores'}"


def commit() -> str | None:
    """The commit of the working tree, "+" where that has changes; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    print(f"\n{first['kernel']}, n = {first['n_elems']}, {first['threads']} threads")
    for row in rows:
        name = (
            f"  {row['peer']:<10} {row['codec']:<42} {'alloc' if row['allocates'] else 'out=':<6}"
        )
        if row["missing"] is not None:
            print(f"{name} {row['missing']}")
            continue
        ratio = row["ratio_ours_to_peer"]
        compared = f"ours : this = {ratio:.3f}" if ratio is not None else ""
        wrong = "  WRONG" if row["verified"] is False else ""
        print(
            f"{name} {row['median_ms']:10.2f} ms ({row['min_ms']:.2f} to {row['max_ms']:.2f})"
            f"  {compared}{wrong}"
        )
    sys.stdout.flush()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("-n", type=int, default=2**26, help="elements (default: 2^26)")
    parser.add_argument("--iters", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those (default: 1)")
    parser.add_argument("--threads", default="1,2", help="list of thread counts (default: 1,2)")
    parser.add_argument("--tasks", default="", help="only tasks whose name contains this")
    parser.add_argument("--json", type=Path, help="also one JSON object a row, to this file")
    arguments = parser.parse_args(argv)
    if arguments.n < 4096 or arguments.n % 4096 != 0:
        parser.error(f"-n: {arguments.n} is not a multiple of 4096, which eager blocks need")
    if arguments.iters < 1 or arguments.warmup < 0:
        parser.error("--iters must be 1 or more, --warmup 0 or more")
    try:
        arguments.threads = [int(part) for part in arguments.threads.split(",")]
    except ValueError:
        parser.error(f"--threads: '{arguments.threads}' is not a list of numbers; e.g. 1,2")
    if min(arguments.threads) < 1:
        parser.error("--threads: a count must be 1 or more")
    arguments.tasks = [task for task in tasks() if arguments.tasks in task.kernel]
    if not arguments.tasks:
        parser.error(f"--tasks: none has that name; tasks are {[t.kernel for t in tasks()]}")
    return arguments


def run(arguments: argparse.Namespace, file: TextIO | None) -> bool:
    """Whether all that was checked was right."""
    import torch

    right = True
    x = np.random.default_rng(1).standard_normal(arguments.n, dtype=np.float32)
    facts = {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    print(f"{facts['machine']}; torch {torch.__version__}, numpy {np.__version__}; {facts['date']}")
    for threads in arguments.threads:
        _core.use_threads(threads)
        torch.set_num_threads(threads)
        inputs = Inputs(x, threads)
        for task in arguments.tasks:
            entrants = race(task, inputs, arguments.iters, arguments.warmup)
            rows = rows_of(task, entrants, inputs, facts)
            print_rows(rows)
            for row in rows:
                right = right and row["verified"] is not False
                if file is not None:
                    file.write(json.dumps(row) + "\n")
    return right


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # torch warns that its quantized tensors will go; they are what people have today.
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if arguments.json is None:
        return 0 if run(arguments, None) else 1
    with arguments.json.open("w") as file:
        return 0 if run(arguments, file) else 1


if __name__ == "__main__":
    sys.exit(main())
