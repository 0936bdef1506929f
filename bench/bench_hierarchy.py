"""Times the sum over clouds of ranks: torch.distributed inside, our exchange between, link by link.

Started by mpirun, one rank a GPU (or a few of a CPU), which ``--clouds`` divides:

    mpirun -n 4 python bench/bench_hierarchy.py --clouds 2 --sizes 64M,1G --rates 1,10,100,0

Each bucket is summed whole, then phase by phase; the links between clouds are as fast as
``--rates`` says (our own limit, see `Hierarchy`). With ``--buckets 8`` eight are in flight at once,
as in a training step: one is coded while another is on the wire. The same bucket, uncompressed,
through one torch.distributed over all ranks stands beside it. What the rows mean is said in
bench/README.md.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facts
import torch
import torch.distributed as dist
from arguments import codec_names, sizes_of
from devices import device_of, names_of, synchronise

from pyfedcomm import Group, Topology, codecs
from pyfedcomm.errors import Error
from pyfedcomm.exchange import Exchange
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.tcp import TcpOptions

CODECS = "fp32,int8,topk(0.01,int8),chunk_topk(4096,64,int2)"
GBIT = 1e9 / 8
Row = dict[str, Any]


@dataclass(frozen=True)
class Here:
    """This rank and what it measures with."""

    world: Group
    topology: Topology
    device: torch.device
    algorithm: str
    """Between clouds."""
    iters: int
    warmup: int

    def timed(
        self, run: Callable[[], object], prepare: Callable[[], object] | None = None
    ) -> list[float]:
        """Milliseconds of each iteration, of its slowest rank; all ranks begin together."""
        times = []
        for iteration in range(self.warmup + self.iters):
            if prepare is not None:
                prepare()
            synchronise(self.device)
            self.world.barrier()
            begin = time.perf_counter()
            run()
            synchronise(self.device)
            took = 1e3 * (time.perf_counter() - begin)
            slowest = max(self.world.all_gather_object(took))
            if iteration >= self.warmup:
                times.append(slowest)
        return times


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None,
        epilog="Exit status: 1 if a sum was wrong, 2 for a bad argument.",
    )
    parser.add_argument("--clouds", default="2", help="as in `pyfedcomm train` [2]")
    parser.add_argument(
        "--devices", default="auto", help="of each cloud: cuda or cpu, by commas; or auto [auto]"
    )
    parser.add_argument("--sizes", default="64M,1G", help="bytes of a bucket [64M,1G]")
    parser.add_argument("--codecs", default=CODECS, help=f"[{CODECS}]")
    parser.add_argument("--buckets", default="1", help="in flight at once, by commas [1]")
    parser.add_argument("--algorithm", default="auto", help="between clouds [auto]")
    parser.add_argument(
        "--transport", default="mpi", choices=["mpi", "tcp"], help="between clouds [mpi]"
    )
    parser.add_argument("--rails", default="1,all", help="gateways a cloud [1,all]")
    parser.add_argument(
        "--rates", default="1,10,100,0", help="Gbit/s of a cloud's link; 0: no limit [1,10,100,0]"
    )
    parser.add_argument("--iters", type=int, default=5, help="timed rounds [5]")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those [1]")
    parser.add_argument("--timeout", type=float, default=120.0, help="of one operation, s [120]")
    parser.add_argument("--json", type=Path, help="one JSON object a row, appended to this file")
    arguments = parser.parse_args(argv)
    arguments.sizes = sizes_of(parser, arguments.sizes)
    arguments.codecs = codec_names(parser, arguments.codecs)
    try:
        arguments.rates = [float(part) for part in arguments.rates.split(",")]
        arguments.rails = [0 if r == "all" else int(r) for r in arguments.rails.split(",")]
        arguments.buckets = [int(part) for part in arguments.buckets.split(",")]
    except ValueError:
        parser.error("--rates are numbers, --buckets too, --rails numbers or all, by commas")
    if min(arguments.buckets) < 1:
        parser.error("--buckets must be 1 or more")
    if min(arguments.rates) < 0 or min(arguments.rails) < 0:
        parser.error("--rates and --rails must not be negative")
    if arguments.iters < 1 or arguments.warmup < 0 or arguments.timeout <= 0:
        parser.error("--iters must be 1 or more, --warmup 0 or more, --timeout above 0")
    return arguments


# --- what is summed -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def contribution(rank: int, n_elems: int, device: torch.device) -> torch.Tensor:
    """Of one rank: normal, the same on any device."""
    return torch.randn(n_elems, generator=torch.Generator().manual_seed(1000 + rank)).to(device)


@functools.lru_cache(maxsize=1)
def exact_mean(n_ranks: int, n_elems: int) -> torch.Tensor:
    """Mean over all ranks, in double precision, of a sample of the bucket: see `sampled`."""
    part = sampled(n_elems)
    cpu = torch.device("cpu")
    ranks = (contribution(rank, n_elems, cpu)[part].double() for rank in range(n_ranks))
    return torch.stack(list(ranks)).mean(dim=0)


def sampled(n_elems: int) -> slice:
    """The part of a bucket that is compared with the truth; its ranks' bits are, all of them."""
    return slice(0, min(n_elems, 1 << 24))


