"""What a sync rule is, and what all rules share: layouts, agreement, naming of bad values.

It fixes nothing about when or what is exchanged; that is each rule's own file.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from pyfedcomm import dtensor, weights
from pyfedcomm.buckets import BucketLayout, NamedParameters, fingerprint, trainable
from pyfedcomm.errors import ConfigError, Error, NonFinite
from pyfedcomm.exchange import Exchanged
from pyfedcomm.feedback import ErrorFeedback
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.holding import Bucket, Sharded, Whole
from pyfedcomm.intra import from_record, to_record
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.weights import Contribution, Observation


class SyncRule(ABC):
    """Keeps the parameters of one model in step over all ranks of all clouds.

    The training loop calls `after_backward`, clips, steps the optimizer, calls `after_step`; and
    `finish` once at the end. All ranks make the same calls. A call that raises has changed
    neither parameters nor gradients nor the rule's own state.
    """

    round: int
    """Rounds done."""
    excluded: dict[str, int]
    """Rounds that a cloud was left out of, by its name: what it had to contribute was not finite.
    Equal on all ranks."""
    observed: tuple[Observation, ...]
    """See `observe`; empty before the first time."""
    restarts: int
    """How often since this rule was made this cloud's parameters were set back to the common ones
    because of that. What its optimizer remembers is the training loop's to forget: it is not finite
    either."""

    COMMON: tuple[str, ...] = ("round", "excluded")
    """Plain values in `state_dict` that are the same on all ranks of all clouds, whichever these
    are: what a cloud that joins later takes over from another one (see ``reshard``)."""
    MEASURED: tuple[str, ...] = ("observed",)
    """Those that were measured of each cloud, and are measured anew where clouds change."""

    adapts = False
    """Whether ``sync.adaptive`` may be set."""
    repeats = False
    """Whether ``sync.local_momentum`` may be set."""
    decays = False
    """Whether ``sync.outer_decay`` may be set."""

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        """Collective. Raises `ConfigError` on every rank where configs or models differ."""
        self.hierarchy = hierarchy
        self.config = config
        self.round = self.restarts = 0
        self.excluded, self.observed = {}, ()
        self._started = False
        self._feedbacks: list[ErrorFeedback | None] = []
        self._named = list(parameters)
        error: Error | None = None
        try:
            self.check(config)
            self._weights = weights.make(config.weights)
            by_object = trainable(self._named)
            by_storage = trainable(self._named, once_per="storage")
            self._sharded = dtensor.check(
                by_object, hierarchy.topology.local_size, hierarchy.topology.local_rank
            )
            self._parameters = [p for _, p in by_object]
            self._values = [p for _, p in by_storage]
            self._value_layout = BucketLayout.of(by_storage)
        except Error as e:
            error = e
        self._sections = self._agree(error)
        self._gradients = self._bucket(by_object)

    @classmethod
    def check(cls, config: SyncConfig) -> None:
        """Raises `ConfigError` for keys that the rule cannot work with, whatever the model is."""
        weights.make(config.weights)
        if config.adaptive and not cls.adapts:
            raise ConfigError(
                f"sync.adaptive is True, but sync.rule = {config.rule!r} has no rounds of many "
                "steps that clouds could finish together; leave that key out, or choose 'diloco'"
            )
        if config.local_momentum and not cls.repeats:
            raise ConfigError(
                f"sync.local_momentum is {config.local_momentum}, but sync.rule = {config.rule!r} "
                "has no rounds whose movement local steps could repeat; leave that key out, or "
                "choose 'diloco'"
            )

        if config.outer_decay and not cls.decays:
            raise ConfigError(
                f"sync.outer_decay is {config.outer_decay}, but sync.rule = {config.rule!r} has no "
                "rounds of an outer optimizer, whose step size could fall at the end of a run; "
                "leave that key out or set it to 0, or choose 'diloco'"
            )

    # --- what the training loop calls ------------------------------------------------------------

    def after_backward(self, n_tokens: int) -> None:
        """Gradients are there, the optimizer has not stepped; leaves final ones in ``.grad``.

        n_tokens: that this rank's gradients are the mean over; 0 if it had none. A parameter
        without a gradient counts as one of zero, and has one afterwards if ranks exchanged.
        """
        if not self._started:
            self._check_same_start()
        self._after_backward(n_tokens)

    @abstractmethod
    def _after_backward(self, n_tokens: int) -> None:
        """What `after_backward` does for this rule."""

    @abstractmethod
    def after_step(self, n_tokens: int) -> None:
        """The optimizer has stepped. n_tokens: of this rank in this step."""

    @abstractmethod
    def finish(self) -> None:
        """The last, possibly partial, round: all ranks that exchange end with equal parameters."""

    def observe(self, clouds: Sequence[Observation]) -> None:
        """What was measured of each cloud, in cloud order; equal on all ranks.

        Rounds that begin from now on are weighted by it, if the rule of weights asks for it.
        Raises `NonFinite` on all ranks for a loss that gives no weight, unless
        ``nonfinite = "exclude"``.
        """
        if self.config.nonfinite == "error":
            self._weights.check(clouds, self.hierarchy.topology.names)
        self.observed = tuple(clouds)

    def advance(self, step: float) -> float:
        """The step of the run that this rank is at after its own last one; ``step``: before it.

        A run's steps are the mean over clouds where these take different numbers of them, and a
        rank may be between two. Called after `after_step`.
        """
        return step + 1

    def common_step(self, step: float) -> int | None:
        """The step of the run that all ranks are at, if this rank's ``step`` is such a one.

        There they may do together what has nothing to do with the rule: log, evaluate, save.
        """
        return round(step)

    def meet(self, step: int) -> None:  # noqa: B027 - most rules have nothing to do
        """Asks that all ranks come together at this step of the run, soon after it at the latest.

        For rules whose clouds do not by themselves. The same on all ranks; called before the first
        step, and where they have come together, which they leave with it.
        """

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, tensors and plain values by flat name; not the parameters.

        With error feedback on gateways ``feedback.B.sender`` and ``feedback.B.owner`` of each
        bucket B, and ``feedback.B.owned``, where in the shard the second begins and ends.
        """
        return {
            **self._identity(),
            "round": self.round,
            "excluded": dict(self.excluded),
            "observed": [asdict(each) for each in self.observed],
            **{
                f"feedback.{bucket}.{name}": tensor
                for bucket, feedback in enumerate(self._feedbacks)
                if feedback is not None
                for name, tensor in feedback.state_dict().items()
            },
            **{
                f"feedback.{bucket}.owned": [feedback.owned.start, feedback.owned.stop]
                for bucket, feedback in enumerate(self._feedbacks)
                if feedback is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`; bit for bit, once the parameters are loaded as well.

        Raises `ConfigError` where the state is another rule's, model's or topology's.
        """
        self._check_identity(state)
        saved = [
            (feedback, {n: state.get(f"feedback.{bucket}.{n}") for n in ("sender", "owner")})
            for bucket, feedback in enumerate(self._feedbacks)
            if feedback is not None
        ]
        for feedback, residuals in saved:
            feedback.check_state_dict(residuals)
        for feedback, residuals in saved:
            feedback.load_state_dict(residuals)
        self.round, self.excluded = int(state["round"]), dict(state["excluded"])
        observed = tuple(Observation(**each) for each in state["observed"])
        # Of other clouds than these nothing follows for these.
        self.observed = observed if len(observed) == self.hierarchy.topology.n_clouds else ()
        self._started = True

    def join(self) -> None:
        """For a cloud that joins a run, once its state is loaded; collective inside the cloud.

        It has another cloud's parameters; it takes the common ones, where the rule keeps any.
        """
        return

    # --- for the rules ---------------------------------------------------------------------------

    def _bucket(self, named: Sequence[tuple[str, torch.Tensor]]) -> Bucket:
        """For these parameters, as this rank holds them."""
        kind = Sharded if self._sharded else Whole
        return kind(named, self.hierarchy, self._sections)

    def _average_inside(self, n_tokens: int, scratch: torch.Tensor | None) -> None:
        """Gradients become the mean over the cloud's tokens, on all its ranks; zero without any."""
        if scratch is None:  # a lone rank, or FSDP: the gradients are the cloud's
            if self.hierarchy.sum_inside(n_tokens) == 0:
                for p in self._parameters:
                    p.grad = None if p.grad is None else torch.zeros_like(p.grad)
            return
        flat = scratch[: self._gradients.n_held]
        self._gradients.pack([p.grad for p in self._parameters], flat)
        self.hierarchy.mean_inside(flat, weight=n_tokens)
        self._set_gradients(flat)

    def _scratch(self, n_elems: int = 0) -> torch.Tensor | None:
        """Memory for all gradients, or ``n_elems`` if more, of a rank that must average its own.

        None where a cloud is one rank, and where FSDP has averaged them.
        """
        if self._sharded or self.hierarchy.topology.local_size == 1:
            return None
        longest = max(self._gradients.n_held, n_elems)
        return torch.zeros(longest, device=self.hierarchy.device)

    def _set_gradients(self, held: torch.Tensor) -> None:
        for p in self._parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self._gradients.unpack(held, gradients)

    def _cloud_weight(self, n_tokens: float) -> float:
        cloud = self.hierarchy.topology.cloud
        return self._weights.weight(Contribution(int(n_tokens), cloud, self.observed))

    def _count_excluded(self, exchanged: Exchanged) -> None:
        for cloud in exchanged.excluded:
            name = self.hierarchy.topology.names[cloud]
            self.excluded[name] = self.excluded.get(name, 0) + 1

    def _add_feedback(self, n_elems: int) -> ErrorFeedback | None:
        """Residuals of this rank's shard of the next bucket; None where there is none to keep."""
        shard, inter = self.hierarchy.shard(n_elems), self.hierarchy.inter
        feedback: ErrorFeedback | None = None
        if self.config.error_feedback and shard is not None and inter is not None:
            feedback = ErrorFeedback(
                shard.stop - shard.start,
                inter,
                self.config.algorithm,
                self.config.codec,
                self.hierarchy.device,
            )
        self._feedbacks.append(feedback)
        return feedback

    @contextlib.contextmanager
    def _naming(self, layout: BucketLayout, round: int) -> Iterator[None]:
        """Adds the parameter's name to an error that knows only an element of the bucket."""
        try:
            yield
        except NonFinite as e:
            if not 0 <= e.index < layout.n_elems:
                raise
            named = NonFinite(
                f"[sync] {self.config.rule}, round {round}, parameter "
                f"{layout.name_of(e.index)!r}: {e}; nothing was applied. Look for a loss that "
                "diverged: lower the learning rate or clip gradients; or go on without the cloud "
                "that has it: sync.nonfinite = 'exclude'"
            )
            named.index = e.index
            raise named from e

    # --- inside ----------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What a saved state must have in common with this rule to be loaded."""
        return {
            "rule": self.config.rule,
            "n_elems": self._value_layout.n_elems,
            "n_rails": self.hierarchy.n_rails,
            **({"sections": self._sections} if self._sections > 1 else {}),
        }

    def _check_identity(self, state: dict[str, Any]) -> None:
        for key, own in {"sections": None, **self._identity()}.items():
            if state.get(key) != own:
                raise ConfigError(
                    f"the checkpoint's sync state has {key} = {state.get(key)!r}, this run has "
                    f"{own!r}; resume with the model, clouds and [sync] it was written with"
                )

    def _agree(self, error: Error | None) -> int:
        """How many sections buckets have (see `holding`).

        Raises the same error on all ranks if any has one, or if configs or models differ.
        """
        world = self.hierarchy.world
        layout = None if error else self._value_layout.digest()
        told = world.all_gather_object(
            {
                "error": None if error is None else to_record(error),
                "config": asdict(self.config),
                "layout": layout,
                "sharded": not error and self._sharded,
            }
        )
        for rank, row in enumerate(told):
            if row["error"] is not None:
                record = row["error"]
                message = f"{self._who(rank)}: {record['message']}"
                raise error or from_record({**record, "message": message})
        for rank, row in enumerate(told):
            for key, value in told[0]["config"].items():
                if row["config"].get(key) != value:
                    raise ConfigError(
                        f"clouds disagree on sync.{key}: {self._who(0)} has {value!r}, "
                        f"{self._who(rank)} has {row['config'].get(key)!r}; use one config"
                    )
        if any(row["layout"] != told[0]["layout"] for row in told):
            lay = self._value_layout
            mine = [
                f"{name} {list(shape)} {str(dtype).removeprefix('torch.')}"
                for name, shape, dtype in zip(lay.names, lay.shapes, lay.dtypes, strict=True)
            ]
            self._raise_difference(
                "clouds disagree on the model", mine, "train the same model in every cloud"
            )
        return self._agreed_sections([bool(row["sharded"]) for row in told])

    def _agreed_sections(self, sharded: list[bool]) -> int:
        """One for each rank where all are gateways, so that no rank gives another what it holds."""
        topology, n_rails = self.hierarchy.topology, self.hierarchy.n_rails
        for ranks in topology.clouds:
            for rank in ranks:
                if sharded[rank] != sharded[ranks[0]]:
                    holder, other = (rank, ranks[0]) if sharded[rank] else (ranks[0], rank)
                    raise ConfigError(
                        f"{self._who(holder)} has sharded parameters and {self._who(other)} of the "
                        "same cloud has not; call fully_shard on all ranks of a cloud or on none"
                    )
        even = all(len(ranks) == n_rails for ranks in topology.clouds)
        return n_rails if any(sharded) and even else 1

    def _check_same_start(self) -> None:
        """A fresh run must start from the same parameters everywhere; no round makes up for it."""
        told = self.hierarchy.world.all_gather_object(fingerprint(self._named))
        if any(value != told[0] for value in told):
            mine = [f"{name} = {fingerprint([(name, p)])[:8]}" for name, p in self._named]
            self._raise_difference(
                "ranks start from different parameters (hashes)",
                mine,
                "use one seed, or load one checkpoint, on every rank",
            )
        self._started = True

    def _raise_difference(self, what: str, mine: list[str], remedy: str) -> None:
        """Raises on all ranks, naming the first rank and line that differ. Collective."""
        told = self.hierarchy.world.all_gather_object(mine)
        for rank, lines in enumerate(told):
            for i in range(max(len(lines), len(told[0]))):
                first = told[0][i] if i < len(told[0]) else "nothing more"
                other = lines[i] if i < len(lines) else "nothing more"
                if first != other:
                    raise ConfigError(
                        f"{what}: {self._who(0)} has {first}, {self._who(rank)} has {other}; "
                        f"{remedy}"
                    )

    def _who(self, rank: int) -> str:
        topology = self.hierarchy.topology
        cloud = next(i for i, ranks in enumerate(topology.clouds) if rank in ranks)
        return f"rank {rank} (cloud {topology.names[cloud]})"
