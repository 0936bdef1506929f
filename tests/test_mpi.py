"""The MPI transport under a real ``mpirun``, and what happens under a wrong one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyfedcomm import _core, launch

pytestmark = pytest.mark.mpi

SCRIPT = Path(__file__).with_name("mpi_group.py")


def outcomes(tmp_path: Path, scenario: str, n_ranks: int, transport: str = "mpi") -> dict[int, str]:
    """What each rank said at its end."""
    log = tmp_path / "output.txt"
    launch.run(n_ranks, [sys.executable, str(SCRIPT), scenario, transport], timeout_s=120, log=log)
    output = log.read_text(errors="replace")
    found = re.findall(r"^rank (\d+): (.*)$", output, re.MULTILINE)
    assert found, output
    return {int(rank): outcome for rank, outcome in found}


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_every_operation_is_exact_and_bit_identical(
    tmp_path: Path, n_ranks: int, transport: str
) -> None:
    said = outcomes(tmp_path, "everything", n_ranks, transport)
    assert sorted(said) == list(range(n_ranks)), said
    assert len(set(said.values())) == 1, said
    assert re.fullmatch(r"[0-9a-f]{64}", said[0]), said


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_all_ranks_have_one_table_of_links(tmp_path: Path, n_ranks: int, transport: str) -> None:
    said = outcomes(tmp_path, "measures", n_ranks, transport)
    assert sorted(said) == list(range(n_ranks)), said
    assert len(set(said.values())) == 1, said
    assert re.fullmatch(r"[0-9a-f]{64}", said[0]), said


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
def test_a_rank_that_gives_up_ends_measuring_everywhere(tmp_path: Path, transport: str) -> None:
    said = outcomes(tmp_path, "dies_measuring", 3, transport)
    assert sorted(said) == [0, 1, 2], said
    for rank in (0, 2):
        assert re.match("PeerLost: .*rank 1.*gave up: on purpose", said[rank]), said
    assert re.match("(PeerLost|GroupBroken): .*on purpose", said[1]), said


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("shape", "InvalidArgument: .*members disagree.*elements"),
        ("nan", "NonFinite: .*rank 1: NaN or infinity at element 7"),
    ],
)
def test_errors_reach_every_rank(
    tmp_path: Path, scenario: str, expected: str, transport: str
) -> None:
    said = outcomes(tmp_path, scenario, 3, transport)
    assert sorted(said) == [0, 1, 2], said
    for outcome in said.values():
        assert re.match(expected, outcome), said


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
def test_a_rank_that_leaves(tmp_path: Path, transport: str) -> None:
    said = outcomes(tmp_path, "leaves", 3, transport)
    assert said[1] == "left"
    for rank in (0, 2):
        assert re.match("PeerLost: .*rank 1: left the group", said[rank]), said


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
def test_a_silent_rank(tmp_path: Path, transport: str) -> None:
    said = outcomes(tmp_path, "silent", 2, transport)
    assert re.match("Timeout: .*rank 1: no progress for 2 s", said[0]), said


@pytest.mark.parametrize("transport", ["mpi", "tcp"])
def test_a_broken_group_goes_on_in_a_new_epoch(tmp_path: Path, transport: str) -> None:
    assert outcomes(tmp_path, "rebuild", 3, transport) == dict.fromkeys(range(3), "epoch 1")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_started_by_another_mpi_is_a_clear_error() -> None:
    vendor = _core.build_info()["mpi_vendor"]
    foreign = {
        "openmpi": {"PMI_RANK": "0", "PMI_SIZE": "2"},
        "mpich": {"OMPI_COMM_WORLD_SIZE": "2"},
    }
    result = python(
        "import pyfedcomm as fc\n"
        "try: fc.Group.world()\n"
        "except fc.ConfigError as e: print('clear:', e)",
        **foreign[vendor],
    )
    assert result.stdout.startswith("clear: [mpi] this process was started by"), result
    assert "rebuild with" in result.stdout


def test_another_mpi_loaded_by_mpi4py_is_a_clear_error() -> None:
    """As far as one MPI can tell: mpi4py reports a library of another name."""
    foreign = {"openmpi": "MPICH Version: 4.2", "mpich": "Open MPI v5.0"}
    result = python(
        "import pyfedcomm as fc\n"
        "from pyfedcomm import _core\n"
        "from mpi4py import MPI\n"
        f"MPI.Get_library_version = lambda: {foreign[_core.build_info()['mpi_vendor']]!r}\n"
        "try: fc.Group.world()\n"
        "except fc.ConfigError as e: print('clear:', e)"
    )
    assert result.stdout.startswith("clear: [mpi] mpi4py has loaded"), result


def test_importing_pyfedcomm_loads_nothing_heavy() -> None:
    result = python(
        "import sys, pyfedcomm\n"
        "heavy = {'torch', 'transformers', 'mpi4py', 'pyfedcomm._mpi'} & set(sys.modules)\n"
        "mapped = [l for l in open('/proc/self/maps') if 'libmpi' in l]\n"
        "print(sorted(heavy), mapped)"
    )
    assert result.stdout == "[] []\n", result


def test_group_world_without_mpirun_is_a_group_of_one() -> None:
    result = python("import pyfedcomm as fc\nprint(fc.Group.world())")
    assert result.stdout == "<Group rank 0 of 1, mpi, epoch 0>\n", result