def digest(flat: torch.Tensor) -> str:
    return hashlib.sha256(flat.cpu().numpy().data).hexdigest()


# --- rows -----------------------------------------------------------------------------------------


def peer_ms(here: Here, sizes: list[int]) -> dict[int, list[float]]:
    """Of an all-reduce of fp32 over all ranks by torch.distributed; empty where it cannot be."""
    kinds = here.world.all_gather_object([socket.gethostname(), str(here.device)])
    on_gpus = [tuple(kind) for kind in kinds if kind[1] != "cpu"]
    if on_gpus and (len(on_gpus) < len(kinds) or len(set(on_gpus)) < len(on_gpus)):
        return {}  # CPUs beside GPUs, or two ranks on one GPU: NCCL takes neither
    port = 0
    if here.topology.rank == 0:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
    port = here.world.all_gather_object(port)[0]
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=f"tcp://{here.topology.hosts[0] if _many_hosts(here) else 'localhost'}:{port}",
        rank=here.topology.rank,
        world_size=here.topology.world_size,
    )
    times = {}
    for n_bytes in sizes:
        flat = torch.ones(n_bytes // 4, device=here.device)
        times[n_bytes] = here.timed(functools.partial(dist.all_reduce, flat))
    dist.destroy_process_group()
    return times


def _many_hosts(here: Here) -> bool:
    return len(set(here.topology.hosts)) > 1


@dataclass
class Bucket:
    """One of those in flight at once."""

    flat: torch.Tensor
    options: Row
    """Of the exchange; the residuals are its own."""

    def begin(self, hierarchy: Hierarchy, n_local: int) -> Exchange:
        """As `Hierarchy.all_reduce` with equal weights, up to where it waits for other clouds."""
        hierarchy.reduce_scatter_inside(self.flat)
        shard = hierarchy.shard(self.flat.numel())
        part = None if shard is None else self.flat[shard]
        if part is not None and n_local > 1:
            part.div_(n_local)
        return hierarchy.begin_shard(
            part, part, n_elems=self.flat.numel(), weight=n_local, **self.options
        )


def buckets_of(here: Here, hierarchy: Hierarchy, codec: str, n_elems: int, n: int) -> list[Bucket]:
    shard, inter, algorithm = hierarchy.shard(n_elems), hierarchy.inter, here.algorithm
    made = []
    for _ in range(n):
        options: Row = {"codec": codec, "algorithm": algorithm}
        if codec != "fp32" and shard is not None and inter is not None:
            size = shard.stop - shard.start
            options["feedback"] = ErrorFeedback(size, inter, algorithm, codec, here.device)
        made.append(Bucket(torch.empty(n_elems, device=here.device), options))
    return made


def row_of(here: Here, hierarchy: Hierarchy, n_bytes: int, codec: str, n_buckets: int) -> Row:
    """One codec over this hierarchy; times and bytes are those of a bucket."""
    n_elems, n_local = n_bytes // 4, here.topology.local_size
    given = contribution(here.topology.rank, n_elems, here.device)
    inter, algorithm = hierarchy.inter, here.algorithm
    buckets = buckets_of(here, hierarchy, codec, n_elems, n_buckets)

    def fill() -> None:
        for bucket in buckets:
            bucket.flat.copy_(given)

    def sum_all() -> None:
        for bucket, exchange in [(each, each.begin(hierarchy, n_local)) for each in buckets]:
            exchange.finish()
            hierarchy.gather_inside(bucket.flat)

    before = hierarchy.wan_stats()
    times = [each / n_buckets for each in here.timed(sum_all, fill)]
    after = hierarchy.wan_stats()
    n_sums = (here.warmup + here.iters) * n_buckets
    told = here.world.all_gather_object(
        [
            [digest(bucket.flat) for bucket in buckets],
            *((b - a) / n_sums for a, b in zip(_numbers(before), _numbers(after), strict=True)),
        ]
    )
    flat = buckets[0].flat
    error = _error_of(here, flat)
    phases = {
        "reduce_scatter_ms": here.timed(
            lambda: hierarchy.reduce_scatter_inside(flat), lambda: flat.copy_(given)
        ),
        "all_gather_ms": here.timed(lambda: hierarchy.gather_inside(flat)),
    }
    n_clouds = here.topology.n_clouds
    used = inter.explain(n_elems, codec).algorithm if inter and algorithm == "auto" else algorithm
    encoded = codecs.get(codec).wire_bytes(n_elems)
    bound = 2 * (n_clouds - 1) / n_clouds * encoded
    sent = sum(row[1] for row in told) / n_clouds
    identical = len({name for row in told for name in row[0]}) == 1
    return {
        "bench": "hierarchy",
        "codec": codec,
        "algorithm": used,
        "n_bytes": n_bytes,
        "buckets": n_buckets,
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        **{name: statistics.median(ms) for name, ms in phases.items()},
        "encode_ms": 1e3 * max(row[2] for row in told),
        "decode_ms": 1e3 * max(row[3] for row in told),
        "wire_ms": 1e3 * max(row[4] for row in told),
        "wire_bytes": round(sent),
        "bound_bytes": round(bound),
        "bytes_to_bound": sent / bound,
        "error_l2": error,
        "identical": identical,
        "verified": identical and error < (1e-6 if codec == "fp32" else 1),
    }


def _numbers(stats: Any) -> list[float]:
    return [stats.frame_bytes, stats.encode_s, stats.decode_s, stats.wire_s]


def _error_of(here: Here, flat: torch.Tensor) -> float:
    """Relative L2 error of the last sum; rank 0 computes it, the others hold the same bits."""
    error = 0.0
    if here.topology.rank == 0:
        truth = exact_mean(here.topology.world_size, flat.numel())
        part = flat[sampled(flat.numel())].cpu().double()
        error = float((part - truth).norm() / truth.norm())
    return float(here.world.all_gather_object(error)[0])


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    wrong = False
    with Group.world(timeout=arguments.timeout) as world:
        topology = Topology.discover(world, clouds=arguments.clouds)
        if topology.n_clouds < 2:
            raise SystemExit("--clouds: there is one; an exchange takes two or more")
        device = device_of(arguments.devices, topology)
        here = Here(world, topology, device, arguments.algorithm, arguments.iters, arguments.warmup)
        devices = names_of(world, topology, device)
        peers = peer_ms(here, arguments.sizes)
        for n_rails in dict.fromkeys(r or topology.n_rails for r in arguments.rails):
            for rate in arguments.rates:
                # The gateways of a cloud share its link.
                limit = rate * GBIT / n_rails if rate else None
                tcp = TcpOptions() if arguments.transport == "tcp" else None
                with Hierarchy(
                    world, topology, device=device, n_rails=n_rails, tcp=tcp, rate_limit=limit
                ) as hierarchy:
                    for n_bytes, codec, n_buckets in itertools.product(
                        arguments.sizes, arguments.codecs, arguments.buckets
                    ):
                        row = row_of(here, hierarchy, n_bytes, codec, n_buckets)
                        floor = 1e3 * row["bound_bytes"] / (rate * GBIT) if rate else None
                        peer = peers.get(n_bytes)
                        row |= {
                            "clouds": topology.n_clouds,
                            "ranks": [len(ranks) for ranks in topology.clouds],
                            "devices": devices,
                            "transport": arguments.transport,
                            "rails": n_rails,
                            "rate_gbit": rate or None,
                            "floor_ms": floor,
                            "ratio_to_floor": row["median_ms"] / floor if floor else None,
                            "peer": dist_name(device),
                            "peer_ms": statistics.median(peer) if peer else None,
                            **facts.here(),
                        }
                        wrong |= not row["verified"]
                        if topology.rank == 0:
                            report(row, arguments.json)
    return int(wrong)


def dist_name(device: torch.device) -> str:
    return "NCCL" if device.type == "cuda" else "gloo"


def report(row: Row, file: Path | None) -> None:
    rate = f"{row['rate_gbit']:g} Gbit/s" if row["rate_gbit"] else "no limit"
    floor = f", {row['ratio_to_floor']:.3f} of the wire's floor" if row["floor_ms"] else ""
    peer = f", {row['peer']} {row['peer_ms']:.2f} ms" if row["peer_ms"] else ""
    print(
        f"{row['buckets']} x {row['n_bytes'] >> 20} MiB {row['codec']}, {row['rails']} rails, "
        f"{rate}: {row['median_ms']:.2f} ms (reduce-scatter {row['reduce_scatter_ms']:.2f}, encode "
        f"{row['encode_ms']:.2f}, wire {row['wire_ms']:.2f}, decode {row['decode_ms']:.2f}, "
        f"all-gather {row['all_gather_ms']:.2f}){floor}, bytes {row['bytes_to_bound']:.4f} of the "
        f"bound{peer}{'' if row['verified'] else '  WRONG'}",
        flush=True,
    )
    if file is not None:
        with file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
