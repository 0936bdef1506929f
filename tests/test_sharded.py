"""Parameters sharded inside clouds (FSDP2): real ``mpirun`` runs of `mpi_sharded`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from pyfedcomm import dtensor, launch

pytestmark = pytest.mark.mpi

SCRIPT = Path(__file__).with_name("mpi_sharded.py")
DEADLINE_S = 300.0


def mpirun(tmp_path: Path, n_ranks: int, *argv: str) -> tuple[int, str]:
    log = tmp_path / "output.txt"
    # What NCCL and drivers warn of is not ours.
    warnings = "default" if "cuda" in argv else "error"
    command = [sys.executable, "-W", warnings, str(SCRIPT), *argv]
    env = {"OMP_NUM_THREADS": "1"}
    status = launch.run(n_ranks, command, timeout_s=DEADLINE_S, log=log, env=env)
    return status, log.read_text(errors="replace")


def passed(output: str) -> list[int]:
    return sorted(int(rank) for rank in re.findall(r"^rank (\d+) ok$", output, re.MULTILINE))


@pytest.mark.parametrize(
    ("scenarios", "clouds", "held", "n_ranks"),
    [
        ("rules,errors,muon", "1", "sharded", 2),
        ("muon", "1", "sharded", 3),
        ("rules,muon", "2", "sharded,sharded", 4),
        ("rules", "2", "sharded,whole", 4),
        ("rules", "1,3", "whole,sharded", 4),
    ],
)
def test_rules_do_not_depend_on_who_holds_what(
    tmp_path: Path, scenarios: str, clouds: str, held: str, n_ranks: int
) -> None:
    """Nor do they guess at placements that they do not understand: those are errors."""
    status, output = mpirun(tmp_path, n_ranks, scenarios, clouds, held)
    assert passed(output) == list(range(n_ranks)), output
    assert status == 0, output


@pytest.mark.parametrize(
    ("scenarios", "clouds", "held", "n_ranks"),
    [
        ("rules,muon", "1", "sharded", 2),
        ("rules,muon", "2", "sharded,sharded", 4),
        ("rules", "1,3", "whole,sharded", 4),
    ],
)
def test_rules_on_gpus(
    tmp_path: Path, scenarios: str, clouds: str, held: str, n_ranks: int
) -> None:
    if torch.cuda.device_count() < n_ranks:
        pytest.skip(f"needs {n_ranks} GPUs")
    status, output = mpirun(tmp_path, n_ranks, scenarios, clouds, held, "cuda")
    assert passed(output) == list(range(n_ranks)), output
    assert status == 0, output


@pytest.mark.parametrize(("clouds", "held"), [("2", "sharded,whole"), ("1,3", "whole,sharded")])
def test_a_bad_value_is_named_on_every_rank(tmp_path: Path, clouds: str, held: str) -> None:
    # The exit status is not the point here: MPI may refuse to end well after a broken exchange.
    _, output = mpirun(tmp_path, 4, "failures", clouds, held)
    assert passed(output) == [0, 1, 2, 3], output


@pytest.mark.parametrize("n_rows", [0, 1, 2, 7, 8, 9])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 9])
def test_rows_are_torchs_chunks(n_rows: int, n_ranks: int) -> None:
    chunks = list(torch.arange(n_rows).chunk(n_ranks)) if n_rows else []
    chunks += [torch.arange(0)] * (n_ranks - len(chunks))
    for rank, chunk in enumerate(chunks):
        held = dtensor.rows(n_rows, n_ranks, rank)
        assert list(range(held.start, held.stop)) == chunk.tolist()
