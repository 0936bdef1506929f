"""bench_hierarchy.py as a program, on CPUs: what its rows say, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyfedcomm import launch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as for the scripts there

import bench_hierarchy  # noqa: E402
import table  # noqa: E402  (found by the path just given)

pytestmark = pytest.mark.mpi


def bench(n_ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(BENCH / "bench_hierarchy.py"), *arguments]
    return subprocess.run(
        launch.mpirun_command(n_ranks, program), capture_output=True, text=True, timeout=180
    )


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
def test_sums_over_clouds_are_timed_and_right(transport: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    sizes, rates = ["--sizes", "64K,256K"], ["--rates", "0.02,0"]
    codecs = ["--codecs", "fp32,topk(0.05,int8)", "--devices", "cpu,cpu"]
    how = ["--transport", transport, "--iters", "2", "--buckets", "1,3", "--json", str(file)]
    done = bench(4, *sizes, *rates, *codecs, *how)
    assert done.returncode == 0, done.stderr
    rows = table.read_rows(file)
    assert len(rows) == len(done.stdout.splitlines()) == 2 * 2 * 2 * 2 * 2  # rails, too
    for row in rows:
        assert row["verified"]
        assert row["identical"]
        assert row["transport"] == transport
        assert (row["ranks"], row["devices"]) == ([2, 2], ["CPU", "CPU"])
        assert row["peer_ms"] > 0
        headers = row["wire_bytes"] - row["bound_bytes"]
        assert headers < 600 * row["rails"]
        assert headers > (0 if row["codec"] == "fp32" else -row["bound_bytes"] / 2)
        if row["rate_gbit"]:
            assert row["ratio_to_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
            assert row["median_ms"] > 0.5 * row["floor_ms"]  # topk's payload has a bound only
            if row["codec"] == "fp32":
                assert row["min_ms"] >= row["floor_ms"]
        else:
            assert row["floor_ms"] is None
    assert "times the wire's floor" in table.table(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0"], "--sizes 0"),
        (["--codecs", "int7"], "--codecs"),
        (["--rates", "fast"], "--rates"),
        (["--rails", "-1"], "--rails"),
        (["--iters", "0"], "--iters"),
        (["--buckets", "0"], "--buckets"),
        (["--buckets", "two"], "--buckets"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_hierarchy.parse_arguments(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "tpu,cpu"], "--devices"),
        (["--devices", "cpu"], "--devices names 1 clouds"),
        (["--rails", "2"], "n_rails"),
        (["--clouds", "1"], "--clouds"),
    ],
)
def test_what_only_ranks_know_to_be_bad(arguments: list[str], message: str) -> None:
    done = bench(2, "--sizes", "64K", "--codecs", "fp32", "--rates", "0", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
