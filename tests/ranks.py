"""Ranks as threads: each runs the same function on its own member of a ``memory`` group.

For tests that need several members but no ``mpirun``. A rank that fails breaks the group, so the
others end too; a rank that hangs is reported with the line where it stands. One rank per cloud:
a network inside a cloud (torch.distributed) is one per process and needs ``mpirun``.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyfedcomm import codecs
from pyfedcomm.group import Group, memory_groups

R = TypeVar("R")

ALGORITHMS = ["auto", "direct", "ring", "all_gather"]
CODECS_AND_ALGORITHMS = [
    (codec, algorithm)
    for codec in codecs.names()
    for algorithm in ALGORITHMS
    # A choice from the whole bucket is not made from its parts.
    if not (codec.startswith("topk") and algorithm in ("direct", "ring"))
]

DEADLINE_S = 60.0


def run_ranks(
    n: int, fn: Callable[[Group], R], *, timeout: float = 20.0, deadline: float = DEADLINE_S
) -> list[R]:
    """``[fn(group of rank 0), ..., fn(group of rank n - 1)]``, each run in a thread.

    timeout: seconds without progress after which an operation of the group fails.
    deadline: seconds after which the whole test fails, naming the ranks that still run.
    Raises the error that happened first, with its rank.
    """
    results, errors = _run(n, fn, timeout, deadline)
    if errors:
        rank, error = errors[0]
        _tell_rank(error, rank)
        raise error
    return [results[rank] for rank in range(n)]


def errors_of(
    n: int, fn: Callable[[Group], object], *, timeout: float = 20.0, deadline: float = DEADLINE_S
) -> list[BaseException | None]:
    """What each rank's ``fn`` raised, None for those that returned: for tests of failures.

    Here a rank that fails does not break the group, so that each is seen to fail by itself.
    """
    everybody = threading.Barrier(n)
    raised: list[BaseException | None] = [None] * n

    def caught(group: Group) -> None:
        try:
            fn(group)
        except BaseException as error:
            raised[group.rank] = error
        everybody.wait(deadline)

    _run(n, caught, timeout, deadline)
    return raised


def _run(
    n: int, fn: Callable[[Group], R], timeout: float, deadline: float
) -> tuple[dict[int, R], list[tuple[int, BaseException]]]:
    results: dict[int, R] = {}
    errors: list[tuple[int, BaseException]] = []  # in the order in which they happened

    def work(rank: int, group: Group) -> None:
        try:
            with group:
                results[rank] = fn(group)
        except BaseException as error:
            errors.append((rank, error))

    threads = [
        threading.Thread(target=work, args=(rank, group), name=f"rank {rank}", daemon=True)
        for rank, group in enumerate(memory_groups(n, timeout=timeout))
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    stuck = [thread for thread in threads if thread.is_alive()]
    if stuck:
        raise AssertionError(
            f"{len(stuck)} of {n} ranks still run after {deadline:g} s; errors so far: {errors}\n"
            + "\n".join(f"{thread.name}:\n{_stack(thread)}" for thread in stuck)
        )
    return results, errors


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "(no Python frame)"


def _tell_rank(error: BaseException, rank: int) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(f"raised on rank {rank}")
    else:
        print(f"raised on rank {rank}:", file=sys.stderr)


def integers(rank: int, n: int) -> npt.NDArray[np.float32]:
    """Values whose sums are exact in float32, whatever the order."""
    return np.random.default_rng(rank).integers(-1000, 1000, n).astype(np.float32)


def bits(x: npt.NDArray[Any]) -> bytes:
    return x.tobytes()
