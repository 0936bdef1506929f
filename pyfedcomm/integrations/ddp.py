"""Gradients of torch's `DistributedDataParallel`, averaged over clouds while backward goes on.

    exchange = register(ddp_model, hierarchy, codec="int8", error_feedback=True)

Each bucket that DDP fills is averaged inside the cloud, and its shards go to the other clouds as
soon as that is done. It is data parallelism, as the sync rule ``gradient``, which does not wait for
all of backward first: for links that can carry every gradient. It changes no step and no
parameter; rules that do so belong to ``optimizer`` and ``hf``.

    backward   bucket 0     bucket 1     last bucket
    worker       inside 0, send 0   inside 1, send 1   inside 2, send 2
    hook                                     wait for all: finish 0, spread 0, finish 1, ...

Every rank finishes buckets only after the last one was begun, so all make the same calls in the
same order, however fast their backward is.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pyfedcomm import codecs
from pyfedcomm.buckets import BucketLayout, fingerprint
from pyfedcomm.errors import ConfigError, NonFinite
from pyfedcomm.exchange import Exchange
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.group import Algorithm, Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.integrations.clouds import hierarchy_over
from pyfedcomm.train.agree import agree, agree_on


def register(
    model: DistributedDataParallel,
    over: Group | Hierarchy,
    *,
    codec: str = "int8",
    algorithm: Algorithm = "auto",
    error_feedback: bool = False,
) -> GradientExchange:
    """Makes backward of ``model`` leave the mean over all ranks of all clouds. Collective.

    model: its process group holds exactly the ranks of this cloud, in their order; for a cloud of
        one rank, that rank. Before its first backward.
    over: a `Hierarchy`, or a `Group` each member of which is a cloud of one rank.
    codec, algorithm: between clouds, see `Group.all_reduce`. DDP fills other buckets after its
        first backward, so a bucket is sent as fp32 when it is new, and coded from then on.
    error_feedback: carry what coding left out to the next backward, 4 to 8 bytes a parameter.

    Memory: one fp32 copy of the gradients. Buffers, as those of a batch norm, are not exchanged.
    Not for fp16 with a GradScaler, whose overflows are `NonFinite` here: use bf16.
    An error between clouds is raised by backward, on every rank; DDP refuses to go on after it.
    Raises on every rank: ConfigError where process group or initial parameters do not fit,
    InvalidArgument for a codec.
    """
    device = next(model.parameters()).device
    hierarchy, owned = hierarchy_over(over, device)
    try:
        topology = hierarchy.topology
        who = f"rank {topology.rank} (cloud {topology.cloud_name})"

        def check() -> None:
            codecs.get(codec)
            group: Any = model.process_group
            place = (dist.get_rank(group), dist.get_world_size(group))
            if place != (topology.local_rank, topology.local_size):
                raise ConfigError(
                    f"DistributedDataParallel has this process as rank {place[0]} of {place[1]}, "
                    f"but it is rank {topology.local_rank} of the {topology.local_size} of its "
                    "cloud: give it a process_group of the cloud's ranks alone"
                )

        agree(hierarchy.world, who, check)
        agree_on(
            hierarchy.world,
            who,
            {
                "the options of the exchange": [codec, algorithm, error_feedback],
                "the parameters at the start": fingerprint(model.module.named_parameters()),
            },
            remedy="call register alike, with one seed or one checkpoint, on every rank",
        )
        exchange = GradientExchange(model, hierarchy, owned, codec, algorithm, error_feedback)
    except BaseException:
        if owned:
            hierarchy.close()
        raise
    # A lambda, since DDP refuses a hook whose annotations are strings.
    model.register_comm_hook(None, lambda _, bucket: exchange._on_bucket(bucket))
    return exchange


@dataclass
class _Bucket:
    """What DDP exchanges together: the same parameters in the same order, each time."""

    layout: BucketLayout
    flat: torch.Tensor
    """fp32, padded to shards of equal length."""
    is_new: bool = True
    """Not coded yet, since DDP may make other buckets of its parameters."""
    feedback: ErrorFeedback | None = None


@dataclass
class _Begun:
    """A bucket on its way between clouds."""

    bucket: _Bucket
    exchange: Exchange


class GradientExchange:
    """What `register` returns: the exchange of one model's gradients."""

    n_tokens: float
    """That this rank's gradients are the mean over, for its weight in the next backward; with
    ``no_sync``, of all that is accumulated. Default 1, which counts all ranks alike."""
    rounds: int
    """Backward passes that exchanged."""

    def __init__(
        self,
        model: DistributedDataParallel,
        hierarchy: Hierarchy,
        owned: bool,
        codec: str,
        algorithm: Algorithm,
        error_feedback: bool,
    ) -> None:
        """See `register`."""
        self.hierarchy, self._owned = hierarchy, owned
        self.n_tokens, self.rounds = 1.0, 0
        self._codec, self._algorithm = codec, algorithm
        self._error_feedback = error_feedback
        self._names = {p: name for name, p in model.module.named_parameters()}
        self._buckets: dict[tuple[str, ...], _Bucket] = {}
        self._worker = ThreadPoolExecutor(1, "pyfedcomm ddp")
        self._stream: torch.cuda.Stream | None = None
        if self._on_gpu():
            self._stream = torch.cuda.Stream(hierarchy.device)  # type: ignore[no-untyped-call]
        # Of the backward pass that is going on; the last bucket is done when its hook returns.
        self._begun: list[Future[_Begun]] = []
        self._pending: list[tuple[torch.futures.Future[Any], torch.Tensor]] = []

    def close(self) -> None:
        """Frees the networks if they were made here. The model must not be trained afterwards."""
        self._worker.shutdown()
        if self._owned:
            self.hierarchy.close()

    # --- the hook --------------------------------------------------------------------------------

    def _on_bucket(self, bucket: Any) -> torch.futures.Future[Any]:
        """Called by DDP when a bucket is full; the last one of a pass waits for all of them.

        bucket: a `torch.distributed.GradBucket`, which torch's stubs forget.
        """
        # Nothing of `bucket` itself may be kept: it is DDP's, and ends with this call.
        buffer, parameters, index = bucket.buffer(), bucket.parameters(), bucket.index()
        ready = torch.cuda.current_stream().record_event() if self._on_gpu() else None
        task = self._worker.submit(self._begin, buffer, parameters, index, self.n_tokens, ready)
        self._begun.append(task)
        future: torch.futures.Future[Any] = torch.futures.Future(
            devices=[buffer.device] if self._on_gpu() else None
        )
        self._pending.append((future, buffer))
        if bucket.is_last():
            self._finish()
        return future

    def _begin(
        self,
        buffer: torch.Tensor,
        parameters: list[torch.Tensor],
        index: int,
        weight: float,
        ready: torch.cuda.Event | None,
    ) -> _Begun:
        """The mean inside the cloud, then the first bytes to the others. In the worker thread."""
        with torch.no_grad(), torch.cuda.stream(self._stream):  # None changes nothing
            if ready is not None:
                ready.wait()
            bucket = self._bucket(parameters, index)
            flat, hierarchy = bucket.flat, self.hierarchy
            flat[: buffer.numel()].copy_(buffer)
            flat[buffer.numel() :].zero_()
            weight = hierarchy.mean_inside(flat, weight=weight)
            shard = hierarchy.shard(flat.numel())
            part = None if shard is None else flat[shard]
            exchange = hierarchy.begin_shard(
                part,
                part,
                n_elems=flat.numel(),
                weight=weight,
                codec="fp32" if bucket.is_new else self._codec,
                algorithm="auto" if bucket.is_new else self._algorithm,
                feedback=bucket.feedback,
                round=self.rounds,
                bucket=index,
            )
            return _Begun(bucket, exchange)

    def _finish(self) -> None:
        """Waits for all buckets of the pass; nothing is committed unless all arrived."""
        begun = [task.result() for task in self._begun]
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        try:
            for one in begun:
                one.exchange.finish()
        except NonFinite as error:
            raise self._named(error, begun) from error
        for one in begun:
            self.hierarchy.gather_inside(one.bucket.flat)
        for one, (future, buffer) in zip(begun, self._pending, strict=True):
            with torch.no_grad():
                buffer.copy_(one.bucket.flat[: buffer.numel()])
            if one.bucket.feedback is not None:
                one.bucket.feedback.commit()
            elif one.bucket.is_new:
                one.bucket.feedback = self._feedback(one.bucket.flat.numel())
            one.bucket.is_new = False
            future.set_result(buffer)
        # What DDP no longer fills it will not fill again: it makes other buckets once.
        self._buckets = {one.bucket.layout.names: one.bucket for one in begun}
        self._begun, self._pending = [], []
        self.rounds += 1

    def _named(self, error: NonFinite, begun: list[_Begun]) -> NonFinite:
        """The error with the parameter's name. Collective: all ranks have it.

        It breaks the group, and with it every bucket under way, so the first one to end with it
        need not be the one with the NaN; what DDP gave tells.
        """
        topology = self.hierarchy.topology
        mine: str | None = None
        for one, (_, buffer) in zip(begun, self._pending, strict=True):
            bad = (~torch.isfinite(buffer)).nonzero()
            if mine is None and len(bad):
                mine = one.bucket.layout.name_of(int(bad[0]))
        told = self.hierarchy.world.all_gather_object([topology.cloud_name, mine])
        for rank, (cloud, name) in enumerate(told):
            if name is not None:
                return NonFinite(
                    f"[ddp] round {self.rounds}: the gradient of parameter {name!r} is not finite "
                    f"on rank {rank} (cloud {cloud}); look for a loss that diverged: lower the "
                    "learning rate or clip gradients"
                )
        return error

    # --- buckets ---------------------------------------------------------------------------------

    def _bucket(self, parameters: list[torch.Tensor], index: int) -> _Bucket:
        """The bucket of these parameters; one that is new must be the same in all clouds."""
        layout = BucketLayout.of([(self._names[p], p) for p in parameters])
        if layout.names in self._buckets:
            return self._buckets[layout.names]
        topology = self.hierarchy.topology
        agree_on(
            self.hierarchy.world,
            f"rank {topology.rank} (cloud {topology.cloud_name})",
            {f"the parameters in bucket {index}": [*layout.names, layout.n_elems]},
            remedy="DDP fills buckets in the order in which gradients come: give it the same "
            "model, bucket_cap_mb and find_unused_parameters in all clouds",
        )
        n_elems = self.hierarchy.padded(layout.n_elems)
        made = _Bucket(layout, torch.zeros(n_elems, device=self.hierarchy.device))
        self._buckets[layout.names] = made
        return made

    def _feedback(self, n_elems: int) -> ErrorFeedback | None:
        shard, inter = self.hierarchy.shard(n_elems), self.hierarchy.inter
        if not self._error_feedback or shard is None or inter is None:
            return None
        length = shard.stop - shard.start
        return ErrorFeedback(length, inter, self._algorithm, self._codec, self.hierarchy.device)

    def _on_gpu(self) -> bool:
        return self.hierarchy.device.type == "cuda"
