"""The ranks of bench_collective_peers.py: contestants that sum one tensor over all ranks, in turns.

Started by mpirun, one rank a cloud. Rank 0 writes what was measured, as JSON, to the file that the
order names. Every contestant works in place, on a buffer that was filled before the clock starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyfedcomm import Group
from pyfedcomm.tcp import TcpOptions

Array = npt.NDArray[np.float32]

# A coding moves a value by at most this much of the block's largest magnitude: half of the largest
# gap between two codes (csrc/quant/formats/), a bf16 step being up to 2^-7 larger than need be.
HALF_GAP = {"fp32": 0.0, "int8": 0.5 / 127, "int4": 0.5 / 7 * (1 + 2**-7)}


class Unavailable(Exception):
    """The peer is not here; the message says what is missing."""


@dataclass
class Contestant:
    peer: str
    codec: str
    """How it travels."""
    transport: str
    run: Callable[[Array], None]
    bound: Callable[[int], float] | None = None
    """Largest error of an element of a sum over so many ranks; None: not known, not verified."""
    sent_bytes: Callable[[], int] | None = None
    """Frames of this rank so far."""
    details: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None
    times_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    """Of this rank, all threads, over the timed turns."""


def exact(_: int) -> float:
    """Sums of our inputs are exact in float32, whatever the order."""
    return 0.0


def inputs_of(rank: int, n: int) -> Array:
    """Multiples of 2^-10 between -1 and 1."""
    steps = np.random.default_rng(rank).integers(-1024, 1025, n, dtype=np.int32)
    return (steps / 1024).astype(np.float32)


# --- who takes part -------------------------------------------------------------------------------


def mpi(comm: Any) -> Contestant:
    from mpi4py import MPI

    def run(x: Array) -> None:
        comm.Allreduce(MPI.IN_PLACE, x, MPI.SUM)

    version = MPI.Get_library_version().split(",")[0].split("\n")[0]
    return Contestant("MPI_Allreduce", "fp32", "mpi", run, exact, details={"version": version})


def gloo(comm: Any, n_groups: list[int], timeout_s: float) -> list[Contestant]:
    """torch's gloo: one group, and several of which each sums a part at the same time."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        return [
            Contestant(f"gloo x{n}", "fp32", "tcp", lambda x: None, missing=str(error))
            for n in n_groups
        ]
    address = None
    if comm.Get_rank() == 0:
        with socket.create_server(("", 0)) as free:
            address = (socket.gethostname(), free.getsockname()[1])
    host, port = comm.bcast(address)
    timeout = timedelta(seconds=timeout_s)
    # All ranks on this machine: its name need not be known to any resolver.
    if len(set(comm.allgather(socket.gethostname()))) == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        host = "127.0.0.1"
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=comm.Get_rank(),
        world_size=comm.Get_size(),
        timeout=timeout,
    )
    groups = [dist.new_group(backend="gloo", timeout=timeout) for _ in range(max(n_groups))]

    def runner(n: int) -> Callable[[Array], None]:
        def run(x: Array) -> None:
            parts = torch.from_numpy(x).tensor_split(n)
            works = [
                dist.all_reduce(part, group=group, async_op=True)
                for part, group in zip(parts, groups, strict=False)
            ]
            for work in works:
                work.wait()

        return run

    version = {"version": torch.__version__}
    return [
        Contestant(f"gloo x{n}", "fp32", "tcp", runner(n), exact, details=version) for n in n_groups
    ]


def ours(group: Group, codec: str, algorithm: str) -> Contestant:
    def run(x: Array) -> None:
        group.all_reduce(x, codec=codec, algorithm=algorithm)

    half_gap = HALF_GAP.get(codec)

    def bound(n_ranks: int) -> float:
        # Magnitudes are at most 1, those of partial sums at most n_ranks. Every contribution is
        # coded, and the sum; on a ring the partial sums are. Float32 rounds each sum.
        assert half_gap is not None
        largest = n_ranks * (1 + half_gap) ** n_ranks
        codings = n_ranks if algorithm == "ring" else 2
        return half_gap * codings * largest + n_ranks * 2**-23 * largest if half_gap else 0.0

    return Contestant(
        "pyfedcomm",
        codec,
        group.transport,
        run,
        None if half_gap is None else bound,
        lambda: group.stats().frame_bytes,
        {"algorithm": algorithm},
    )


