"""Local training: clouds train alone for many steps, then exchange how far they went.

In ``local_steps`` steps each fragment of the parameters is exchanged once: a cloud contributes
delta = anchor - parameters, an outer optimizer takes the weighted mean of the deltas as the
gradient of the anchor, and all clouds go on from the new anchor. The inner optimizer, and its
state, stay each cloud's own. Which fragments, which outer optimizer, and whether steps go on while
a fragment is under way is what the rules on top of it say, one a file.

    after step    offset of p               offset + overlap
    send p ------- begins, blocks nothing -- ends: outer step, parameters p change

With ``local_momentum`` mu local steps also repeat how the clouds moved together in the last round,
M = new anchor - old anchor: a step of a round of H is, with the gradient at x,

    x <- x + mu M / H;  x <- inner optimizer's step

This keeps the pace of many local steps where an outer momentum, which takes all of mu M at once,
overshoots what a round has already levelled out; and it is no noise of one cloud's own. Source: Xu
et al., "FedCM: Federated Learning with Client-level Momentum", arXiv 2106.10874, algorithm 2, which
has it with SGD: mu is its 1 - alpha, for eta_g = K eta_l.

With ``outer_decay`` the outer step falls towards the end of a run, whose length is ``horizon``. A
large one gains while parameters have far to go; at the end what it overshoots, and what coding has
left out of it, would stay in the model. (Measured: docs/decisions.md.)

With ``adaptive`` the H of each cloud follows from how long its steps take (see ``pace``). What was
told with the last fragment of a round decides the next one, or, if that fragment arrives when the
next one has begun, the one after: in all clouds alike.

State for each parameter: 4 bytes of anchor and what the outer optimizer keeps, divided by
``n_rails``, on gateways; with SGD 12 more during a round, and 8 for what is under way while steps
go on. Where a cloud has several ranks that hold all parameters each keeps one fp32 copy of the
model, to average gradients and to receive results. ``local_momentum`` takes 4 bytes more on
gateways, and on every rank 4 for each element that it holds. With ``outer_on_host`` the state, and
8 of those 12, are in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.errors import ConfigError
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.base import SyncRule
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.fragment import Arrival, Flight, Fragment
from pyfedcomm.sync.on_host import empty_like, step
from pyfedcomm.sync.outer import OuterOptimizer, Remembering, State
from pyfedcomm.sync.pace import Pace

Divide = Callable[[Sequence[str]], list[list[int]]]
"""From the parameters' names to the indices that each fragment has; each index once."""


def undivided(names: Sequence[str]) -> list[list[int]]:
    """One fragment that has all parameters."""
    return [list(range(len(names)))]


