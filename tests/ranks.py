"""Ranks as threads: each runs the same function on its own member of a group.

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
from tcp_ranks import tcp_groups

from pyfedcomm import _core, codecs
from pyfedcomm._tensor import residual_view
from pyfedcomm.group import Group, memory_groups

TRANSPORTS: dict[str, Callable[..., list[Group]]] = {"memory": memory_groups, "tcp": tcp_groups}
R = TypeVar("R")

ALGORITHMS = ["auto", "direct", "ring", "all_gather"]
"""For every codec."""
CODECS_AND_ALGORITHMS = [
    (codec, algorithm)
    for codec in codecs.names()
    for algorithm in (*ALGORITHMS, "sparse")
    # A choice from the whole bucket is not made from its parts, and the others make none.
    if algorithm not in (("direct", "ring") if codec.startswith("topk") else ("sparse",))
]


def residual_of(*parts: Any) -> _core.Residual:
    """Of the sender before and after, and of the owner before and after."""
    sender_in, sender_out, owner_in, owner_out = (residual_view(part) for part in parts)
    return _core.Residual(sender_in, sender_out, owner_in, owner_out)


DEADLINE_S = 60.0


def run_ranks(
    n: int,
    fn: Callable[[Group], R],
    *,
    transport: str = "memory",
    timeout: float = 20.0,
    deadline: float = DEADLINE_S,
) -> list[R]:
    """``[fn(group of rank 0), ..., fn(group of rank n - 1)]``, each run in a thread.

    transport: one of `TRANSPORTS`.
    timeout: seconds without progress after which an operation of the group fails.
    deadline: seconds after which the whole test fails, naming the ranks that still run.
    Raises the error that happened first, with its rank.
    """
    results, errors = _run(TRANSPORTS[transport](n, timeout=timeout), fn, deadline)
    if errors:
        rank, error = errors[0]
        _tell_rank(error, rank)
        raise error
    return [results[rank] for rank in range(n)]


def errors_of(
    n: int,
    fn: Callable[[Group], object],
    *,
    transport: str = "memory",
    timeout: float = 20.0,
    deadline: float = DEADLINE_S,
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

    _run(TRANSPORTS[transport](n, timeout=timeout), caught, deadline)
    return raised


def _run(
    groups: list[Group], fn: Callable[[Group], R], deadline: float
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
        for rank, group in enumerate(groups)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    stuck = [thread for thread in threads if thread.is_alive()]
    if stuck:
        raise AssertionError(
            f"{len(stuck)} of {len(groups)} ranks still run after {deadline:g} s; "
            f"errors so far: {errors}\n"
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
