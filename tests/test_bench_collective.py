"""fedcomm-bench-allreduce, fedcomm-bench-p2p and bench_collective_peers.py as programs.

What they take for right and wrong is tested in bench/ranks/ranks_test.cpp, a part of fedcomm-tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyfedcomm import _core, launch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as for the scripts there

import wanlab  # noqa: E402

pytestmark = pytest.mark.mpi

ALL_REDUCE, P2P = "fedcomm-bench-allreduce", "fedcomm-bench-p2p"
FIELDS = {
    "transport",
    "clouds",
    "n_bytes",
    "median_ms",
    "min_ms",
    "max_ms",
    "wire_bytes",
    "verified",
    "streams",
    "congestion",
    "threads",
    "machine",
    "date",
    "commit",
}
HEADER = 100  # at most, of a frame

REASON = wanlab.missing()
needs_laboratory = pytest.mark.skipif(REASON is not None, reason=f"wanlab: {REASON}")


def path_of(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install . puts it on the PATH")
    return found


def run(name: str, n_ranks: int, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Under mpirun; by itself where n_ranks is 0."""
    command = [path_of(name), *arguments]
    if n_ranks > 0:
        command = launch.mpirun_command(n_ranks, command)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYFEDCOMM_THREADS": "1", **env},
        check=False,
    )


def rows_of(name: str, n_ranks: int, *arguments: str) -> list[dict[str, Any]]:
    done = run(name, n_ranks, "-n", "2", "-w", "1", "--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        assert row.keys() >= FIELDS
        assert row["verified"] is True, row
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    return rows


WORLDS = [
    (2, ["--transport", "mpi"]),
    (3, ["--transport", "mpi"]),
    (2, ["--transport", "tcp", "--streams", "3", "--interface", "lo"]),
    (3, ["--transport", "tcp"]),
    (0, ["--transport", "memory", "--ranks", "4"]),
]


@pytest.mark.parametrize(("n_ranks", "transport"), WORLDS)
def test_sums_are_timed_and_right(n_ranks: int, transport: list[str]) -> None:
    codecs = "fp32,int8(stochastic),chunk_topk(4096,64,int8)"
    sizes = ["-b", "4", "-e", "400000", "-f", "100000", "--segment", "8192"]
    ways = ["--codec", codecs, "--algorithm", "direct,ring,all_gather,auto", "--commit", "abc"]
    rows = rows_of(ALL_REDUCE, n_ranks, *transport, *sizes, *ways)
    n = n_ranks or 4
    assert len(rows) == 2 * 3 * 4
    for row in rows:
        assert row["clouds"] == n
        assert row["commit"] == "abc"
        assert row["transport"] == transport[1]
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * 2 * (n - 1) / n, rel=1e-4)
        assert row["algbw_gbps"] == pytest.approx(row["n_bytes"] / row["median_ms"] / 1e6, rel=1e-4)
        if row["algorithm"] != "auto":
            assert row["algorithm_used"] == row["algorithm"]
        if "--streams" in transport:
            assert row["streams"] == 3
        elif transport[1] != "tcp":
            assert row["streams"] is None
        # What plan.h says, and headers.
        payload = row["n_bytes"] * (n - 1 if row["algorithm_used"] == "all_gather" else 2 - 2 / n)
        if row["codec"] == "fp32" and row["n_bytes"] > 4:
            frames = 2 * n * (row["n_bytes"] / 4 / 8192 + 1)
            # The busiest rank's chunk may be larger by a grain, sent to each of the others.
            grain = 4096 * 4 * n
            assert payload - grain < row["wire_bytes"] < payload + frames * HEADER + grain


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(dtype: str) -> None:
    rows = rows_of(ALL_REDUCE, 0, "--transport", "memory", "-d", dtype, "-b", "10K", "-e", "10K")
    assert [row["dtype"] for row in rows] == [dtype]


def test_a_choice_from_the_whole() -> None:
    codec = "topk(0.01, int8)"
    sizes = ["-b", "400000", "-e", "400000", "--segment", "8192"]
    world = ["--transport", "memory", "--ranks", "3"]
    # What auto takes where no links were measured; which it is after that, links decide.
    ways = ["--codec", codec, "--algorithm", "auto,sparse,all_gather", "--measure", "0"]
    rows = rows_of(ALL_REDUCE, 0, *world, *ways, *sizes)
    assert [row["algorithm_used"] for row in rows] == ["sparse", "sparse", "all_gather"]
    assert all(row["wire_bytes"] < 400000 / 20 for row in rows)


