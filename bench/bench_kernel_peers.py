"""Times pyfedcomm's codecs beside torch, numpy and pi-quant, or torch and Triton, in one run.

Contestants of a task take turns, so that noise hits all alike; the medians are compared. What the
rows mean, and what is not the same work, is said in bench/README.md.

    python bench/bench_kernel_peers.py --json bench/results/peers.jsonl
    python bench/bench_kernel_peers.py --device cuda -n 268435456
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import facts
import numpy as np
from cuda_peer_tasks import COPY, cuda_tasks
from peer_tasks import OURS, Contestant, CudaInputs, Inputs, Task, Unavailable, tasks

from pyfedcomm import _core

# OpenMP's threads (torch's) spin for a while after their work and would slow down whoever is next.
SETTLE_S = 0.02
FLUSH_BYTES = 256 << 20  # more than any GPU's L2 cache

AnyInputs: TypeAlias = Inputs | CudaInputs
Stopwatch: TypeAlias = Callable[[Callable[[], object]], float]
"""Runs something once; returns the milliseconds that it took."""


@dataclass
class Entrant:
    """A contestant ready to run, and what was measured; or why it cannot run."""

    contestant: Contestant
    run: Callable[[], object] | None
    missing: str | None
    verified: bool | None
    times_ms: list[float]


def enter(contestant: Contestant, inputs: AnyInputs) -> Entrant:
    try:
        prepared = contestant.prepare(inputs)
    except Unavailable as error:
        return Entrant(contestant, None, str(error), None, [])
    prepared.run()
    verified = prepared.check() if prepared.check is not None else None
    return Entrant(contestant, prepared.run, None, verified, [])


def race(
    task: Task, inputs: AnyInputs, stopwatch: Stopwatch, n_iters: int, n_warmup: int
) -> list[Entrant]:
    """Round robin over the contestants that can run."""
    entrants = [enter(each, inputs) for each in task.contestants]
    gc.collect()
    gc.disable()
    try:
        for i in range(n_warmup + n_iters):
            for entrant in entrants:
                if entrant.run is None:
                    continue
                elapsed_ms = stopwatch(entrant.run)
                if i >= n_warmup:
                    entrant.times_ms.append(elapsed_ms)
    finally:
        gc.enable()
    return entrants


def time_on_cpu(run: Callable[[], object]) -> float:
    time.sleep(SETTLE_S)
    begin = time.perf_counter()
    result = run()
    elapsed_ms = (time.perf_counter() - begin) * 1e3
    del result  # freeing what was allocated is not timed: peers keep it, too
    return elapsed_ms


def cuda_stopwatch() -> Stopwatch:
    """Between two events of the stream, after something else has been through the L2 cache: while
    the GPU writes that, the host gets ahead of it."""
    import torch

    junk = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def time_on_gpu(run: Callable[[], object]) -> float:
        junk.zero_()
        begin.record()
        result = run()
        end.record()
        end.synchronize()
        del result
        return float(begin.elapsed_time(end))

    return time_on_gpu


def median_of_ours(entrants: list[Entrant], allocates: bool) -> float | None:
    """With outputs handled alike; where we have no such thing (decode_add), as we do it."""
    ours = {
        e.contestant.allocates: statistics.median(e.times_ms)
        for e in entrants
        if e.contestant.peer == OURS and e.times_ms
    }
    return ours.get(allocates, ours.get(not allocates))


def rows_of(
    task: Task,
    entrants: list[Entrant],
    inputs: AnyInputs,
    ceiling_gbps: float | None,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for entrant in entrants:
        contestant = entrant.contestant
        times = entrant.times_ms
        median = statistics.median(times) if times else None
        ours = median_of_ours(entrants, contestant.allocates)
        n_bytes = task.n_bytes(inputs.n)
        gbps = n_bytes / median / 1e6 if median else None
        on_cpu = inputs.threads is not None
        rows.append(
            {
                "kernel": task.kernel,
                "codec": contestant.what,
                "peer": contestant.peer,
                "n_elems": inputs.n,
                "threads": inputs.threads,
                "isa": _core.current_isa() if contestant.peer == OURS and on_cpu else None,
                "median_ms": median,
                "min_ms": min(times) if times else None,
                "max_ms": max(times) if times else None,
                "n_bytes": n_bytes,
                "gbps": gbps,
                "ceiling_gbps": ceiling_gbps,  # of a CPU: fedcomm-bench-kernels measures those
                "share": gbps / ceiling_gbps if gbps and ceiling_gbps else None,
                "ratio_ours_to_peer": ours / median if ours and median else None,
                "verified": entrant.verified,
                "allocates": contestant.allocates,
                "missing": entrant.missing,
                **about,
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    where = "GPU" if first["threads"] is None else f"{first['threads']} threads"
    print(f"\n{first['kernel']}, n = {first['n_elems']}, {where}")
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
            f"{name} {row['median_ms']:10.3f} ms ({row['min_ms']:.3f} to {row['max_ms']:.3f})"
            f"  {compared}{wrong}"
        )
    sys.stdout.flush()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("-n", type=int, default=2**26, help="elements (default: 2^26)")
    parser.add_argument("--iters", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those (default: 1)")
    parser.add_argument(
        "--threads", default="1,2", help="of the CPU: list of counts (default: 1,2)"
    )
    parser.add_argument("--tasks", default="", help="only tasks whose name contains this")
    parser.add_argument("--commit", help="recorded in rows (default: as git tells)")
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
    known = cuda_tasks() if arguments.device == "cuda" else tasks()
    arguments.tasks = [task for task in known if arguments.tasks in task.kernel]
    if not arguments.tasks:
        parser.error(f"--tasks: none has that name; tasks are {[t.kernel for t in known]}")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU here")
        if not _core.cuda.available():
            parser.error("--device cuda: pyfedcomm was built without nvcc")
    return arguments


def run(arguments: argparse.Namespace, file: TextIO | None) -> bool:
    """Whether all that was checked was right."""
    import torch

    right = True
    on_gpu = arguments.device == "cuda"
    about = {
        **facts.here(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    if on_gpu:
        about["machine"] = torch.cuda.get_device_name()
    if arguments.commit:
        about["commit"] = arguments.commit
    print(f"{about['machine']}; torch {torch.__version__}, numpy {np.__version__}; {about['date']}")
    ceiling_gbps: float | None = None
    for inputs, stopwatch in settings(arguments):
        for task in arguments.tasks:
            entrants = race(task, inputs, stopwatch, arguments.iters, arguments.warmup)
            rows = rows_of(task, entrants, inputs, ceiling_gbps, about)
            if on_gpu and task.kernel == COPY:
                ceiling_gbps = rows[0]["gbps"]
            print_rows(rows)
            for row in rows:
                right = right and row["verified"] is not False
                if file is not None:
                    file.write(json.dumps(row) + "\n")
    return right


def settings(arguments: argparse.Namespace) -> Iterator[tuple[AnyInputs, Stopwatch]]:
    """What the tasks run with, one after the other: the GPU, or the CPU with each thread count."""
    import torch

    if arguments.device == "cuda":
        yield CudaInputs(arguments.n), cuda_stopwatch()
        return
    x = np.random.default_rng(1).standard_normal(arguments.n, dtype=np.float32)
    for threads in arguments.threads:
        _core.use_threads(threads)
        torch.set_num_threads(threads)
        yield Inputs(x, threads), time_on_cpu


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
