"""The DDP hook under a real ``mpirun``: torch.distributed is one per process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyfedcomm import launch

pytestmark = pytest.mark.mpi

SCRIPT = Path(__file__).with_name("mpi_integrations.py")


def mpirun(tmp_path: Path, scenario: str, clouds: str, n_ranks: int) -> tuple[int, str]:
    log = tmp_path / "log"
    argv = [sys.executable, "-W", "error", str(SCRIPT), scenario, clouds]
    env = {"OMP_NUM_THREADS": "1"}
    status = launch.run(n_ranks, argv, timeout_s=200.0, log=log, env=env)
    output = log.read_text(errors="replace")
    assert [f"rank {rank} ok" in output for rank in range(n_ranks)] == [True] * n_ranks, output
    return status, output


@pytest.mark.parametrize(
    ("scenarios", "clouds", "n_ranks"),
    [
        ("ddp,ddp_refused", "2", 2),
        ("ddp,ddp_refused", "2", 4),
        ("ddp", "1,3", 4),
        ("ddp", "1", 2),
    ],
)
def test_gradients_are_the_mean_of_all_clouds(
    tmp_path: Path, scenarios: str, clouds: str, n_ranks: int
) -> None:
    """And what does not fit is refused."""
    status, output = mpirun(tmp_path, scenarios, clouds, n_ranks)
    assert status == 0, output


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_a_nan_ends_backward_on_every_rank(tmp_path: Path, n_ranks: int) -> None:
    # The exit status is not the point here: MPI may refuse to end well after a broken exchange.
    mpirun(tmp_path, "ddp_nan", "2", n_ranks)