def contestants_of(order: dict[str, Any], comm: Any) -> list[Contestant]:
    timeout_s = float(order["timeout_s"])
    groups: dict[str, Group] = {"mpi": Group.world(timeout=timeout_s)}
    if "tcp" in order["transports"]:
        tcp = TcpOptions(**order["tcp"])
        groups["tcp"] = Group.world(transport="tcp", tcp=tcp, timeout=timeout_s)
    for transport in order["transports"]:
        groups[transport].measure()
    everybody = [mpi(comm), *gloo(comm, order["gloo_groups"], timeout_s)]
    for transport in order["transports"]:
        everybody += [
            ours(groups[transport], codec, order["algorithm"]) for codec in order["codecs"]
        ]
    return everybody


# --- the race -------------------------------------------------------------------------------------


def judge(contestant: Contestant, x: Array, truth: npt.NDArray[np.float64], comm: Any) -> str:
    """What is wrong with a sum, on any rank; "" where nothing is."""
    problem = ""
    error = float(np.max(np.abs(x - truth), initial=0.0))
    if contestant.bound is not None and not error <= contestant.bound(comm.Get_size()):
        problem = f"an element is off by {error:.3g}"
    digests = comm.allgather(hashlib.sha256(x.tobytes()).hexdigest())
    if len(set(digests)) > 1:
        problem = problem or "ranks have different bits"
    return next((p for p in comm.allgather(problem) if p), "")


def race(
    contestants: list[Contestant], order: dict[str, Any], n_bytes: int, comm: Any
) -> list[dict[str, Any]]:
    """Round robin; the time of a turn is the mean over the ranks, which leave a barrier up to one
    way apart: who is early waits as much longer as who is late waits less.
    """
    n, n_ranks = n_bytes // 4, comm.Get_size()
    mine = inputs_of(comm.Get_rank(), n)
    truth = np.zeros(n)
    for rank in range(n_ranks):
        truth += inputs_of(rank, n)
    x = np.empty_like(mine)
    wrong: dict[int, str] = {}
    sent: dict[int, int] = {}
    for each in contestants:
        each.times_ms, each.cpu_s = [], 0.0
    for turn in range(order["warmup"] + order["iters"]):
        for i, each in enumerate(contestants):
            if each.missing is not None:
                continue
            x[:] = mine
            before = each.sent_bytes() if each.sent_bytes is not None else 0
            comm.Barrier()
            begin, cpu_begin = time.perf_counter(), time.process_time()
            each.run(x)
            elapsed_ms = comm.allreduce((time.perf_counter() - begin) * 1e3) / n_ranks
            if turn >= order["warmup"]:
                each.times_ms.append(elapsed_ms)
                each.cpu_s += time.process_time() - cpu_begin
            if turn == 0:
                wrong[i] = judge(each, x, truth, comm)
                if each.sent_bytes is not None:
                    sent[i] = comm.allreduce(each.sent_bytes() - before, op=_max())
    rows = []
    for i, each in enumerate(contestants):
        known = each.bound is not None and each.missing is None
        rows.append(
            {
                "kernel": "all_reduce",
                "peer": each.peer,
                "codec": each.codec,
                "transport": each.transport,
                "clouds": n_ranks,
                "n_bytes": n_bytes,
                **times(each.times_ms),
                "wire_bytes": sent.get(i),
                "cpu_s_per_gb": cpu_s_per_gb(each, n_bytes, comm),
                "verified": not wrong[i] if known else None,
                "problem": wrong.get(i) or None,
                "missing": each.missing,
                **each.details,
            }
        )
    return rows


def cpu_s_per_gb(contestant: Contestant, n_bytes: int, comm: Any) -> float | None:
    """Mean over the ranks; a process that polls counts in full."""
    mean_s: float = comm.allreduce(contestant.cpu_s) / comm.Get_size()
    turns = len(contestant.times_ms)
    return mean_s / turns / n_bytes * 1e9 if turns else None


def times(times_ms: list[float]) -> dict[str, float | None]:
    if not times_ms:
        return dict.fromkeys(("median_ms", "min_ms", "max_ms"))
    return {
        "median_ms": statistics.median(times_ms),
        "min_ms": min(times_ms),
        "max_ms": max(times_ms),
    }


def _max() -> Any:
    from mpi4py import MPI

    return MPI.MAX


def main() -> int:
    order = json.loads(sys.argv[1])
    first = Group.world(timeout=float(order["timeout_s"]))  # loads the MPI of this build
    first.close()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    contestants = contestants_of(order, comm)
    rows = [row for n_bytes in order["sizes"] for row in race(contestants, order, n_bytes, comm)]
    if comm.Get_rank() == 0:
        Path(order["results"]).write_text(json.dumps(rows))
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            comm.Barrier()
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