@pytest.mark.parametrize(
    ("n_ranks", "transport"), [*WORLDS[::2][:2], (4, ["--transport", "mpi"]), WORLDS[-1]]
)
def test_messages_are_timed_and_right(n_ranks: int, transport: list[str]) -> None:
    rows = rows_of(P2P, n_ranks, *transport, "-b", "5", "-e", "500000", "-f", "100000", "-m", "3")
    assert [(row["test"], row["n_bytes"]) for row in rows] == [
        ("pingpong", 5),
        ("stream", 5),
        ("pingpong", 500000),
        ("stream", 500000),
    ]
    for row in rows:
        back = row["test"] == "pingpong"
        assert row["pairs"] == (n_ranks or 4) // 2
        assert row["n_messages"] == (1 if back else 3)
        assert row["one_way_ms"] == pytest.approx(row["median_ms"] / (2 if back else 1), rel=1e-4)
        sent = row["n_messages"] * row["n_bytes"]
        assert row["gbps"] == pytest.approx(sent / row["one_way_ms"] / 1e6, rel=1e-4)
        assert sent < row["wire_bytes"] <= sent + row["n_messages"] * HEADER


@pytest.mark.parametrize("name", [ALL_REDUCE, P2P])
@pytest.mark.parametrize("spoil", ["sum", "bits"])
@pytest.mark.parametrize("n_ranks", [0, 2])
def test_a_wrong_outcome_fails_the_run(name: str, spoil: str, n_ranks: int) -> None:
    transport = "mpi" if n_ranks else "memory"
    done = run(
        name, n_ranks, "-n", "1", "-e", "4K", "--spoil", spoil, "--transport", transport, "--json"
    )
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows
    assert all(row["verified"] is False for row in rows)
    assert "rows are wrong" in done.stderr
    found = {"sum": " is ", "bits": "other bits"}[spoil] if name == ALL_REDUCE else "is wrong"
    assert found in done.stderr


def test_a_wrong_outcome_fails_every_rank(tmp_path: Path) -> None:
    script = f'{path_of(ALL_REDUCE)} -n 1 -e 1K --spoil bits; echo $? > "{tmp_path}/$$"'
    command = launch.mpirun_command(3, ["/bin/sh", "-c", script])
    subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert [file.read_text().strip() for file in tmp_path.iterdir()] == ["1"] * 3


def test_unverified_is_not_verified() -> None:
    for name in (ALL_REDUCE, P2P):
        done = run(name, 0, "--transport", "memory", "-e", "1K", "-n", "1", "-c", "0", "--json")
        assert done.returncode == 0
        assert all(json.loads(line)["verified"] is None for line in done.stdout.splitlines())


def test_tables_define_their_columns(tmp_path: Path) -> None:
    for name, words in ((ALL_REDUCE, ("busbw", "wire")), (P2P, ("GB/s", "pingpong"))):
        file = tmp_path / name
        done = run(name, 0, "--transport", "memory", "-e", "1K", "-n", "1", "--json", str(file))
        assert done.returncode == 0
        assert all(word in done.stdout for word in (*words, "# machine"))
        assert json.loads(file.read_text().splitlines()[0])["verified"] is True
        markdown = subprocess.run(
            [sys.executable, str(BENCH / "table.py"), str(file)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert "| wire bytes | verified |" in markdown[2]
        assert markdown[2].count("|") == markdown[4].count("|")
        assert markdown[4].endswith("| yes |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate"], "--frobnicate: no such argument; -h has the list"),
        (["--codec", "int9"], "--codec: there is no codec 'int9'"),
        (["--codec", "topk(0.1,int8)", "--algorithm", "ring"], "--algorithm: topk(0.1, int8)"),
        (["--algorithm", "tree"], "--algorithm: there is no algorithm 'tree'"),
        (["--segment", "100"], "--segment: '100'"),
        (["--streams", "2"], "--streams: only of --transport tcp"),
        (["--transport", "memory"], "--transport: the ranks of memory are threads"),
        (["--transport", "tcp", "--interface", "none0"], "--interface: rank 0: [tcp] there is no"),
        (["--json", "/nowhere/to/be/found"], "--json: cannot write"),
    ],
)
def test_bad_arguments_are_told_once(arguments: list[str], message: str) -> None:
    done = run(ALL_REDUCE, 3, "-e", "1K", *arguments)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith(ALL_REDUCE)]
    assert len(told) == 1, done.stderr
    assert told[0].startswith(f"{ALL_REDUCE}: {message}")
    assert done.stdout.strip() == ""


