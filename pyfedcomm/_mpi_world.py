"""The MPI of this process: loads it, checks that it is the right one, and leaves it in order.

The compiled transport (``_mpi``) links one MPI library by its name. Started under another MPI it
would find no symbols, or worse, a second MPI that believes itself alone; so everything that can be
told apart is told apart before it is imported.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
import weakref
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pyfedcomm import _core
from pyfedcomm.errors import ConfigError

if TYPE_CHECKING:
    from pyfedcomm.group import Group

OPEN_TIMEOUT_S = 60.0
LEAVE_GRACE_S = 2.0

_NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}
_fabric: _core.Fabric | None = None
_groups: weakref.WeakSet[Group] = weakref.WeakSet()


def fabric() -> _core.Fabric:
    """All ranks of this process's ``mpirun``; opened once. Collective the first time."""
    global _fabric
    if _fabric is None:
        _fabric = _load().open(OPEN_TIMEOUT_S)
    return _fabric


def launcher() -> str | None:
    """The MPI whose ``mpirun`` started this process, by its environment; None if none did."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return "openmpi"
    if "PMI_SIZE" in os.environ or "PMI_RANK" in os.environ:
        return "mpich"
    return None


def close_at_exit(group: Group) -> None:
    """Closes the group before MPI is finalised, if nobody has."""
    _groups.add(group)


def _load() -> ModuleType:
    built = _core.build_info()
    vendor = built["mpi_vendor"]
    started_by = launcher()
    if started_by is not None and started_by != vendor:
        raise ConfigError(
            f"[mpi] this process was started by {_NAMES[started_by]}'s mpirun, but pyfedcomm was "
            f"built with {_NAMES[vendor]} {built['mpi_version']}: start it with {_NAMES[vendor]}'s "
            f"mpirun, or rebuild with {_NAMES[started_by]}'s mpicc first on the PATH "
            "(pip install --force-reinstall --no-cache-dir pyfedcomm)"
        )
    _load_library(built["mpi_library"], f"{_NAMES[vendor]} {built['mpi_version']}", vendor)
    os.environ.setdefault("MPI4PY_MPIABI", vendor)
    from mpi4py import MPI

    loaded = "openmpi" if "Open MPI" in MPI.Get_library_version() else "mpich"
    if loaded != vendor:
        raise ConfigError(
            f"[mpi] mpi4py has loaded {MPI.Get_library_version().splitlines()[0]!r}, but pyfedcomm "
            f"was built with {_NAMES[vendor]} {built['mpi_version']}; import pyfedcomm before "
            f"mpi4py, set MPI4PY_MPIABI={vendor}, or rebuild pyfedcomm"
        )
    try:
        from pyfedcomm import _mpi
    except ImportError as error:
        raise ConfigError(
            f"[mpi] the MPI transport could not be loaded ({error}); it was built with "
            f"{_NAMES[vendor]} {built['mpi_version']} ({built['mpi_library']})"
        ) from error
    # Registered after mpi4py's import, so it runs before MPI is finalised.
    atexit.register(_leave)
    return _mpi


def _load_library(soname: str, description: str, wheel: str) -> None:
    """Loads the library that the transport links, so that mpi4py finds the same one."""
    of_wheel = Path(sys.prefix, "lib", soname)
    try:
        ctypes.CDLL(str(of_wheel) if of_wheel.exists() else soname, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ConfigError(
            f"[mpi] {error}: pyfedcomm was built with {description} and needs its {soname}; "
            f"load its module, set LD_LIBRARY_PATH, or pip install {wheel}"
        ) from error


def _leave() -> None:
    from mpi4py import MPI

    from pyfedcomm import _mpi

    for group in list(_groups):
        group.close()
    deadline = time.monotonic() + LEAVE_GRACE_S
    while _mpi.abandoned_requests():
        if time.monotonic() > deadline:
            # A broken group left messages that nobody will receive: MPI_Finalize would wait for
            # them. By now the other ranks have had the time to say what they know.
            sys.stdout.flush()
            sys.stderr.write("pyfedcomm: leaving with messages that no peer took; MPI aborts\n")
            sys.stderr.flush()
            MPI.COMM_WORLD.Abort(1)
        time.sleep(0.01)
