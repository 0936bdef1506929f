"""What fewer bytes between clouds cost in held-out loss: equal tokens, equal batch, equal model.

    python bench/bench_quality.py cpu --json bench/results/quality.jsonl --plot quality.svg
    python bench/bench_quality.py gpu --corpus DIR --json FILE --jobs 2 --budget 3000

Each point of ``quality/points.toml`` is a ``pyfedcomm train`` of four clouds, and one row of the
file as soon as it has ended. Points that the file has are not run again: what was cut off, failed
or did not fit into the budget is had by the same command once more. Exit status: 1 if a point has
no row.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quality import points, runs, table

from pyfedcomm.errors import Error


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    bench = runs.Bench(
        arguments.preset, arguments.work, arguments.corpus, tuple(arguments.overrides)
    )
    rows = table.read(arguments.json)
    mine = [row for row in rows if bench.made(row)]
    done = {(row["point"], row["seed"]) for row in mine}
    todo = [
        (point, seed)
        for seed in arguments.seeds
        for point in points.load(arguments.points, bench.preset)
        if (point.name, seed) not in done
    ]
    deadline = time.monotonic() + arguments.budget
    failed: list[str] = []
    lock = threading.Lock()

    def run(task: tuple[points.Point, int]) -> None:
        point, seed = task
        name, left_s = f"{point.name}, seed {seed}", deadline - time.monotonic()
        try:
            if left_s <= 0:
                raise Error("not begun: the budget is spent")
            row = runs.measure(bench, point, seed, left_s)
        except (Error, OSError) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            return
        with lock:  # a row is one whole line
            mine.append(row)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}: held-out loss {row['eval_loss']:.4f}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, todo))
    if mine:
        print(f"\n{table.render(mine)}")
    if mine and arguments.plot is not None:
        from quality import plot

        plot.write(mine, arguments.plot)
    return 1 if failed else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=("cpu", "gpu"), help="quality/cpu.toml or gpu.toml")
    parser.add_argument("--json", type=Path, required=True, help="file of rows to complete")
    parser.add_argument("--plot", type=Path, help="SVG file: bytes against loss")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="of the runs")
    parser.add_argument("--corpus", type=Path, help="what quality/corpus.py wrote")
    parser.add_argument("--points", type=Path, default=points.FILE, help="TOML file of points")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="points at a time")
    parser.add_argument("--budget", type=float, default=900, metavar="SECONDS")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="TABLE.KEY=JSON",
        help="a key of all runs, as in train.steps=500",
    )
    arguments = parser.parse_args(argv)
    if arguments.preset == "gpu" and arguments.corpus is None:
        parser.error("gpu needs --corpus: make it with quality/corpus.py")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
