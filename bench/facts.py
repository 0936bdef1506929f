"""What a number was measured on: the same for all Python benchmarks here."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def here() -> dict[str, Any]:
    """``machine``, ``date`` and ``commit``, as rows of JSON have them."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": machine(),
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
    }


def machine() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(": ", 1)[1]
                break
    n_cores = len(os.sched_getaffinity(0))
    return f"{model}, {n_cores} {'core' if n_cores == 1 else 'cores'}"


def commit() -> str | None:
    """The commit of the working tree, "+" where that has changes; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
