"""fedcomm-bench-kernels as a program: rows, verification, bad arguments; and bench/table.py.

That a wrong outcome fails the process is tested in bench/harness_test.cpp, a part of fedcomm-tests.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NAME = "fedcomm-bench-kernels"
TABLE = Path(__file__).parent.parent / "bench" / "table.py"
FIELDS = {
    "kernel",
    "codec",
    "n_elems",
    "threads",
    "isa",
    "median_ms",
    "min_ms",
    "max_ms",
    "n_bytes",
    "gbps",
    "ceiling_gbps",
    "share",
    "verified",
    "allocates",
    "machine",
    "date",
    "commit",
}


@pytest.fixture(scope="session")
def program() -> str:
    beside = Path(sys.executable).parent / NAME
    found = str(beside) if beside.exists() else shutil.which(NAME)
    if found is None:
        pytest.skip(f"{NAME} is not installed: pip install . puts it on the PATH")
    return found


def bench(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)


def rows_of(program: str, *arguments: str) -> list[dict[str, Any]]:
    done = bench(program, "-n", "2", "-w", "1", "-c", "1", "--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Sizes that end within a block, a chunk and a byte, and one above all of the kernels' pieces.
@pytest.mark.parametrize("size", ["40012", "4M"])
def test_every_row_is_complete_and_right(program: str, size: str) -> None:
    rows = rows_of(program, "-b", size, "-e", size, "-t", "1,2", "--isa", "all", "--commit", "abc")
    for row in rows:
        assert row.keys() >= FIELDS
        assert row["commit"] == "abc"
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        if row["kernel"] == "stream":  # ceilings have none above them, and nothing to verify
            assert row["share"] is None
            continue
        assert row["verified"] is True, row
        if row["kernel"] == "parallel_for":  # moves nothing
            assert row["share"] is None
            continue
        assert math.isfinite(row["share"])
        assert row["share"] > 0
    kernels = {row["kernel"] for row in rows}
    assert kernels >= {"encode", "encode+feedback", "decode", "decode_add", "top_k", "rice_encode"}
    assert {row["threads"] for row in rows} == {1, 2}


def test_fresh_outputs_are_right_too(program: str) -> None:
    rows = rows_of(program, "-b", "64K", "-e", "64K", "-t", "1", "--alloc")
    verified = [row for row in rows if row["kernel"] != "stream"]
    assert all(row["verified"] is True for row in verified)
    assert {row["kernel"]: row["allocates"] for row in verified}["decode"] is True


def test_check_off_says_nothing_of_correctness(program: str) -> None:
    rows = rows_of(program, "-b", "4K", "-e", "4K", "--kernels", "decode int8", "-c", "0")
    assert rows
    assert all(row["verified"] is None for row in rows)


def test_table_defines_its_columns(program: str) -> None:
    done = bench(program, "-b", "4K", "-e", "4K", "-n", "1", "--kernels", "decode int8")
    assert done.returncode == 0
    for word in ("ceiling", "share", "B/elem", "# machine"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate"], "--frobnicate: no such argument; -h has the list"),
        (["-b", "4X"], "-b: '4X' is not a size"),
        (["-b", "8M", "-e", "4M"], "give both, the smaller first"),
        (["-t", "0"], "--threads 1,2"),
        (["--isa", "mmx"], "this CPU has portable"),
        (["--kernels", "nonesuch"], "kernels are"),
        (["--json", "/nowhere/to/be/found"], "does its folder exist?"),
    ],
)
def test_bad_arguments(program: str, arguments: list[str], message: str) -> None:
    done = bench(program, "-e", "4M", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_help(program: str) -> None:
    done = bench(program, "-h")
    assert done.returncode == 0
    assert "--stepfactor" in done.stdout


def test_results_as_a_markdown_table(tmp_path: Path) -> None:
    row = dict.fromkeys(FIELDS) | {
        "kernel": "encode",
        "codec": "a|b",
        "median_ms": 1.25,
        "min_ms": 1.0,
        "max_ms": 2.0,
        "share": 0.876,
        "verified": False,
        "allocates": True,
        "machine": "one core",
        "date": "today",
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    done = subprocess.run(
        [sys.executable, str(TABLE), str(file)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "one core; today; commit not recorded"
    assert lines[2].count("|") == lines[3].count("|")
    assert "a\\|b" in lines[4]
    assert "| 1.25 | 1 to 2 |" in lines[4]
    assert "| 0.88 |" in lines[4]
    assert lines[4].endswith("| **NO** |")


@pytest.mark.parametrize("file", sorted(TABLE.parent.glob("results/*.jsonl")), ids=lambda f: f.stem)
def test_every_kept_result_is_a_table(file: Path) -> None:
    markdown = subprocess.run(
        [sys.executable, str(TABLE), str(file)], capture_output=True, text=True, check=True
    ).stdout
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if "point" in rows[0]:  # the seeds of a point share a line, which counts them
        lines = [line.split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
        assert sum(int(cells[2]) for cells in lines if cells[2].isdigit()) == len(rows)
    else:
        assert markdown.count("\n| ") >= len(rows)
