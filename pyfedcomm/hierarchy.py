"""Two networks, one reduction: sum inside each cloud, exchange between clouds, spread inside.

    ranks -- reduce-scatter --> gateways -- exchange, by rail --> gateways -- all-gather --> ranks

Rail r owns the same part (*shard*) of a bucket in every cloud: gateway r of each cloud exchanges
only that part, so the rails share the work and no byte crosses between clouds twice. Which codec,
when, and what to do with the result is not decided here: see ``sync``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pyfedcomm.buckets import padded, shards
from pyfedcomm.errors import ConfigError, InvalidArgument
from pyfedcomm.exchange import Exchange, Exchanged, Networks, Options, finish_all, raise_first
from pyfedcomm.group import Group
from pyfedcomm.intra import IntraCloud
from pyfedcomm.stats import Stats, sum_of
from pyfedcomm.tcp import TcpOptions
from pyfedcomm.topology import Topology

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def _itself(weight: float) -> float:
    return weight


class Hierarchy:
    """Reduce-scatter inside the cloud, exchange between clouds on each rail, all-gather inside.

    Every rank of every cloud makes the same calls in the same order. Each call ends with the same
    bits on all ranks, or with an error on all of them; what it was given to write to is undefined
    after an error.
    """

    world: Group
    topology: Topology
    device: torch.device
    n_rails: int
    """Gateways a cloud: its first ``n_rails`` local ranks."""
    rail: int | None
    """This rank's rail; None if it is no gateway."""
    inter: Group | None
    """The rail's group, one member per cloud; None if no gateway, or if there is one cloud."""

    def __init__(
        self,
        world: Group,
        topology: Topology,
        *,
        device: str | torch.device = "cpu",
        n_rails: int | None = None,
        timeout: float | None = None,
        tcp: TcpOptions | None = None,
        rate_limit: float | None = None,
    ) -> None:
        """Collective over all ranks.

        device: where this rank's buckets live; ``"cuda"`` is the current CUDA device.
        n_rails: 1 to `Topology.n_rails`, which is the default; the same on all ranks.
        timeout: seconds; default that of ``world``. Between clouds, without progress; inside a
            cloud, for one operation.
        tcp: the rails talk over TCP; default: over what ``world`` talks.
        rate_limit: bytes a second that a gateway sends at most to other clouds; each its own.
        Raises ConfigError, InvalidArgument, Timeout, PeerLost, on every rank.
        """
        self.world, self.topology, self.device = world, topology, torch.device(device)
        self.timeout = world.timeout if timeout is None else timeout
        self.n_rails = _agreed_rails(world, topology, n_rails)
        self._intra = IntraCloud(world, topology, device=self.device, timeout=self.timeout)
        self.rail = topology.local_rank if topology.local_rank < self.n_rails else None
        self.inter = None
        if topology.n_clouds > 1:
            try:
                self.inter = world.split(
                    [topology.rail_ranks(rail) for rail in range(self.n_rails)],
                    labels=[f"cloud {name}" for name in topology.names],
                    timeout=self.timeout,
                    tcp=tcp,
                    rate_limit=rate_limit,
                    on_gpu=self.device.type == "cuda",
                )
            except Exception:
                self._intra.close()
                raise
        self._pairs: dict[int, Group] = {}
        self._rate_limit = rate_limit
        self._networks = Networks(
            self._intra, self.inter, topology.n_clouds, self.rail, self.timeout
        )

    def __enter__(self) -> Hierarchy:
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is not None:
            self.abort(f"{type(error).__name__}: {error}")
        self.close()

    def abort(self, reason: str) -> None:
        """Ends, with ``reason``, what other clouds' gateways exchange with this one."""
        for group in self._between():
            group.abort(reason)

    def close(self) -> None:
        """Frees both networks; ``world`` stays open. Idempotent."""
        for group in self._between():
            group.close()
        self._intra.close()

    def pairs(self) -> dict[int, Group]:
        """Groups of two, by cloud: cloud 0's first gateway, member 0, with each other cloud's.

        Cloud 0's first gateway has all of them, another cloud's first gateway its own, other ranks
        none. They end with the hierarchy. Collective over all ranks.
        """
        if self.rail == 0 and self.inter is not None and not self._pairs:
            names, limit = self.topology.names, self._rate_limit
            if limit is not None and self.topology.cloud == 0:
                limit /= len(names) - 1  # all its groups together
            for cloud in range(1, len(names)):
                labels = [f"cloud {names[0]}", f"cloud {names[cloud]}"]
                pair = self.inter.split(
                    [[0, cloud]], labels=labels, timeout=self.timeout, rate_limit=limit
                )
                if pair is not None:
                    self._pairs[cloud] = pair
        return dict(self._pairs)

    def _between(self) -> list[Group]:
        return [*self._pairs.values(), *([] if self.inter is None else [self.inter])]

    def measure(self) -> None:
        """`Group.measure` between clouds, rail after rail, so that none disturbs another.

        Collective over all ranks. Raises what that raises, on the ranks of the rail; the caller
        ends the others.
        """
        seconds = 4.0 * self.topology.n_clouds
        for rail in range(self.n_rails):
            if self.inter is not None and rail == self.rail:
                self.inter.measure(seconds=seconds)
            # The others may have to wait for all of it before anything reaches them.
            self.world.barrier(timeout=2 * self.timeout + seconds)

    def device_mesh(self) -> DeviceMesh | None:
        """The ranks of this rank's cloud, for ``fully_shard(module, mesh=...)``.

        None where the cloud is one rank, which has nothing to shard. Collective over the cloud;
        not to be used after `close`.
        """
        group = self._intra.process_group
        if group is None:
            return None
        from torch.distributed.device_mesh import DeviceMesh

        with self._networks.breaking():
            return DeviceMesh.from_group(group, self.device.type)

    # --- shards ----------------------------------------------------------------------------------

    def padded(self, n_elems: int) -> int:
        """``n_elems`` rounded up to shards of equal length: the fast case inside a cloud."""
        return padded(n_elems, self.n_rails)

    def shard(self, n_elems: int) -> slice | None:
        """The part of a bucket of ``n_elems`` that this rank's rail owns; None if no gateway.

        The same in all clouds. Begins at a multiple of `buckets.SHARD_MULTIPLE`; may be empty.
        """
        return None if self.rail is None else shards(n_elems, self.n_rails)[self.rail]

    # --- inside the cloud ------------------------------------------------------------------------

    def sum_inside(self, value: float) -> float:
        """Sum of one number over the cloud's ranks, in double precision."""
        with self._networks.breaking():
            return self._intra.sum(value)

    def reduce_inside(self, flat: torch.Tensor) -> None:
        """Sum over the cloud's ranks, in place; all of them get it. flat: 1-D fp32."""
        self._check(flat)
        with self._networks.breaking():
            self._intra.all_reduce(flat)

    def mean_inside(self, flat: torch.Tensor, *, weight: float) -> float:
        """Mean over the cloud's ranks, each with its ``weight``, in place; all of them get it.

        Returns the cloud's weight. Where that is zero the mean is zero. A rank of weight zero
        counts for nothing, whatever its values.
        """
        self._check(flat)
        with self._networks.breaking():
            total = self._intra.sum(weight)
            self._scale(flat, weight)
            self._intra.all_reduce(flat)
        self._unscale(flat, total)
        return total

    def reduce_scatter_inside(self, flat: torch.Tensor) -> None:
        """Sum over the cloud's ranks: each gateway gets that of its shard of ``flat``, in place.

        What else ``flat`` holds is undefined after it. flat: 1-D fp32.
        """
        self._check(flat)
        with self._networks.breaking():
            self._intra.reduce_shards(flat, shards(flat.numel(), self.n_rails))

    def gather_inside(self, flat: torch.Tensor) -> None:
        """Every gateway's shard of ``flat`` to all ranks of its cloud, in place. flat: 1-D fp32."""
        self._check(flat)
        with self._networks.breaking():
            self._intra.gather_shards(flat, shards(flat.numel(), self.n_rails))

    def broadcast_inside(self, flat: torch.Tensor) -> None:
        """The first gateway's ``flat`` to all ranks of its cloud, in place. flat: 1-D fp32."""
        self._check(flat)
        with self._networks.breaking():
            self._intra.gather_shards(flat, [slice(0, flat.numel())])

    def share_inside(self, flat: torch.Tensor) -> None:
        """Part i of ``flat`` from rank i of the cloud to all of its ranks, in place.

        flat: 1-D, of any dtype, as many equal parts as the cloud has ranks.
        """
        size = self.topology.local_size
        each = flat.numel() // size
        with self._networks.breaking():
            self._intra.gather_shards(flat, [slice(i * each, (i + 1) * each) for i in range(size)])

    def max_inside(self, values: list[float]) -> list[float]:
        """Element-wise maximum over the cloud's ranks, in double precision."""
        with self._networks.breaking():
            return self._intra.max(values)

    def finish_inside(self, works: list[Any]) -> None:
        """Waits for all that ranks of this cloud do (see `exchange.finish_all`).

        Raises on all of them what any of them had to.
        """
        with self._networks.breaking():
            own, failed = finish_all(self._intra, works, None, timeout=self.timeout)
            if failed:
                raise_first(self._intra, own)

    def trade_inside(
        self, source: torch.Tensor, to: list[int], target: torch.Tensor, of: list[int]
    ) -> None:
        """Ranks of a cloud give each other parts of what they hold: `IntraCloud.all_to_all`."""
        self._check(source)
        self._check(target)
        with self._networks.breaking():
            self._intra.all_to_all(source, to, target, of)

    # --- between clouds --------------------------------------------------------------------------

    def all_reduce(
        self,
        flat: torch.Tensor,
        *,
        weight: float,
        cloud_weight: Callable[[float], float] = _itself,
        **options: Any,
    ) -> Exchanged:
        """Weighted mean over all ranks of all clouds, in place.

        flat: this rank's contribution, 1-D fp32, contiguous, of equal length on all ranks.
        weight: of this rank: finite, >= 0.
        cloud_weight: what a cloud counts, given the sum of its ranks' weights; default that sum,
            so that every rank counts by its own weight. Inside a cloud ranks always do.
        options: `exchange.Options`; ``feedback`` has the residuals of this rank's *shard*.

        Inside a cloud of N ranks (N-1)/N of the bucket a rank each way; between clouds what
        `Group.all_reduce` says, for ``1/n_rails`` of the bucket a gateway.
        Raises InvalidArgument, NonFinite (``index`` counts in ``flat``), Timeout, PeerLost.
        """
        self._check(flat)
        parts = shards(flat.numel(), self.n_rails)
        part: torch.Tensor | None = None
        with self._networks.breaking():
            inside = self._intra.sum(weight)
            self._scale(flat, weight)
            self._intra.reduce_shards(flat, parts)
        if self.rail is not None:
            part = flat[parts[self.rail]]
            self._unscale(part, inside)
        done = self.exchange_shard(
            part, part, n_elems=flat.numel(), weight=cloud_weight(inside), **options
        )
        self.gather_inside(flat)
        return done

    def exchange(
        self, flat: torch.Tensor, *, weight: float, out: torch.Tensor | None = None, **options: Any
    ) -> Exchanged:
        """Weighted mean over clouds of a bucket that is the same on all ranks of a cloud.

        flat: 1-D fp32; stays as it is where ``out`` (same length) is given, else is overwritten.
        weight: of the *cloud*, equal on its ranks. options: `exchange.Options`.
        """
        target = flat if out is None else out
        self._check(flat)
        self._check(target)
        shard = self.shard(flat.numel())
        done = self.exchange_shard(
            None if shard is None else flat[shard],
            None if shard is None else target[shard],
            n_elems=flat.numel(),
            weight=weight,
            **options,
        )
        self.gather_inside(target)
        return done

    def exchange_shard(
        self, part: torch.Tensor | None, out: torch.Tensor | None, **arguments: Any
    ) -> Exchanged:
        """`begin_shard`, and the wait for its end."""
        return self.begin_shard(part, out, **arguments).finish()

    def begin_shard(
        self,
        part: torch.Tensor | None,
        out: torch.Tensor | None,
        *,
        n_elems: int,
        weight: float,
        **options: Any,
    ) -> Exchange:
        """Begins the weighted mean over clouds of this gateway's shard of a bucket.

        part, out: fp32, of the length of `shard` of ``n_elems``; None on ranks that are no
            gateway, which only wait for the outcome. ``part`` stays as it is unless it is ``out``.
            Neither may be touched until `Exchange.finish` has returned.
        weight: of the *cloud*, equal on its ranks; a cloud of weight zero receives only.
        options: `exchange.Options`.

        Waits for no other cloud. Several may be in flight: all ranks begin and finish them in one
        order. What goes wrong between clouds is raised by `Exchange.finish`.
        """
        shard = self.shard(n_elems)
        begin = 0 if shard is None else shard.start
        chosen = Options(**options)
        return Exchange(self._networks, part, out, begin=begin, weight=weight, options=chosen)

    def wan_stats(self) -> Stats:
        """What this rank has exchanged with other clouds; zeros if it is no gateway."""
        groups = [group.stats() for group in self._between()]
        return groups[0] if len(groups) == 1 else sum_of(groups)

    # --- inside ----------------------------------------------------------------------------------

    def _scale(self, flat: torch.Tensor, weight: float) -> None:
        """Multiplies this rank's contribution by its weight, before the sum inside the cloud."""
        if not 0 <= weight < float("inf"):
            raise InvalidArgument(f"weight is {weight}; it must be finite and not negative")
        if weight == 0:
            flat.zero_()
        elif self._intra.size > 1:
            flat.mul_(weight)

    def _unscale(self, flat: torch.Tensor, total: float) -> None:
        """Divides by the cloud's weight, after the sum. A lone rank was never multiplied."""
        if self._intra.size > 1 and total > 0:
            flat.div_(total)

    def _check(self, flat: torch.Tensor) -> None:
        if flat.dim() != 1 or flat.dtype != torch.float32 or not flat.is_contiguous():
            raise InvalidArgument(
                f"a bucket must be 1-D, contiguous and float32; this is {flat.dtype} of shape "
                f"{tuple(flat.shape)}"
            )
        if flat.device.type != self.device.type:
            raise InvalidArgument(
                f"the bucket is on {flat.device}, but the hierarchy was made for {self.device}"
            )


def _agreed_rails(world: Group, topology: Topology, n_rails: int | None) -> int:
    chosen = topology.n_rails if n_rails is None else n_rails
    told = world.all_gather_object(chosen)
    for rank, other in enumerate(told):
        if other != told[0]:
            raise ConfigError(
                f"ranks disagree on n_rails: rank 0 has {told[0]}, rank {rank} has {other}"
            )
    if not 1 <= chosen <= topology.n_rails:
        raise InvalidArgument(
            f"n_rails is {chosen}; with clouds of {[len(c) for c in topology.clouds]} ranks it "
            f"must be 1 to {topology.n_rails}"
        )
    return chosen
