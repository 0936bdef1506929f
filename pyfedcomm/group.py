"""A group: members (clouds, or ranks) that reduce, gather and broadcast among themselves.

    with Group.world() as group:
        group.all_reduce(x, op="mean", weight=n_tokens, codec="int8")

A group knows bytes, codecs and deadlines. It knows nothing of models, of networks inside a
cloud, or of when to exchange: see ``hierarchy`` and ``sync``.

Every member calls the same operations in the same order. An operation ends in a result that is
bit-identical on all members, or in one of our errors on all of them; after an error the group is
broken and must be rebuilt (``rebuild``) as a new epoch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from pyfedcomm import _core, _tensor
from pyfedcomm import tcp as _tcp
from pyfedcomm.errors import CorruptFrame, InvalidArgument
from pyfedcomm.links import Choice, Links, LinkStats
from pyfedcomm.rendezvous import Rendezvous
from pyfedcomm.stats import Stats
from pyfedcomm.tcp import TcpOptions
from pyfedcomm.work import Work

Algorithm: TypeAlias = str
"""``"auto"``, ``"direct"``, ``"ring"``, ``"all_gather"``, ``"sparse"``: see `Group.all_reduce`."""

DEFAULT_TIMEOUT_S = 30.0


class Group:
    """Members that communicate; made by `world`, `connect`, `memory_groups` or `split`."""

    def __init__(self, core: _core.Group) -> None:
        self._core = core
        if core.transport == "mpi":
            from pyfedcomm import _mpi_world

            _mpi_world.close_at_exit(self)
        elif core.transport == "tcp":
            _tcp.close_at_exit(self)

    # --- making and ending -------------------------------------------------------------------

    @classmethod
    def world(
        cls,
        *,
        transport: str = "mpi",
        tcp: TcpOptions | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        on_gpu: bool = False,
    ) -> Group:
        """All ranks that this process's ``mpirun`` started. Collective.

        ``transport``: what carries the frames, ``"mpi"``, or ``"tcp"`` with the options ``tcp``;
        MPI then carries nothing but the ranks' addresses. ``timeout`` (seconds without progress)
        is the default deadline of every operation. ``on_gpu``: what this rank reduces is mostly on
        a GPU; if that is so for any rank, the frames of codecs that leave little are of more
        elements, for a GPU takes as long to begin with few as with many.
        Raises `ConfigError` where this build's MPI is not the one that started the process.
        """
        _one_of("transport", transport, ("mpi", "tcp"))
        from pyfedcomm import _mpi_world

        over_mpi = cls(_core.Group.open(_mpi_world.fabric(), timeout, on_gpu))
        if transport == "mpi":
            return over_mpi
        with over_mpi:
            fabric = over_mpi._tcp_fabric(tcp)
        return cls(_core.Group.open(fabric, timeout, on_gpu))

    @classmethod
    def connect(
        cls,
        rendezvous: str,
        *,
        rank: int,
        size: int,
        key: str = "",
        tcp: TcpOptions | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        meet_timeout: float = 120.0,
        on_gpu: bool = False,
    ) -> Group:
        """``size`` processes that share no ``mpirun``, over TCP; no MPI is loaded. Collective.

        rendezvous: ``"host:port"``, which rank 0 listens on and the others can reach. Of two ranks
            the higher one connects to the lower: what cannot be reached from outside gets the
            highest ranks.
        key: a secret that all ranks know; others are turned away. Nothing is encrypted by it.
        meet_timeout: seconds until all must have come.
        on_gpu: see `world`.
        Raises Timeout, naming who did not come; AuthenticationError, ConfigError.
        """
        meeting = Rendezvous(rendezvous, rank, size, key, meet_timeout)
        fabric = _tcp.open_fabric(rank, meeting.exchange, tcp)
        return cls(_core.Group.open(fabric, timeout, on_gpu))

    def _tcp_fabric(self, options: TcpOptions | None) -> _core.TcpFabric:
        return _tcp.open_fabric(self.rank, self.all_gather_object, options)

    def split(
        self,
        groups: Sequence[Sequence[int]],
        *,
        labels: Sequence[str] | None = None,
        timeout: float | None = None,
        tcp: TcpOptions | None = None,
        rate_limit: float | None = None,
        on_gpu: bool = False,
    ) -> Group | None:
        """Disjoint sub-groups; returns the one this member is in, or None. Collective.

        ``groups`` lists members (ranks of this group) and must be the same everywhere. Member i
        of the result is ``groups[k][i]``. ``labels`` names the members of the result in error
        messages (``"cloud aws"``); default ``"rank <i>"`` of this group. With ``tcp`` the
        sub-groups talk over TCP, whatever this group talks over. ``rate_limit``: bytes a second
        that this member sends at most, to all others of its sub-group together. ``on_gpu``: see
        `world`; of the sub-group.
        """
        _check_disjoint(groups, self.size)
        fabric = None if tcp is None else self._tcp_fabric(tcp)
        core = self._core.split(
            [list(g) for g in groups], list(labels or []), timeout, fabric, rate_limit, on_gpu
        )
        return None if core is None else Group(core)

    def rebuild(self, members: Sequence[int] | None = None) -> Group:
        """A new group, one epoch later, of these members (default: all). Collective among them.

        The way out of a broken group: frames of the old epoch are recognised and dropped.
        """
        chosen = list(range(self.size)) if members is None else list(members)
        return Group(self._core.rebuild(chosen))

    def close(self) -> None:
        """Tells the others, waits for what is in flight, frees everything. Idempotent."""
        self._core.close()

    def abort(self, reason: str) -> None:
        """Breaks the group on every member; their operations fail with ``reason``."""
        self._core.abort(reason)

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is not None:
            self.abort(f"{type(error).__name__}: {error}")
        self.close()

    # --- what it is ----------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Index of this member, 0 to size - 1."""
        return self._core.rank

    @property
    def size(self) -> int:
        """Number of members."""
        return self._core.size

    @property
    def epoch(self) -> int:
        """0 at first, one more with every `rebuild`."""
        return self._core.epoch

    @property
    def transport(self) -> str:
        """``"mpi"``, ``"tcp"`` or ``"memory"``."""
        return self._core.transport

    @property
    def broken(self) -> str | None:
        """Why the group can no longer be used; None while it can."""
        return self._core.broken

    @property
    def timeout(self) -> float:
        """Default deadline of an operation: seconds without progress."""
        return self._core.timeout_s

    def stats(self) -> Stats:
        """Counters since the group was made; cheap, callable at any time."""
        return Stats(**self._core.stats())

    def link_stats(self, member: int) -> LinkStats:
        """Counters of the link to ``member``; cheap, callable at any time."""
        return LinkStats(**self._core.link_stats(member))

    # --- links ---------------------------------------------------------------------------------

    def measure(self, *, by: str = "probes", seconds: float | None = None) -> Links:
        """Rate, round trip and loss between all members; the same on all of them. Collective.

        From then on ``"auto"`` and the order of rings go by it (see `explain`). Nothing else may
        be in flight.

        by: ``"probes"`` sends bytes for it, one pair of a member at a time, each direction until
            two probes of 0.1 s or more agree. ``"traffic"`` sends none: a rate is raised where
            operations since the last measurement have shown the link to be faster (they cannot
            show that it became slower), and loss is that since then.
        seconds: of probing, in all, at most; default 2 for each of 2 (N-1) turns, 2 N for an odd
            number of members.
        Raises InvalidArgument where members ask for different things; Timeout, PeerLost, ... as
        every operation does, after which the group is broken.
        """
        return Links.of(self._core.measure(by, seconds), self._core.labels)

    def links(self) -> Links | None:
        """What `measure` found last; None before, and after `rebuild`. Asks nobody."""
        raw = self._core.measured()
        return None if raw is None else Links.of(raw, self._core.labels)

    def explain(self, n_elems: int, codec: str = "fp32") -> Choice:
        """What ``algorithm="auto"`` takes for ``n_elems`` elements, and what it compared."""
        return Choice.of(self._core.choose(n_elems, codec), n_elems, codec, self._core.labels)

    def owned(self, n_elems: int, algorithm: Algorithm = "auto", codec: str = "fp32") -> slice:
        """The part of a bucket of ``n_elems`` elements that this member owns while reducing."""
        begin, end = self._core.owned(n_elems, algorithm, codec)
        return slice(begin, end)

    def __repr__(self) -> str:
        state = f", broken: {self.broken}" if self.broken else ""
        return (
            f"<Group rank {self.rank} of {self.size}, {self.transport}, epoch {self.epoch}{state}>"
        )

    # --- operations ----------------------------------------------------------------------------

    def all_reduce(
        self,
        tensor: Any,
        *,
        op: str = "sum",
        weight: float = 1.0,
        codec: str = "fp32",
        algorithm: Algorithm = "auto",
        out: Any = None,
        residual: _core.Residual | None = None,
        round: int = 0,
        bucket: int = 0,
        nonfinite: str = "error",
        timeout: float | None = None,
        async_op: bool = False,
    ) -> Any:
        """Sum, or weighted mean, over the members; all end with the same bits.

        tensor: fp32, fp16 or bf16, any shape and strides, numpy, torch (CPU or CUDA) or DLPack;
            reduced in place unless ``out`` (same shape and dtype) is given. Accumulation is fp32.
            A CUDA tensor is encoded, summed and decoded on its GPU, after what its current stream
            holds when this is called; only payloads go to the host and back.
        op: ``"sum"``, or ``"mean"`` = sum(weight_i * x_i) / sum(weight_i); the weights travel
            with the data, so no member needs to know the others' in advance.
        weight: finite and >= 0; at least one member's must be > 0. Used by ``"mean"`` only.
        codec: how values are coded between members (`codecs.names()`).
        algorithm: ``direct`` (each member owns 1/N of the bucket; 2 steps, 2(N-1)/N of the
            payload a member, two codings), ``ring`` (2(N-1) steps, same bytes, N codings),
            ``all_gather`` (1 step, N-1 payloads a member, one coding), ``sparse`` (for codecs that
            choose from the whole bucket: owners add what was chosen of their part and choose
            again; steps and bytes as ``direct``), ``auto`` (by size and members, or by the links
            once they were measured: `measure`, `explain`).
        residual: error feedback kept by `feedback.ErrorFeedback`.
        round, bucket: identify the data in messages and frames; must agree between members.
        nonfinite: what a NaN or Inf does: ``"error"`` raises `NonFinite` on every member.

        Returns the tensor (or ``out``), or a `Work` with ``async_op``; the tensor must not be
        touched before `Work.wait` returns. After an error the contents of the target are
        undefined (give ``out`` to keep the input).
        Raises InvalidArgument, NonFinite, Timeout, PeerLost, CorruptFrame, GroupBroken.
        """
        elsewhere = residual is not None and residual.device != _tensor.gpu_of(tensor)
        staged = _tensor.stage(tensor, out, on_host=elsewhere)
        handle = self._core.all_reduce(
            staged.source,
            staged.target,
            _core.ReduceArgs(
                mean=_one_of("op", op, ("sum", "mean")) == "mean",
                weight=weight,
                codec=codec,
                algorithm=algorithm,
                residual=residual,
                round=round,
                bucket=bucket,
                propagate=_one_of("nonfinite", nonfinite, ("error", "propagate")) == "propagate",
                timeout_s=timeout,
            ),
        )
        work: Work[Any] = Work(handle, staged.finish, staged)
        return work if async_op else work.wait()

    def all_gather(
        self, tensor: Any, *, timeout: float | None = None, async_op: bool = False
    ) -> Any:
        """Every member's tensor, stacked along a new first axis; shape and dtype must agree.

        Any dtype: the bytes travel as they are. Returns an array of the kind given (numpy or
        torch) of shape ``(size, *tensor.shape)``, or a `Work`.
        """
        source, target, finish = _tensor.stage_gather(tensor, self.size)
        handle = self._core.all_gather(source, target, timeout)
        work: Work[Any] = Work(handle, finish, (source, target))
        return work if async_op else work.wait()

    def broadcast(
        self, tensor: Any, *, root: int = 0, timeout: float | None = None, async_op: bool = False
    ) -> Any:
        """The root's tensor into everybody's, in place, byte for byte. Any dtype."""
        if not 0 <= root < self.size:
            raise InvalidArgument(f"broadcast: root {root} is not in a group of {self.size}")
        staged = _tensor.stage(tensor, None, any_dtype=True)
        handle = self._core.broadcast(staged.target, root, timeout)
        work: Work[Any] = Work(handle, staged.finish, staged)
        return work if async_op else work.wait()

    def barrier(self, *, timeout: float | None = None) -> None:
        """Returns once every member has called it."""
        self._core.barrier(timeout).wait(None)

    # --- control plane: small, any size, always checked ------------------------------------------

    def all_gather_bytes(self, data: bytes, *, timeout: float | None = None) -> list[bytes]:
        """Every member's bytes, of any length (two operations: lengths, then contents)."""
        sizes = [
            struct.unpack("<Q", row.tobytes())[0]
            for row in self.all_gather(
                np.frombuffer(struct.pack("<Q", len(data)), np.uint8), timeout=timeout
            )
        ]
        longest = max(sizes)
        if longest > _core.MAX_CONTROL_BYTES:
            raise InvalidArgument(
                f"all_gather_bytes: {longest} bytes exceed the limit of {_core.MAX_CONTROL_BYTES}"
            )
        padded = np.zeros(longest, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = self.all_gather(padded, timeout=timeout)
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]

    def all_gather_object(self, value: Any, *, timeout: float | None = None) -> list[Any]:
        """Every member's value, sent as JSON (never pickle: peers are not trusted)."""
        rows = self.all_gather_bytes(json.dumps(value).encode(), timeout=timeout)
        try:
            return [json.loads(row) for row in rows]
        except (ValueError, RecursionError) as error:
            raise CorruptFrame(f"a member sent something that is no JSON: {error}") from error


def memory_groups(
    size: int, *, timeout: float = DEFAULT_TIMEOUT_S, on_gpu: bool = False
) -> list[Group]:
    """The ``size`` members of a group that lives in this process, one for each thread of a test.

    Each must be used by a thread of its own: a blocking call waits for the other members.
    """
    hub = _core.MemoryHub(size)
    return [Group(core) for core in _core.Group.open_all(hub, timeout, on_gpu)]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidArgument(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def _check_disjoint(groups: Sequence[Sequence[int]], size: int) -> None:
    seen: set[int] = set()
    for members in groups:
        for member in members:
            if not 0 <= member < size:
                raise InvalidArgument(f"split: member {member} is not in a group of {size}")
            if member in seen:
                raise InvalidArgument(f"split: member {member} is listed twice")
            seen.add(member)
