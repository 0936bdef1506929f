"""How benchmarks start ranks, in a laboratory or without one, and what they exit with."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wanlab import Lab, LabError

from pyfedcomm import launch
from pyfedcomm.errors import ConfigError, Error, Timeout

FAILED, BAD_ARGUMENT, NO_LABORATORY = 1, 2, 3
SAID = 4000
"""Characters of what failed ranks printed that are told."""
Row = dict[str, Any]


class RanksFailed(Error):
    """With the end of what they said."""


def run(
    program: Sequence[str], order: Row, *, n_ranks: int, lab: Lab | None, limit_s: float
) -> list[Row]:
    """Starts ``program`` under mpirun and returns the rows that its rank 0 wrote.

    order: what it gets as argument, as JSON, with ``results`` added: the file of its rows.
    n_ranks: of all clouds; in a laboratory as many in each. limit_s: seconds for all of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "rows.json", Path(folder) / "output.txt"
        command = [*program, json.dumps(order | {"results": str(results)})]
        try:
            if lab is None:
                status = launch.run(n_ranks, command, timeout_s=limit_s, log=log)
            else:
                with log.open("w") as sink:
                    status = lab.run(
                        lab.mpirun(command, ranks=n_ranks // lab.n_clouds),
                        timeout_s=limit_s,
                        stdout=sink,
                        stderr=subprocess.STDOUT,
                    ).returncode
            if status == 0 and results.exists():
                rows: list[Row] = json.loads(results.read_text())
                return rows
            what = f"the ranks ended with status {status}"
        except Timeout as error:
            what = str(error)
        raise RanksFailed(f"{what}:\n{log.read_text(errors='replace')[-SAID:]}")


def status_of(program: str, job: Callable[[], int]) -> int:
    """What ``program`` exits with: what ``job`` returns, or by the error that it raises."""
    try:
        return job()
    except Error as error:
        print(f"{program}: {error}", file=sys.stderr)
        if isinstance(error, ConfigError):
            return BAD_ARGUMENT
        return NO_LABORATORY if isinstance(error, LabError) else FAILED
