"""demo: a few steps of it, for real under mpirun, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pyfedcomm import _core, demo

KEYS = {
    "eval_loss_start",
    "eval_loss",
    "eval_loss_isolated",
    "wan_bytes",
    "wan_bytes_data_parallel",
    "seconds",
    "bit_identical",
}
N_STEPS = demo.LOCAL_STEPS + 4
DEADLINE_S = 1200.0

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(DEADLINE_S)]


def run_demo(out: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyfedcomm", "demo", "--out", str(out), *argv],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A demo that was run once, with one full and one partial round: (its directory, its JSON)."""
    out = tmp_path_factory.mktemp("demo")
    done = run_demo(out, "--json", "--steps", str(N_STEPS))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_json_is_one_object_with_the_promised_keys(
    finished: tuple[Path, dict[str, object]],
) -> None:
    _, result = finished
    assert result.keys() >= KEYS
    assert result["bit_identical"] is True
    assert result["steps"] == N_STEPS


def test_the_numbers_are_those_of_the_runs(finished: tuple[Path, dict[str, object]]) -> None:
    out, result = finished
    for name, key in (("exchange", "eval_loss"), ("isolated", "eval_loss_isolated")):
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        assert result[key] == json.loads(lines[-1])["eval_loss"]
    start, after = result["eval_loss_start"], result["eval_loss"]
    assert isinstance(start, float)
    assert isinstance(after, float)
    assert after < start - 1, "it has learned"


def test_bytes_between_clouds(finished: tuple[Path, dict[str, object]]) -> None:
    _, result = finished
    n_params, sent = result["n_params"], result["wan_bytes"]
    assert isinstance(n_params, int)
    assert isinstance(sent, int)
    # Two rounds, two clouds; each sends half of the delta and half of the sum, a byte an element.
    payload = 2 * 2 * n_params
    assert payload < sent < 1.05 * payload
    assert result["wan_bytes_data_parallel"] == 2 * 4 * n_params * N_STEPS


def test_the_report_is_written(finished: tuple[Path, dict[str, object]]) -> None:
    out, result = finished
    assert result["report"] == str(out / "report.html")
    assert "</html>" in (out / "report.html").read_text()


def test_a_run_that_fails_is_reported_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "_CONFIG", demo._CONFIG.replace("seq_len", "seq_length"))
    result = CliRunner().invoke(demo_app(), ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "the run 'with exchange' failed" in result.stderr
    assert "seq_length" in result.stderr
    assert "log.txt" in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_without_mpirun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        _core, "build_info", lambda: {"mpi_vendor": "none", "mpi_version": "", "mpi_library": ""}
    )
    result = CliRunner().invoke(demo_app(), ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "has no MPI" in result.stderr


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(demo_app(), ["demo", "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_differing_ranks_fail_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    same = demo.DemoResult(5.0, 2.0, 2.5, 10, 1000, 1.0, False, 100.0, 5, 5, 5, {}, "report.html")
    monkeypatch.setattr(demo, "run_demo", lambda *_: (same, ()))
    result = CliRunner().invoke(demo_app(), ["demo", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["bit_identical"] is False
    assert "different parameters" in result.stderr


def demo_app() -> typer.Typer:
    """The app with its command, as `cli.main` makes it."""
    made = typer.Typer(callback=lambda: None)
    made.command()(demo.demo)
    return made
