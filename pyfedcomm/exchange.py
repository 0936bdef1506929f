"""One exchange between clouds: begun on every rank, in flight while they go on, then finished.

An `Exchange` is the middle of a reduction, made by `hierarchy`: this rail's shard, from cloud to
cloud, and the agreement inside the cloud on how it went. It decides neither what is exchanged nor
when, and does not move anything inside a cloud but that agreement.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from pyfedcomm.errors import GroupBroken, InvalidArgument, NonFinite, PeerLost, Timeout
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.group import Algorithm, Group
from pyfedcomm.intra import IntraCloud, from_record, to_record
from pyfedcomm.work import Work

NONFINITE = ("error", "exclude")
"""What a NaN or an infinity in one cloud's contribution may do."""


@dataclass(frozen=True)
class Networks:
    """The two networks, as one rank sees them."""

    intra: IntraCloud
    inter: Group | None
    """The rail's group; None if this rank is no gateway, or if there is one cloud."""
    n_clouds: int
    rail: int | None
    timeout: float
    """Seconds of an operation inside the cloud."""

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """What breaks inside one cloud is told to the others, which would wait for it."""
        try:
            yield
        except (PeerLost, Timeout) as e:
            if self.inter is not None and self.inter.broken is None:
                self.inter.abort(str(e))
            raise


@dataclass(frozen=True)
class Exchanged:
    """How an exchange ended; the same on all ranks of all clouds."""

    weight: float
    """Sum of the weights of the clouds that counted."""
    excluded: tuple[int, ...] = ()
    """Clouds that were left out because their contribution was not finite."""
    told: tuple[float, ...] = ()
    """What each cloud gave as ``Options.tell``; empty where none gave anything."""


@dataclass(frozen=True)
class Options:
    """How a shard is exchanged; the same on all gateways but for ``feedback``."""

    codec: str = "fp32"
    algorithm: Algorithm = "auto"
    feedback: ErrorFeedback | None = None
    """Read and written, not committed: the caller does that when the whole round succeeded."""
    round: int = 0
    bucket: int = 0
    nonfinite: str = "error"
    """``exclude`` gives a cloud with a NaN or an infinity weight zero; ``error`` fails."""
    tell: float = 0.0
    """A number, 0 or more, that travels beside the weight, from rail 0 to all ranks."""

    def __post_init__(self) -> None:
        if self.nonfinite not in NONFINITE:
            raise InvalidArgument(
                f"nonfinite is {self.nonfinite!r}; it must be one of {', '.join(NONFINITE)}"
            )