def test_odd_ranks_are_no_pairs() -> None:
    done = run(P2P, 3)
    assert done.returncode == 2
    assert "3 ranks are no pairs" in done.stderr
    done = run(P2P, 0, "--transport", "memory", "--ranks", "1")
    assert done.returncode == 2
    assert "--ranks: 1 ranks are no pairs" in done.stderr


def test_a_rank_alone() -> None:
    for n_ranks in (0, 1):
        row = rows_of(ALL_REDUCE, n_ranks, "-b", "10K", "-e", "10K", "--codec", "int8")[0]
        assert (row["clouds"], row["busbw_gbps"]) == (1, 0)


def test_help_and_another_mpirun() -> None:
    for name in (ALL_REDUCE, P2P):
        done = run(name, 2, "-h")
        assert done.returncode == 0
        assert done.stdout.count("--stepfactor") == 1
    vendor = _core.build_info()["mpi_vendor"]
    foreign = {
        "openmpi": {"PMI_RANK": "0", "PMI_SIZE": "2"},
        "mpich": {"OMPI_COMM_WORLD_SIZE": "2"},
    }
    done = run(ALL_REDUCE, 0, **foreign[vendor])
    assert done.returncode == 2
    assert "[mpi] this process was started by the mpirun of" in done.stderr


# --- beside the peers ---------------------------------------------------------------------------


def peers(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / "bench_collective_peers.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def check_peers(file: Path, n_ranks: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    who = [(row["peer"], row["codec"]) for row in rows]
    assert who == [
        ("MPI_Allreduce", "fp32"),
        ("gloo x1", "fp32"),
        ("gloo x8", "fp32"),
        *(("pyfedcomm", codec) for codec in ("fp32", "int8", "int4")),
    ]
    for row in rows:
        assert row["clouds"] == n_ranks
        if row["missing"] is not None:
            continue
        assert row["verified"] is True, row
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        if row["codec"] == "fp32":
            assert row["ratio_ours_to_peer"] > 0
        assert (row["wire_bytes"] is None) == (row["peer"] != "pyfedcomm")
    return rows


def test_peers_take_turns_on_loopback(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    done = peers("--plain", "--ranks", "3", "--sizes", "100K", "--iters", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "MPI_Allreduce" in done.stdout
    assert all(row["floor_ms"] is None for row in check_peers(file, 3))
    table = [sys.executable, str(BENCH / "table.py"), str(file)]
    printed = subprocess.run(table, capture_output=True, text=True, check=True).stdout
    assert "| MPI_Allreduce | fp32 | mpi | 3 | 102400 |" in printed


@needs_laboratory
def test_peers_beside_the_floor_of_a_link(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    done = peers(
        *("--rate", "200", "--rtt", "10", "--sizes", "256K", "--iters", "2", "--json", str(file))
    )
    assert done.returncode == 0, done.stderr
    for row in check_peers(file, 2):
        # 2 Mbit at 200 Mbit/s, and 5 ms of the way.
        assert row["floor_computed_ms"] == pytest.approx(256 * 1024 * 8e-3 / 200 + 5)
        assert row["floor_ms"] > row["floor_computed_ms"]
        assert row["ratio_to_floor"] > 0


@needs_laboratory
def test_in_a_laboratory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with wanlab.Lab(clouds=2, links=wanlab.Links(rate_mbit=200, rtt_ms=20)) as lab:
        command = [path_of(ALL_REDUCE), "--transport", "tcp", "-b", "256K", "-e", "256K"]
        done = lab.run(lab.mpirun([*command, "-n", "3", "--json", str(file)]), timeout_s=60)
    assert done.returncode == 0
    (row,) = (json.loads(line) for line in file.read_text().splitlines())
    assert row["verified"] is True
    assert row["min_ms"] > 10 + 0.5 * 256 * 1024 * 8e-3 / 200  # no faster than the link


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "4X"], "--sizes 4X"),
        (["--codecs", "int9"], "--codecs: "),
        (["--transports", "pigeon"], "--transports: pigeon"),
        (["--gloo-groups", "0"], "--gloo-groups"),
        (["--iters", "0"], "--iters"),
        (["--loss", "2"], "loss is 2"),
    ],
)
def test_bad_arguments_of_the_comparison(arguments: list[str], message: str) -> None:
    done = peers(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