class LocalRule(SyncRule):
    """One round for each fragment in ``local_steps`` steps; ``round`` counts all of them.

    Fragment p of P is sent after step (p + 1) H / P, rounded down, and every H steps from then
    on: the last one after H steps, as if there were no other.
    """

    adapts = repeats = decays = True
    pace: Pace
    COMMON = (*SyncRule.COMMON, "step", "position", "steps", "done")
    # Where the rule adapts, a checkpoint is written between rounds: the next one is as the first.
    MEASURED = (*SyncRule.MEASURED, "pace")

    def __init__(
        self,
        parameters: NamedParameters,
        hierarchy: Hierarchy,
        config: SyncConfig,
        optimizer: OuterOptimizer,
        *,
        divide: Divide = undivided,
        overlap: int = 0,
        mixing: float = 0.0,
    ) -> None:
        """overlap: steps between sending and applying, below ``local_steps``. mixing: see
        `Fragment.set_values`.
        """
        super().__init__(parameters, hierarchy, config)
        if config.local_momentum:
            optimizer = Remembering(optimizer)
        self._optimizer, self._overlap, self._mixing = optimizer, overlap, mixing
        names = self._value_layout.names
        self._fragments = []
        for p, chosen in enumerate(divide(names)):
            named = [(names[i], self._values[i]) for i in chosen]
            self._fragments.append(
                Fragment(p, named, self._bucket(named), optimizer, on_host=config.outer_on_host)
            )
        self._memory = self._scratch(sum(f.bucket.n_elems for f in self._fragments))
        begin = 0
        for fragment in self._fragments:
            bucket = fragment.bucket
            fragment.feedback = self._add_feedback(bucket.n_elems)
            if self._memory is not None:
                bucket.memory = self._memory[begin : begin + bucket.n_elems]
            begin += bucket.n_elems
        self.pace = Pace(
            config.local_steps,
            adaptive=config.adaptive,
            cloud=hierarchy.topology.cloud,
            # A fragment a step at most, each arrived before it is sent again.
            least=max(len(self._fragments), overlap + 1),
            most=int(config.adaptive_max * config.local_steps),
        )
        self._step = self._position = 0  # in all, and in this round
        self._done = 0  # of the run, when this round began; the same in all clouds
        self._share = 1.0
        self._flights: list[Flight] = []

    def _after_backward(self, n_tokens: int) -> None:
        momentum = self.config.local_momentum
        if momentum:
            for fragment in self._fragments:
                fragment.recall()
        self._average_inside(n_tokens, self._memory)
        if momentum:
            for fragment in self._fragments:
                fragment.repeat(momentum / self.pace.steps)

    def after_step(self, n_tokens: int) -> None:
        """Counts the step; applies the fragment that is due, and sends the one whose turn it is."""
        step, position = self._step + 1, self._position + 1
        self.pace.end(position)
        flights = list(self._flights)
        arrivals = [self._receive(flight) for flight in flights if flight.due == step]
        sent: Flight | None = None
        for p, fragment in enumerate(self._fragments):
            if position == (p + 1) * self.pace.steps // len(self._fragments):
                turn = (p + 1) * self.config.local_steps // len(self._fragments)
                due, done = step + self._overlap, self._done + turn
                sent = self._send(fragment, n_tokens, len(flights), due, done)
                flights.append(sent)
                if self._overlap == 0:
                    arrivals.append(self._receive(sent))
        restart = sent is not None and sent.exchange is not None and sent.exchange.left_out
        restored = self._restore(arrivals) if restart else []

        self._apply(arrivals, restored, mixing=0.0 if restart else self._mixing)
        self._step, self._flights = step, [flight for flight in flights if flight.due > step]
        for fragment in self._fragments:
            fragment.steps += 1
            fragment.tokens += n_tokens
        if sent is not None:
            sent.fragment.steps = sent.fragment.tokens = 0
        self.restarts += restart
        self._position, self._share = position, self.pace.share
        if position == self.pace.steps:
            self._position = 0
            self._done += self.config.local_steps
            self.pace.next_round()
        self.pace.begin()

    def advance(self, step: float) -> float:
        """See `SyncRule.advance`: a round is ``local_steps`` of the run, whatever a cloud does."""
        return step + self._share

    def common_step(self, step: float) -> int | None:
        """See `SyncRule.common_step`: with ``adaptive``, where a round ends."""
        return None if self.config.adaptive and self._position else round(step)

    def finish(self) -> None:
        """Applies what is under way, then a round for every other fragment that any cloud moved.

        Nothing is mixed: all ranks end with the anchor. What a cloud learnt after it had sent a
        fragment that is still under way is dropped.
        """
        told = self.hierarchy.world.all_gather_object(
            (round(self._position * self.pace.share), [f.steps for f in self._fragments])
        )
        done = self._done + max(steps for steps, _ in told)
        moved = [any(row[p] for _, row in told) for p in range(len(self._fragments))]
        flights = list(self._flights)
        arrivals = [self._receive(flight) for flight in flights]
        under_way = {flight.fragment.index for flight in flights}
        for fragment in self._fragments:
            if moved[fragment.index] and fragment.index not in under_way:
                flights.append(self._send(fragment, 0, len(flights), self._step, done))
                arrivals.append(self._receive(flights[-1]))
        restored = self._restore(arrivals) if self._mixing else []

        self._apply(arrivals, restored, mixing=0.0)
        sent = flights[len(self._flights) :]
        self.restarts += any(f.exchange is not None and f.exchange.left_out for f in sent)
        self._flights = []
        self._position, self._done = 0, done
        for fragment in self._fragments:
            fragment.steps = fragment.tokens = 0

    # --- a round ---------------------------------------------------------------------------------

    def _send(
        self, fragment: Fragment, n_tokens: int, n_under_way: int, due: int, done: int
    ) -> Flight:
        """Begins the exchange of a fragment; waits for no other cloud."""
        tokens = self.hierarchy.sum_inside(fragment.tokens + n_tokens)
        flight = Flight(
            fragment,
            fragment.delta(),
            self._cloud_weight(tokens),
            # They end in the order in which they begin.
            self.round + n_under_way,
            due,
            done,
        )
        self._begin(flight, in_place=due <= self._step + 1)
        return flight

    def _begin(self, flight: Flight, *, in_place: bool) -> None:
        """in_place: the delta is not needed again, as it would be for a checkpoint."""
        if flight.delta is not None:
            flight.out = flight.delta if in_place else torch.empty_like(flight.delta)
        flight.exchange = self.hierarchy.begin_shard(
            flight.delta,
            flight.out,
            n_elems=flight.fragment.bucket.n_elems,
            weight=flight.weight,
            codec=self.config.codec,
            algorithm=self.config.algorithm,
            feedback=flight.fragment.feedback,
            round=flight.round,
            bucket=flight.fragment.index,
            nonfinite=self.config.nonfinite,
            tell=self.pace.seconds,
        )

    def _receive(self, flight: Flight) -> Arrival:
        """Waits for an exchange to end, and takes the outer step; changes nothing yet."""
        fragment = flight.fragment
        if flight.exchange is None:
            self._begin(flight, in_place=False)
        assert flight.exchange is not None
        with self._naming(fragment.bucket.layout, flight.round):
            exchanged = flight.exchange.finish()
        anchor, outer = fragment.anchor, fragment.outer
        if anchor is not None and flight.out is not None:
            scale = self._outer_scale(flight.done)
            anchor, outer = step(self._optimizer, anchor, outer, flight.out, scale)
        # Before the anchor, which may be spread into the same memory.
        movement = fragment.last_movement(outer) if self.config.local_momentum else None
        values = fragment.bucket.spread(anchor)
        return Arrival(fragment, anchor, outer, values, movement, exchanged)

    def _outer_scale(self, done: int) -> float:
        """What the outer learning rate is multiplied by after so many steps of the run.

        See ``sync.outer_decay``.
        """
        config = self.config
        if not (config.outer_decay and config.horizon):
            return 1.0
        decayed = 1 - (1 - done / config.horizon) / config.outer_decay
        return 1 - (1 - config.outer_end) * min(max(decayed, 0.0), 1.0)

    def _restore(self, arrivals: list[Arrival]) -> list[tuple[Fragment, torch.Tensor]]:
        """The anchors of all fragments that have not just arrived."""
        arrived = {arrival.fragment.index for arrival in arrivals}
        rest = [f for f in self._fragments if f.index not in arrived]
        return [(f, f.bucket.spread(f.anchor)) for f in rest]

    def _apply(
        self,
        arrivals: list[Arrival],
        restored: list[tuple[Fragment, torch.Tensor]],
        *,
        mixing: float,
    ) -> None:
        """All that a round changes; nothing in here can fail."""
        for fragment, values in restored:
            fragment.set_values(values, mixing=0.0)
        for arrival in arrivals:
            fragment = arrival.fragment
            fragment.set_values(arrival.values, mixing=mixing)
            fragment.anchor, fragment.outer = arrival.anchor, arrival.outer
            fragment.movement = arrival.movement
            if fragment.feedback is not None:
                fragment.feedback.commit()
            self._count_excluded(arrival.exchanged)
            if fragment is self._fragments[-1]:
                self.pace.agree(arrival.exchanged.told)
            self.round += 1

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Also ``step``, ``position`` in the round, ``done`` steps of the run before it, ``pace``;
        ``steps`` and ``tokens`` of each fragment since it was sent; on gateways
        ``fragment.P.anchor`` and the outer optimizer's state: this rail's shard, fp32.

        A fragment under way is saved as what this cloud sends (``flights``, ``flight.P.delta``).
        Who continues from the state sends it again, with the same bits as result.
        """
        return {
            **super().state_dict(),
            "step": self._step,
            "position": self._position,
            "done": self._done,
            "pace": self.pace.state_dict(),
            "steps": [f.steps for f in self._fragments],
            "tokens": [f.tokens for f in self._fragments],
            "flights": [
                [f.fragment.index, f.weight, f.round, f.due, f.done] for f in self._flights
            ],
            **{
                f"fragment.{f.index}.{name}": tensor
                for f in self._fragments
                if f.anchor is not None
                for name, tensor in {"anchor": f.anchor, **f.outer}.items()
            },
            **{
                f"flight.{f.fragment.index}.delta": f.delta
                for f in self._flights
                if f.delta is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `SyncRule.load_state_dict`."""
        self._check_identity(state)
        anchors: list[tuple[torch.Tensor | None, State]] = []
        for f in self._fragments:
            outer = {name: self._saved(state, f, f"fragment.{f.index}.{name}") for name in f.outer}
            anchor = f.anchor
            if anchor is not None:
                anchor = self._saved(state, f, f"fragment.{f.index}.anchor")
            anchors.append((anchor, outer))
        flights = []
        for p, weight, round_, due, done in state.get("flights", []):
            fragment, delta = self._fragments[p], None
            if fragment.anchor is not None:
                # Where the residuals are, though the anchor may be in host memory.
                saved = self._saved(state, fragment, f"flight.{p}.delta")
                delta = saved.to(fragment.bucket.device)
            flights.append(Flight(fragment, delta, float(weight), int(round_), int(due), int(done)))
        super().load_state_dict(state)
        self._step, self._flights = int(state["step"]), flights
        self._position, self._done = int(state["position"]), int(state["done"])
        self.pace.load_state_dict(state["pace"])
        for f, (anchor, outer) in zip(self._fragments, anchors, strict=True):
            f.anchor, f.outer, f.movement = anchor, outer, None
            f.steps, f.tokens = int(state["steps"][f.index]), int(state["tokens"][f.index])

    def join(self) -> None:
        """See `SyncRule.join`: the anchor, from which this cloud has not moved yet."""
        for fragment, values in self._restore([]):
            fragment.set_values(values, mixing=0.0)

    def _saved(self, state: dict[str, Any], fragment: Fragment, name: str) -> torch.Tensor:
        own, tensor = fragment.anchor, state.get(name)
        assert own is not None
        if not isinstance(tensor, torch.Tensor) or tensor.shape != own.shape:
            raise ConfigError(
                f"the checkpoint's sync state has no {name!r} of {own.numel()} elements; resume "
                "with the clouds, rails and [sync] it was written with"
            )
        return empty_like(own).copy_(tensor.detach())

    def _identity(self) -> dict[str, Any]:
        return {
            **super()._identity(),
            "fragments": [f.bucket.layout.n_elems for f in self._fragments],
        }