class Exchange:
    """An exchange that has begun; every rank of the cloud calls `finish` on its own."""

    left_out: bool
    """This cloud's contribution was not finite and counts for nothing; equal on its ranks."""

    def __init__(
        self,
        networks: Networks,
        part: torch.Tensor | None,
        out: torch.Tensor | None,
        *,
        begin: int,
        weight: float,
        options: Options,
    ) -> None:
        """Begins it; blocks only inside the cloud, and there only to agree on ``left_out``.

        part, out: see `Hierarchy.begin_shard`; neither may be touched before `finish`.
        begin: first element of the shard in its bucket.
        """
        self._networks, self._begin = networks, begin
        self._works: list[Work[Any]] = []
        self._told: Work[Any] | None = None
        self._error: Exception | None = None
        self.left_out = options.nonfinite == "exclude" and self._any_bad(part)
        self._weight = 0.0 if self.left_out else weight
        self._row = [self._weight, float(self.left_out), options.tell]
        if part is None or out is None:
            return
        try:
            if networks.n_clouds == 1:
                self._alone(part, out)
            else:
                self._send(part, out, options)
        # The gateway's part in the agreement is due whatever went wrong: `finish` raises it.
        except Exception as e:
            self._error = e

    def finish(self) -> Exchanged:
        """Returns when every rail of this cloud has succeeded; else raises on all its ranks."""
        networks = self._networks
        with networks.breaking():
            self._finish_together()
            n, rows = networks.n_clouds, [self._row]
            if n > 1:
                rows = [[0.0] * len(self._row)] * n
                rows = rows if self._told is None else self._told.wait().tolist()
            weights, flags, told = zip(*rows, strict=True)
            weight, *rest = networks.intra.max([math.fsum(weights), *flags, *told])
        excluded = tuple(i for i in range(n) if rest[i])
        return Exchanged(weight, excluded, tuple(rest[n:]) if any(rest[n:]) else ())

    # --- inside ----------------------------------------------------------------------------------

    def _any_bad(self, part: torch.Tensor | None) -> bool:
        bad = part is not None and not bool(torch.isfinite(part).all())
        with self._networks.breaking():
            return self._networks.intra.max([float(bad)])[0] > 0

    def _send(self, part: torch.Tensor, out: torch.Tensor, options: Options) -> None:
        inter, weight = self._networks.inter, self._weight
        assert inter is not None  # a gateway, and there are other clouds
        if self._networks.rail == 0:
            mine = torch.tensor(self._row, dtype=torch.float64)
            self._told = inter.all_gather(mine, async_op=True)
            self._works.append(self._told)
        if not part.numel():
            return
        source = part
        if weight == 0:
            # Zero times NaN would be NaN: what does not count must not spoil the sum.
            source = out.zero_() if out is part else torch.zeros_like(part)
        feedback = options.feedback
        self._works.append(
            inter.all_reduce(
                source,
                op="mean",
                weight=weight,
                codec=options.codec,
                algorithm=options.algorithm,
                out=None if source is out else out,
                residual=None if feedback is None else feedback.begin(sent=weight > 0),
                round=options.round,
                bucket=options.bucket,
                async_op=True,
            )
        )

    def _alone(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Where there is one cloud: the same checks, nothing to exchange."""
        if self._weight <= 0:
            raise InvalidArgument("mean: the weights of all members are zero")
        finite = torch.isfinite(part)
        if not bool(finite.all()):
            error = NonFinite("non-finite value in the contribution of the only cloud")
            error.index = int((~finite).nonzero()[0])
            raise error
        if out is not part:
            out.copy_(part)

    def _finish_together(self) -> None:
        networks, intra = self._networks, self._networks.intra
        error, failed = finish_all(intra, self._works, self._error, timeout=networks.timeout)
        if not failed:
            return
        if isinstance(error, NonFinite) and error.index >= 0:
            error.index += self._begin
        elif isinstance(error, InvalidArgument) and self._nobody_is_left():
            error = NonFinite("there is a non-finite value in what every cloud contributes")
        raise_first(intra, error)

    def _nobody_is_left(self) -> bool:
        """All weights are zero, and some of them only because a cloud was left out.

        The weights may not have arrived before the sum failed; then a cloud that was left out
        itself knows enough, and an idle one reports the sum's own error.
        """
        told = self._told
        if told is None or not told.done() or told.exception() is not None:
            return self.left_out
        rows = told.wait().tolist()
        return not any(row[0] for row in rows) and any(row[1] for row in rows)


def finish_all(
    intra: IntraCloud, works: list[Work[Any]], error: Exception | None, *, timeout: float
) -> tuple[Exception | None, bool]:
    """Waits until every rank of the cloud has; returns (this rank's error, whether any has one).

    An exchange may be slow and yet alive, so it may outlast the deadline of an operation inside
    the cloud (``timeout``): while it runs the ranks tell each other, several times within that
    deadline, that they are still waiting.
    """
    pending = list(works)
    beat = timeout / 3 if intra.size > 1 else None
    while True:
        while pending:
            try:
                if not _ended(pending[0], beat):
                    break
            except Exception as e:
                # That the group is broken says less than what broke it.
                if error is None or isinstance(error, GroupBroken):
                    error = e
            pending.pop(0)
        waiting, failed = intra.max([float(bool(pending)), float(error is not None)])
        if not waiting:
            return error, bool(failed)


def raise_first(intra: IntraCloud, error: Exception | None) -> NoReturn:
    """Raises the same on all ranks of the cloud: what its first rank with an error has."""
    told = intra.all_gather_object(None if error is None else to_record(error))
    first = next(i for i, record in enumerate(told) if record is not None)
    if error is not None and first == intra.rank:
        raise error
    raise from_record(told[first])


def _ended(work: Work[Any], seconds: float | None) -> bool:
    """Waits that long; True if the operation ended well, else raises its error or is False."""
    try:
        work.wait(seconds)
    except Timeout:
        if not work.done():
            return False
        work.wait()  # it ended just now, or the Timeout was its own
    return True
