"""What test_mpi.py starts under ``mpirun``: one scenario, named by the first argument.

Each rank prints one line, ``rank <i>: <outcome>``; that of an expected error is its class and
message.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time

import numpy as np
from ranks import CODECS_AND_ALGORITHMS

import pyfedcomm as fc


def everything(group: fc.Group) -> str:
    """Every operation, several groups at once; returns a digest that must agree on all ranks."""
    digest = hashlib.sha256()
    for codec, algorithm in CODECS_AND_ALGORITHMS:
        for n in (0, 1, 4097, 1_000_003):
            rng = np.random.default_rng(group.rank)
            x = rng.integers(-100, 100, n).astype(np.float32)
            group.all_reduce(x, codec=codec, algorithm=algorithm)
            digest.update(x.tobytes())
            if codec == "fp32":
                truth = np.zeros(n, np.float32)
                for rank in range(group.size):
                    truth += np.random.default_rng(rank).integers(-100, 100, n)
                np.testing.assert_array_equal(x, truth)
    works = [
        group.all_reduce(np.full(300_000, i, np.float32), bucket=i, async_op=True)
        for i in range(16)
    ]
    for i, work in enumerate(works):
        np.testing.assert_array_equal(work.wait(), i * group.size)
    evens = list(range(0, group.size, 2))
    odds = list(range(1, group.size, 2))
    half = group.split([evens, odds] if odds else [evens])
    assert half is not None
    np.testing.assert_array_equal(half.all_gather(np.array([group.rank]))[:, 0] % 2, group.rank % 2)
    half.close()
    # Numbers of operations wrap around in MPI's tag; two worlds, and groups split from one another.
    other = fc.Group.world(transport=group.transport)
    inner = half if half.size == 1 else group.split([evens, odds])
    assert inner is not None
    for _ in range(300):
        group.barrier()
        other.barrier()
    pair = other.split([[r] for r in range(group.size)])
    assert pair is not None
    np.testing.assert_array_equal(pair.all_reduce(np.ones(3, np.float32)), 1)
    assert group.all_gather_bytes(b"x" * group.rank) == [b"x" * r for r in range(group.size)]
    group.barrier()
    return digest.hexdigest()


def measures(group: fc.Group) -> str:
    """The table, equal on all ranks, and sums after it; returns a digest that must agree."""
    links = group.measure(seconds=1.0)
    assert links == group.links()
    for link in links.links:
        assert link.rate is not None, link
        assert link.rate > 1e5, link
        assert link.round_trip_s is not None, link
        assert 0 < link.round_trip_s < 1, link
        assert (link.loss is None) == (group.transport == "mpi"), link
    digest = hashlib.sha256(links.to_json().encode())
    for algorithm in ("auto", "ring"):
        x = np.full(100_000, group.rank + 1, np.float32)
        group.all_reduce(x, algorithm=algorithm)
        np.testing.assert_array_equal(x, group.size * (group.size + 1) / 2)
    digest.update(str(group.explain(1 << 24, "int8")).encode())
    group.measure(by="traffic")
    return digest.hexdigest()


def dies_measuring(group: fc.Group) -> str:
    """Rank 1 gives up while all measure."""
    if group.rank == 1:
        threading.Timer(0.5, group.abort, ["on purpose"]).start()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        group.measure(seconds=1.0)
    return "no error"


def shape(group: fc.Group) -> str:
    group.all_reduce(np.ones(50_000 + group.rank, np.float32))
    return "no error"


def nan(group: fc.Group) -> str:
    x = np.ones(50_000, np.float32)
    x[7] = np.nan if group.rank == 1 else 1
    group.all_reduce(x, codec="int8", algorithm="direct")
    return "no error"


def leaves(group: fc.Group) -> str:
    if group.rank == 1:
        return "left"
    group.all_reduce(np.ones(5, np.float32))
    return "no error"


def silent(group: fc.Group) -> str:
    """Rank 1 stays away for longer than the deadline; the others end before it comes back."""
    if group.rank == 1:
        time.sleep(4 * group.timeout)
    group.all_reduce(np.ones(5, np.float32))
    return "no error"


def rebuild(group: fc.Group) -> str:
    """A NaN breaks the group; the same ranks go on in a new epoch."""
    x = np.full(70_000, np.nan if group.rank == 0 else 1, np.float32)
    try:
        group.all_reduce(x, algorithm="direct")
    except fc.NonFinite:
        pass
    else:
        return "no error"
    again = group.rebuild()
    total = again.all_reduce(np.ones(70_000, np.float32))
    np.testing.assert_array_equal(total, again.size)
    again.close()
    return f"epoch {again.epoch}"


def main() -> int:
    scenario = {
        f.__name__: f
        for f in (everything, measures, dies_measuring, shape, nan, leaves, silent, rebuild)
    }[sys.argv[1]]
    rank = "?"
    try:
        transport = sys.argv[2]
        group = fc.Group.world(transport=transport, timeout=2.0 if scenario is silent else 60.0)
        rank = str(group.rank)
        outcome = scenario(group)
        group.close()
    except fc.Error as error:
        outcome = f"{type(error).__name__}: {error}"
    # One write: mpirun may mix what ranks write, but not within a write.
    os.write(1, f"rank {rank}: {outcome}\n".encode())
    if scenario is silent:
        os._exit(0)  # MPI_Finalize would wait for the silent rank
    return 0


if __name__ == "__main__":
    sys.exit(main())
