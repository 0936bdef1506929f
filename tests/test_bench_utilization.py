"""bench_utilization.py as a program: what its rows say, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as for the scripts there

import bench_utilization  # noqa: E402
import wanlab  # noqa: E402

pytestmark = pytest.mark.mpi

REASON = wanlab.missing()
SMALL = ["--local-steps", "2", "--layers", "1", "--width", "64", "--batch", "1", "--turns", "1"]
SMALL += ["--pieces", "1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "bench_utilization.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.skipif(REASON is not None, reason=f"wanlab: {REASON}")
@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--overlap-steps", "1", "--rules", "isolated; sparse"], ["isolated", "sparse"]),
        (["--overlap-steps", "1", "--slower", "3"], list(bench_utilization.UNEQUAL)),
    ],
)
def test_rows_of_every_rule_and_cloud(
    tmp_path: Path, arguments: list[str], rules: list[str]
) -> None:
    rows_file = tmp_path / "rows.jsonl"
    if "--slower" in arguments:  # four fragments need as many steps
        arguments = [*arguments, "--local-steps", "4"]
    done = run(*SMALL, *arguments, "--json", str(rows_file))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert [(r["rule"], r["cloud"]) for r in rows] == [(r, c) for c in range(2) for r in rules]
    for row in rows:
        assert 0 < row["busy"] <= 1
        # In so few steps a cloud without rounds may not have pushed at all.
        assert row["bytes_per_step"] > 0 or row["rule"] in ("isolated", "async")
        assert {"machine", "date", "commit", "rate_mbit", "rtt_ms"} <= row.keys()
        assert row["rule"] in done.stdout


@pytest.mark.parametrize(("turns", "ratio"), [([2.0, 2.2, 9.0], 1.1), ([1.0, 1.0, 1.0], 1.0 / 2)])
def test_the_ratio_is_of_each_turn_to_its_own(turns: list[float], ratio: float) -> None:
    rows = [
        {"rule": "isolated", "cloud": 0, "turn_step_s": [2.0, 2.0, 2.0], "busy": 1.0},
        {"rule": "sparse", "cloud": 0, "turn_step_s": turns, "busy": 0.9},
    ]
    row = bench_utilization.finished(rows[1], rows)
    assert row["ratio"] == pytest.approx(ratio)
    assert row["utilisation"] == pytest.approx(1 / ratio)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rules", "nothing"], "'nothing' is none of"),
        (["--width", "100"], "a multiple of 64"),
        (["--slower", "0.5"], "--slower must be 1 or more"),
        (["--pieces", "7"], "does not divide"),
        (["--turns", "0"], "--turns must be 1 or more"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
