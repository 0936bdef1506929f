"""The network inside a cloud: a torch.distributed world of the cloud's own ranks.

Sums, shards and small agreements among the ranks of one cloud, through gloo for CPU tensors and
NCCL for CUDA tensors. It knows nothing of other clouds, codecs or weights, and puts no
collective of its own between torch and the network: what is fast inside a cloud stays torch's.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from pyfedcomm import errors
from pyfedcomm.errors import ConfigError, Error, PeerLost, Timeout
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology

_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # torch's stubs forget it
# Renamed in torch 2.13, where the old names warn.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def to_record(error: Exception) -> dict[str, Any]:
    """An error as plain values, to tell it to other ranks."""
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "index": getattr(error, "index", -1),
        "cloud": getattr(error, "cloud", -1),
    }


def from_record(record: dict[str, Any]) -> Error:
    """The error that another rank told with `to_record`; `Error` if it is not one of ours."""
    kind = getattr(errors, str(record["kind"]), Error)
    if not (isinstance(kind, type) and issubclass(kind, Error)):
        kind = Error
    error = kind(record["message"])
    if isinstance(error, errors.NonFinite):
        error.index = int(record["index"])
    if isinstance(error, PeerLost):
        error.cloud = int(record["cloud"])
    return error


class IntraCloud:
    """The ranks of this rank's cloud. A cloud of one rank needs no torch.distributed.

    A torch.distributed that the user has already initialised with exactly the cloud's ranks is
    used, through a process group of its own; otherwise one is initialised, whose address
    travels over ``world``. Every operation ends within ``timeout`` seconds, in `PeerLost` or
    `Timeout` where it fails; NCCL's own failures show when its result is used, or end the process
    (torch's watchdog, after the same time).
    """

    def __init__(
        self, world: Group, topology: Topology, *, device: torch.device, timeout: float
    ) -> None:
        """Collective over all ranks of all clouds; raises the same error on each of them."""
        self.size = topology.local_size
        self.rank = topology.local_rank
        self._where = f"[torch.distributed] cloud {topology.cloud_name}"
        self._cloud = topology.cloud
        self._backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._timeout = datetime.timedelta(seconds=timeout)
        self._owns_default = False
        self._group: dist.ProcessGroup | None = None
        error: Error | None = None
        address = self._rendezvous(world, topology)
        if self.size > 1:
            try:
                self._open(topology, address)
            except Error as e:
                error = e
        # Some may have to wait for the whole of their own deadline before they can report.
        told = world.all_gather_object(
            None if error is None else to_record(error), timeout=2 * timeout + 10
        )
        for row in told:
            if row is not None:
                self.close()
                raise error or from_record(row)

    # --- opening ---------------------------------------------------------------------------------

    def _rendezvous(self, world: Group, topology: Topology) -> tuple[str, int]:
        """Address of the cloud's store, which local rank 0 opens here and keeps. Collective."""
        self._store: Any = None
        mine: list[Any] = [0, None]
        if self.rank == 0 and self.size > 1 and not dist.is_initialized():
            try:
                # Port 0: the system picks one that is free, and it is ours from then on.
                self._store = _TCPStore(
                    "localhost", 0, None, True, self._timeout, wait_for_workers=False
                )
                mine = [self._store.port, None]
            except RuntimeError as e:
                mine = [0, f"{self._where}: cannot open a port for the rendezvous: {e}"]
        told = world.all_gather_object(mine)
        for row in told:
            if row[1] is not None:
                raise ConfigError(row[1])
        ranks = topology.clouds[topology.cloud]
        first_host = topology.hosts[ranks[0]]
        one_host = all(topology.hosts[r] == first_host for r in ranks)
        return "localhost" if one_host else first_host, int(told[ranks[0]][0])

    def _open(self, topology: Topology, address: tuple[str, int]) -> None:
        with self._translated("opening"):
            if not dist.is_initialized():
                if self._store is None:
                    self._store = _TCPStore(*address, None, False, self._timeout)
                dist.init_process_group(
                    self._backend,
                    store=self._store,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=self._timeout,
                )
                self._owns_default = True
            elif (dist.get_world_size(), dist.get_rank()) != (self.size, self.rank):
                raise ConfigError(
                    f"{self._where}: torch.distributed is already initialised, with this process "
                    f"as rank {dist.get_rank()} of {dist.get_world_size()}; it must hold exactly "
                    f"the cloud's ranks, this one as rank {self.rank} of {self.size}"
                )
            self._group = dist.new_group(backend=self._backend, timeout=self._timeout)
            told = self.all_gather_object(topology.rank)
            if tuple(told) != topology.clouds[topology.cloud]:
                raise ConfigError(
                    f"{self._where}: torch.distributed holds the global ranks {told}; it must "
                    f"hold {list(topology.clouds[topology.cloud])}, in this order"
                )

    def close(self) -> None:
        """Frees the network; a torch.distributed that the user initialised stays. Idempotent."""
        if self._owns_default:
            dist.destroy_process_group()
        elif self._group is not None:
            dist.destroy_process_group(self._group)
        self._owns_default, self._group, self._store = False, None, None

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The ranks of the cloud, in order; None for a lone rank."""
        return self._group

    # --- operations ------------------------------------------------------------------------------

    def all_reduce(self, flat: torch.Tensor) -> None:
        """Sum over the cloud's ranks, in place, the same bits on each of them."""
        if self.size > 1:
            with self._translated(f"sum of {flat.numel()} elements"):
                dist.all_reduce(flat, group=self._group)

    def reduce_shards(self, flat: torch.Tensor, shards: list[slice]) -> None:
        """Sums shard i of ``flat`` into that of rank i; the rest of ``flat`` is undefined after.

        Shards of equal length, one for each rank, that fill ``flat`` take one reduce-scatter
        ((N-1)/N of the bytes a rank); others one reduce each.
        """
        if self.size == 1:
            return
        with self._translated(f"reduce-scatter of {flat.numel()} elements"):
            if self._even(flat, shards):
                _reduce_scatter(flat[shards[self.rank]], flat, group=self._group)
                return
            for owner, shard in enumerate(shards):
                if shard.stop > shard.start:
                    dist.reduce(flat[shard], group=self._group, group_dst=owner)

    def gather_shards(self, flat: torch.Tensor, shards: list[slice]) -> None:
        """Gives every rank the shard i of rank i, in place: the reverse of `reduce_shards`."""
        if self.size == 1:
            return
        with self._translated(f"all-gather of {flat.numel()} elements"):
            if self._even(flat, shards):
                _all_gather(flat, flat[shards[self.rank]], group=self._group)
                return
            for owner, shard in enumerate(shards):
                if shard.stop > shard.start:
                    dist.broadcast(flat[shard], group=self._group, group_src=owner)

    def all_to_all(
        self,
        source: torch.Tensor,
        to: list[int],
        target: torch.Tensor,
        of: list[int],
    ) -> None:
        """The next ``to[i]`` elements of ``source`` go to rank i, those of rank i to ``target``.

        Both flat; ``of[i]``: how many rank i has for this one.
        """
        if self.size == 1:
            target.copy_(source)
            return
        with self._translated(f"exchange of {source.numel()} elements"):
            dist.all_to_all_single(target, source, of, to, group=self._group)

    def sum(self, value: float) -> float:
        """Sum of one number over the cloud's ranks, in double precision."""
        return self._reduce_numbers([value], dist.ReduceOp.SUM)[0]

    def max(self, values: list[float]) -> list[float]:
        """Element-wise maximum over the cloud's ranks, in double precision."""
        return self._reduce_numbers(values, dist.ReduceOp.MAX)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order. For plain values of modest size."""
        rows: list[Any] = [value] * self.size
        if self.size > 1:
            with self._translated("exchange of control data"):
                dist.all_gather_object(rows, value, group=self._group)
        return rows

    # --- inside ----------------------------------------------------------------------------------

    def _even(self, flat: torch.Tensor, shards: list[slice]) -> bool:
        length = flat.numel() // self.size
        even = [slice(i * length, (i + 1) * length) for i in range(self.size)]
        return shards == even and length * self.size == flat.numel()

    def _reduce_numbers(self, values: list[float], op: Any) -> list[float]:
        if self.size == 1:
            return values
        numbers = torch.tensor(values, dtype=torch.float64)  # on the CPU, hence through gloo
        with self._translated("agreement"):
            dist.all_reduce(numbers, op, group=self._group)
        return [float(x) for x in numbers]

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turns torch's errors, which are RuntimeError with a text, into ours."""
        try:
            yield
        except RuntimeError as e:
            if isinstance(e, Error):
                raise
            message = f"{self._where}: {what} failed on local rank {self.rank}: {e}"
            if "timed out" in str(e).lower() or "timeout" in str(e).lower():
                raise Timeout(message) from e
            lost = PeerLost(message)
            lost.cloud = self._cloud
            raise lost from e
