"""Tensors of a model as a bucket, and which part of it each rank of a cloud holds.

    what ranks hold -- shard_of --> the gateways' shards -- exchange -- spread --> what ranks hold

Plain parameters are held as a whole by every rank (`Whole`); of FSDP2's each rank holds some rows
(`Sharded`). All clouds exchange the same bucket, however their ranks hold it:

*   Where every rank of every cloud is a gateway the bucket is laid out in sections, one for each
    rank, of what that rank holds: a shard *is* what its gateway holds, and nothing moves inside a
    sharded cloud.
*   Where clouds have different numbers of ranks the bucket has one parameter after the other, and
    each sharded cloud trades what its ranks hold for its rails' shards: an all-to-all that moves
    no element twice, and none that is in its place already.

Both only move bits, so that results do not depend on who holds what. When, and what of it is
exchanged is decided in ``sync``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch

from pyfedcomm import dtensor
from pyfedcomm.buckets import BucketLayout, rows_of, shards
from pyfedcomm.hierarchy import Hierarchy

Tensors = Sequence[torch.Tensor | None]


class Bucket(ABC):
    """Named tensors of one model as one bucket; any tensors of their shapes can be put into it.

    Methods that are collective are so over the ranks of a cloud.
    """

    device: torch.device
    """Of the bucket, wherever the tensors are."""
    layout: BucketLayout
    """Of the bucket, equal in all clouds."""
    n_elems: int
    """Of the bucket, with padding."""
    shard: slice | None
    """This gateway's part of it; None if this rank is no gateway."""
    n_held: int
    """Elements that this rank holds."""
    memory: torch.Tensor | None = None
    """`n_elems` elements in which ranks that hold everything receive it; a lone one needs none."""

    def __init__(
        self, named: Sequence[tuple[str, torch.Tensor]], hierarchy: Hierarchy, sections: int
    ) -> None:
        self._hierarchy, self.device = hierarchy, hierarchy.device
        self.layout = BucketLayout.of(named, sections=sections)
        self.n_elems = hierarchy.padded(self.layout.n_elems)
        self.shard = hierarchy.shard(self.n_elems)

    @abstractmethod
    def shard_of(self, tensors: Tensors) -> torch.Tensor | None:
        """This gateway's shard of what the cloud's tensors hold, fp32; None if it is no gateway.

        Collective. Whole tensors must be equal on all ranks.
        """

    @abstractmethod
    def spread(self, part: torch.Tensor | None) -> torch.Tensor:
        """What this rank holds of the bucket of which the gateways have these shards. Collective.

        At least `n_held` elements, undefined after the next call; ``part`` itself where a rank
        holds nothing else.
        """

    @abstractmethod
    def pack(self, tensors: Tensors, out: torch.Tensor) -> None:
        """Writes what this rank holds to ``out``, in the order of what `spread` returns."""

    @abstractmethod
    def unpack(self, held: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """Writes it to this rank's tensors, rounding to their dtypes."""

    @abstractmethod
    def add(self, held: torch.Tensor, tensors: Sequence[torch.Tensor], scale: float) -> None:
        """Adds ``scale`` times of it to them; ``held`` is on their device."""


class Whole(Bucket):
    """Every rank holds all of every tensor."""

    def __init__(
        self, named: Sequence[tuple[str, torch.Tensor]], hierarchy: Hierarchy, sections: int
    ) -> None:
        super().__init__(named, hierarchy, sections)
        self.n_held = self.layout.n_elems

    def shard_of(self, tensors: Tensors) -> torch.Tensor | None:
        """See `Bucket.shard_of`; takes no communication."""
        if self.shard is None:
            return None
        part = torch.empty(self.shard.stop - self.shard.start, device=self.device)
        self.layout.pack(tensors, part, begin=self.shard.start)
        return part

    def spread(self, part: torch.Tensor | None) -> torch.Tensor:
        """See `Bucket.spread`; in `memory`."""
        if self.memory is None:
            assert part is not None  # a lone rank is its cloud's only gateway
            return part
        if part is not None and self.shard is not None:
            self.memory[self.shard].copy_(part)
        self._hierarchy.gather_inside(self.memory)
        return self.memory

    def pack(self, tensors: Tensors, out: torch.Tensor) -> None:
        """See `Bucket.pack`."""
        self.layout.pack(tensors, out)

    def unpack(self, held: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """See `Bucket.unpack`."""
        self.layout.unpack(held, tensors)

    def add(self, held: torch.Tensor, tensors: Sequence[torch.Tensor], scale: float) -> None:
        """See `Bucket.add`."""
        self.layout.add(held, tensors, scale)


class Sharded(Bucket):
    """Every rank holds some rows of every tensor; see `dtensor.check`."""

    def __init__(
        self, named: Sequence[tuple[str, torch.Tensor]], hierarchy: Hierarchy, sections: int
    ) -> None:
        super().__init__(named, hierarchy, sections)
        topology = hierarchy.topology
        size, me = topology.local_size, topology.local_rank
        self._own = BucketLayout.of([(name, dtensor.local(tensor)) for name, tensor in named])
        self.n_held = self._own.n_elems
        self._aligned = sections == size
        # What each rank holds, and of it what lies in each shard: both ascend, so that a rank's
        # elements for the rails follow each other.
        held = [_held(self.layout, size, rank) for rank in range(size)]
        rails = shards(self.n_elems, hierarchy.n_rails)
        to = [sum(_length(cut) for cut in _cut(held[me], rail)) for rail in rails]
        self._to = to + [0] * (size - len(rails))
        self._from: list[list[slice]] = [[] for _ in range(size)]
        if self.shard is not None:
            self._from = [_cut(ranges, self.shard) for ranges in held]
        self._of = [sum(map(_length, cuts)) for cuts in self._from]

    def shard_of(self, tensors: Tensors) -> torch.Tensor | None:
        """See `Bucket.shard_of`."""
        if self._aligned:
            assert self.shard is not None
            part = torch.empty(_length(self.shard), device=self.device)
            self.pack(tensors, part)
            return part
        held = torch.empty(self.n_held, device=self.device)
        self.pack(tensors, held)
        received = torch.empty(sum(self._of), device=self.device)
        self._hierarchy.trade_inside(held, self._to, received, self._of)
        if self.shard is None:
            return None
        part = torch.zeros(_length(self.shard), device=self.device)
        for place, source in self._places():
            part[place] = received[source]
        return part

    def spread(self, part: torch.Tensor | None) -> torch.Tensor:
        """See `Bucket.spread`."""
        if self._aligned:
            assert part is not None
            return part
        source = torch.empty(sum(self._of), device=self.device)
        if part is not None:
            part = part.to(self.device)
            for place, target in self._places():
                source[target] = part[place]
        held = torch.empty(self.n_held, device=self.device)
        self._hierarchy.trade_inside(source, self._of, held, self._to)
        return held

    def pack(self, tensors: Tensors, out: torch.Tensor) -> None:
        """See `Bucket.pack`."""
        self._own.pack([None if t is None else dtensor.local(t) for t in tensors], out)

    def unpack(self, held: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """See `Bucket.unpack`."""
        self._own.unpack(held, [dtensor.local(t) for t in tensors])

    def add(self, held: torch.Tensor, tensors: Sequence[torch.Tensor], scale: float) -> None:
        """See `Bucket.add`."""
        self._own.add(held, [dtensor.local(t) for t in tensors], scale)

    def _places(self) -> Iterator[tuple[slice, slice]]:
        """(place in this gateway's shard, place in what is traded), rank after rank."""
        assert self.shard is not None
        done = 0
        for cuts in self._from:
            for cut in cuts:
                begin = cut.start - self.shard.start
                yield slice(begin, begin + _length(cut)), slice(done, done + _length(cut))
                done += _length(cut)


def _held(layout: BucketLayout, size: int, rank: int) -> list[slice]:
    """What one of ``size`` ranks holds of a bucket that has one tensor after the other."""
    starts = {piece.tensor: piece.offset for piece in layout.pieces}
    ranges = [(start, *rows_of(layout.shapes[i], size, rank)) for i, start in starts.items()]
    return [slice(start + begin, start + end) for start, begin, end in ranges if begin < end]


def _cut(ranges: list[slice], shard: slice) -> list[slice]:
    """The parts of these ranges that lie in ``shard``."""
    cuts = [slice(max(r.start, shard.start), min(r.stop, shard.stop)) for r in ranges]
    return [cut for cut in cuts if cut.start < cut.stop]


def _length(part: slice) -> int:
    return int(part.stop - part.start)
