"""No rounds: each cloud exchanges with a host when it has something, and waits for no other cloud.

Every ``local_steps`` steps a cloud pushes what it learnt to the model that the first cloud's first
gateway keeps, and is sent what the model has become (see ``server`` for what becomes of it there):

    push  delta = start - parameters;     host: model <- FedBuff or FedAsync
    reply difference = model - start;     start' = start + difference
    parameters <- start' + what was learnt while push and reply were under way

Both are coded. What coding leaves out of a delta is its residual's to carry, with error feedback;
of a difference nothing is lost anyhow, because host and cloud know the same ``start`` to the last
bit, and the next difference counts from there. ``overlap_steps`` steps are trained between a push
and what comes of the reply; then the cloud waits for the reply, if it is not there.

Ranks of different clouds are equal after `finish` only. They come together before that where
`meet` asks for it, to evaluate or to write checkpoints: each is told so with a reply, and waits
there.

Host: 8 bytes a parameter and 4 for each cloud, in host memory. A cloud that is lost ends the run.

Sources: see ``server``; that differences count from what the receiver has is EF21's idea, Richtárik
et al., arXiv 2106.05203.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch

from pyfedcomm import codecs
from pyfedcomm.buckets import NamedParameters
from pyfedcomm.codecs import Floats
from pyfedcomm.errors import ConfigError, InvalidArgument, NonFinite
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.base import SyncRule
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.host import Host
from pyfedcomm.sync.line import EMPTY, Call, Line, Push, Reply


@dataclass(frozen=True)
class Answer:
    """What came of a push."""

    reply: Reply
    excluded: list[float]
    """How often each cloud has been left out."""
    bad: int = -1
    """First element of the delta that was not finite; -1: none."""


@dataclass
class Flight:
    """A push, and the reply to it."""

    call: Call[Answer] | None
    """None on ranks that are no gateway."""
    sent: torch.Tensor | None
    """On the gateway: the parameters that the delta was taken of."""
    due: int
    """The step after which the reply is applied."""
    goes_on: bool
    """Whether the cloud trains meanwhile."""


class Asynchronous(SyncRule):
    """One push in ``local_steps`` steps; ``round`` is the version of the host's model."""

    host: Host | None
    """On cloud 0's first gateway."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config)
        topology, layout = hierarchy.topology, self._value_layout
        self._codec = codecs.get(config.codec)
        self._refuse_sharded()
        self._memory = self._scratch(layout.n_elems)
        self._step = self._position = self._tokens = self._pushes = 0
        self._progress = 0.0
        self._meeting = -1
        self._flight: Flight | None = None
        self._gateway = topology.local_rank == 0
        self._start = self._packed() if self._gateway else None
        self._residual: Floats | None = None
        self._line: Line | None = None
        self.host = None
        pairs = hierarchy.pairs()
        if not self._gateway:
            return
        lines = {c: Line(pair, self._codec, layout.n_elems) for c, pair in pairs.items()}
        if topology.cloud == 0:
            assert self._start is not None
            n_clouds = topology.n_clouds
            self.host = Host(self._start, n_clouds, lines, pairs, self._codec, config)
        else:
            self._line = lines[topology.cloud]
            if config.error_feedback:
                self._residual = np.zeros(layout.n_elems, np.float32)

    @classmethod
    def check(cls, config: SyncConfig) -> None:
        """An answer arrives before the next push."""
        super().check(config)
        if config.overlap_steps >= config.local_steps:
            raise ConfigError(
                f"sync.overlap_steps is {config.overlap_steps}; it must be below sync.local_steps, "
                f"{config.local_steps}, so that the reply to a push arrives before the next one"
            )

    # --- what the training loop calls ------------------------------------------------------------

    def _after_backward(self, n_tokens: int) -> None:
        self._average_inside(n_tokens, self._memory)

    def after_step(self, n_tokens: int) -> None:
        """Counts the step; applies a reply that is due, or pushes."""
        step, position = self._step + 1, self._position + 1
        if self.host is not None:
            self.host.serve()
        if self._flight is not None and self._flight.due == step:
            self._receive(self._flight)
        tokens = self._tokens + n_tokens
        if position == self.config.local_steps:
            flight = self._push(tokens, position, due=step + self.config.overlap_steps)
            position = tokens = 0
            if self.config.overlap_steps == 0:
                self._receive(flight)
        self._step, self._position, self._tokens = step, position, tokens

    def meet(self, step: int) -> None:
        """All clouds shall come together at this step of the run; where they were, they go on."""
        self._meeting = -1
        if self.host is not None:
            self.host.meet(step)

    def advance(self, step: float) -> float:
        """See `SyncRule.advance`: what was pushed when this cloud was last told, and its own."""
        own = self._position / self.hierarchy.topology.n_clouds
        return max(step, self._progress + own)

    def common_step(self, step: float) -> int | None:
        """See `SyncRule.common_step`: where `meet` asked for it."""
        return self._meeting if self._meeting >= 0 else None

    def finish(self) -> None:
        """Pushes what is left; all ranks end with the host's model, which travels uncoded.

        What is left counts in the order of the clouds, and FedBuff's buffer needs not be full.
        """
        if self._flight is not None:
            self._receive(self._flight)
        if self.host is not None:
            self.host.serve()
        self._receive(self._push(self._tokens, self._position, due=self._step, final=True))
        self._position = self._tokens = 0

    def _refuse_sharded(self) -> None:
        told = self.hierarchy.world.all_gather_object(bool(self._sharded))
        if any(told):
            raise ConfigError(
                f"{self._who(told.index(True))} has sharded parameters, but with sync.rule = "
                "'async' the first rank of a cloud exchanges the whole model; leave fully_shard "
                "out, or choose sync.rule = 'streaming' with sync.adaptive = true"
            )

    # --- an exchange -----------------------------------------------------------------------------

    def _push(self, n_tokens: int, steps: int, *, due: int, final: bool = False) -> Flight:
        """Begins it; waits for no other cloud."""
        weight = self._cloud_weight(self.hierarchy.sum_inside(n_tokens))
        call, now = None, None
        if self._gateway:
            now = self._packed()
            push, sent = Push(weight, steps, float(final)), now
            call = Call(lambda: self._exchange(push, sent), "exchange with the host")
        self._flight = Flight(call, now, due, goes_on=due > self._step + 1)
        return self._flight

    def _exchange(self, push: Push, now: torch.Tensor) -> Answer:
        """On the gateway, beside the training; moves ``start`` to what the host has."""
        assert self._start is not None
        delta = torch.sub(self._rounded_start(), now)
        bad = _first_bad(delta)
        if bad >= 0:
            if self.config.nonfinite == "error":
                return Answer(Reply(0.0, 0.0, 0.0), [], bad)
            push = replace(push, weight=0.0, left_out=1.0)
        if self.host is not None:
            return Answer(*self.host.push(push, delta, self._start), bad)
        assert self._line is not None
        data, left = EMPTY, None
        if push.weight > 0:
            left = None if self._residual is None else np.empty_like(self._residual)
            data = self._codec.encode(
                delta.numpy(),
                residual=self._residual,
                new_residual=left,
                round=self._pushes,
                member=self.hierarchy.topology.cloud,
            )
        self._pushes += 1
        self._line.send(push, data=data)
        reply, excluded, data = self._line.receive_reply(self.hierarchy.topology.n_clouds)
        if push.final:
            self._line.receive_model(self._start.numpy())
        else:
            self._start.add_(torch.from_numpy(self._line.decode(data)))
        if left is not None:
            self._residual = left
        return Answer(reply, excluded, bad)

    def _receive(self, flight: Flight) -> None:
        """Waits for the reply, and goes on from the host's model."""
        names = self.hierarchy.topology.names
        self.hierarchy.finish_inside([] if flight.call is None else [flight.call])
        told = [0.0] * (4 + len(names))
        if flight.call is not None:
            answer = flight.call.wait()
            reply = answer.reply
            numbers = [answer.bad + 1, reply.progress, reply.meet + 1, reply.version]
            told[: 4 + len(answer.excluded)] = [*numbers, *answer.excluded]
        bad, progress, meet, version, *excluded = self.hierarchy.max_inside(told)
        if bad and self.config.nonfinite == "error":
            self._refuse(int(bad) - 1)
        self._set_values(self._next_values(flight, keep=flight.goes_on and not bad))
        self._flight, self._progress = None, progress
        self._meeting, self.round = int(meet) - 1, int(version)
        self.restarts += bool(bad)
        self.excluded = {name: int(n) for name, n in zip(names, excluded, strict=True) if n}

    def _refuse(self, index: int) -> NoReturn:
        """On all ranks of the cloud; the others hear of it instead of its next push."""
        cloud = self.hierarchy.topology.cloud_name
        error = NonFinite(f"non-finite value in the contribution of cloud {cloud}")
        error.index = index
        try:
            with self._naming(self._value_layout, self.round):
                raise error
        except NonFinite as named:
            self.hierarchy.abort(str(named))
            raise

    def _next_values(self, flight: Flight, *, keep: bool) -> torch.Tensor | None:
        """On the gateway: the model, with what was learnt since the push if that is to be kept."""
        if flight.sent is None:
            return None
        start = self._rounded_start()
        return self._packed().sub_(flight.sent).add_(start) if keep else start

    def _rounded_start(self) -> torch.Tensor:
        """``start`` as the parameters' dtypes hold it; not to be written to."""
        assert self._start is not None
        if all(dtype == torch.float32 for dtype in self._value_layout.dtypes):
            return self._start
        return self._value_layout.round_(self._start.clone())

    def _set_values(self, values: torch.Tensor | None) -> None:
        n_elems = self._value_layout.n_elems
        if self._memory is not None:
            whole = self._memory[:n_elems]
            if values is not None:
                whole.copy_(values)
            self.hierarchy.broadcast_inside(whole)
            values = whole
        assert values is not None  # a lone rank is its cloud's gateway
        self._value_layout.unpack(values, self._values)

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Also ``step`` and, since the last push, ``position`` and ``tokens``; on gateways
        ``start`` and the residual ``left``; on the host the server's.

        Raises InvalidArgument while a push is under way: save where `common_step` says.
        """
        if self._flight is not None:
            raise InvalidArgument(
                "sync.rule = 'async' has a push under way; save its state where clouds have come "
                "together (SyncRule.meet), or after finish"
            )
        state = {**super().state_dict(), "step": self._step, "position": self._position}
        state |= {"tokens": self._tokens, "pushes": self._pushes, "progress": self._progress}
        if self._start is not None:
            state["start"] = self._start.clone()
        if self._residual is not None:
            state["left"] = torch.from_numpy(self._residual.copy())
        return state if self.host is None else {**state, **self.host.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `SyncRule.load_state_dict`."""
        self._check_identity(state)
        own = {"start": self._start, "left": self._residual}
        for name, tensor in own.items():
            saved = state.get(name)
            if tensor is not None and not (
                isinstance(saved, torch.Tensor) and saved.shape == tensor.shape
            ):
                raise ConfigError(
                    f"the checkpoint's sync state has no {name!r} of {len(tensor)} elements; "
                    "resume with the model, clouds and [sync] it was written with"
                )
        if self.host is not None:
            self.host.load_state_dict(state)
        super().load_state_dict(state)
        for name in ("step", "position", "tokens", "pushes"):
            setattr(self, f"_{name}", int(state[name]))
        self._progress, self._meeting = float(state["progress"]), -1
        if self._start is not None:
            self._start.copy_(state["start"])
        if self._residual is not None:
            self._residual = state["left"].numpy().copy()

    def _packed(self) -> torch.Tensor:
        """All parameters, flat, in host memory."""
        flat = torch.empty(self._value_layout.n_elems)
        self._value_layout.pack(self._values, flat)
        return flat


def _first_bad(values: torch.Tensor) -> int:
    """The first NaN or infinity; -1 if there is none. One pass, without memory, if so."""
    if bool(torch.isfinite(values.sum())):
        return -1
    bad = (~torch.isfinite(values)).nonzero()
    return int(bad[0]) if len(bad) else -1  # finite values may add up to infinity
