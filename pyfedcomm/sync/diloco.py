"""DiLoCo: clouds train alone for many steps, then exchange how far they went.

Every ``local_steps`` steps each cloud contributes delta = anchor - parameters; the weighted mean
of the deltas is the gradient of an outer SGD with Nesterov momentum on the anchor, and all
clouds go on from the new anchor. The inner optimizer, and its state, stay each cloud's own.

Source: Douillard et al., "DiLoCo", arXiv 2311.08105, algorithm 1. With ``outer_momentum = 0`` and
``outer_lr = 1`` it is federated averaging (arXiv 1602.05629).
"""

from __future__ import annotations

from typing import Any

import torch

from pyfedcomm.buckets import NamedParameters
from pyfedcomm.errors import ConfigError
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync.base import SyncConfig, SyncRule


class DiLoCo(SyncRule):
    """One round in ``local_steps`` steps.

    The outer state is fp32, whatever the parameters are, and exists once per cloud: a gateway
    keeps anchor and momentum of its rail's shard only, 8 bytes a parameter / ``n_rails``, and 12
    more during a round. Where a cloud has several ranks each keeps one fp32 copy of the model, to
    average gradients and to receive the result.

    Parameters of lower precision restart from the *rounded* anchor, and the delta counts from
    there: rounding is no movement, and what it hides of the anchor is not lost.
    """

    def __init__(
        self, parameters: NamedParameters, hierarchy: Hierarchy, config: SyncConfig
    ) -> None:
        super().__init__(parameters, hierarchy, config)
        self._n_elems = hierarchy.padded(self._value_layout.n_elems)
        self._memory = self._scratch()
        self._shard = hierarchy.shard(self._n_elems)
        self._feedback = self._make_feedback(self._n_elems)
        self._steps = 0
        self._tokens = 0
        self._anchor: torch.Tensor | None = None
        self._momentum: torch.Tensor | None = None
        if self._shard is not None:
            self._anchor = self._packed_shard(self._shard)
            self._momentum = torch.zeros_like(self._anchor)

    def _after_backward(self, n_tokens: int) -> None:
        self._average_inside(n_tokens, self._memory)

    def after_step(self, n_tokens: int) -> None:
        """Counts the step; after ``local_steps`` of them, runs a round."""
        self._steps += 1
        self._tokens += n_tokens
        if self._steps >= self.config.local_steps:
            self._run_round()

    def finish(self) -> None:
        """A round with the steps done since the last one, if any cloud has done some."""
        if any(self.hierarchy.world.all_gather_object(self._steps)):
            self._run_round()

    # --- a round ---------------------------------------------------------------------------------

    def _run_round(self) -> None:
        """Exchange, outer step, new parameters; all of it or, on an error, none of it."""
        hierarchy = self.hierarchy
        delta = self._delta()
        with self._naming(self._value_layout):
            hierarchy.exchange_shard(
                delta,
                delta,
                n_elems=self._n_elems,
                weight=self._cloud_weight(hierarchy.sum_inside(self._tokens)),
                codec=self.config.codec,
                algorithm=self.config.algorithm,
                feedback=self._feedback,
                round=self.round,
            )
        anchor = momentum = None
        if self._anchor is not None and self._momentum is not None and delta is not None:
            anchor, momentum = outer_step(self._anchor, self._momentum, delta, self.config)
        values = self._spread(anchor)

        self._value_layout.unpack(values, self._values)
        self._anchor, self._momentum = anchor, momentum
        if self._feedback is not None:
            self._feedback.commit()
        self._steps = self._tokens = 0
        self.round += 1

    def _delta(self) -> torch.Tensor | None:
        """This cloud's contribution to its gateway's shard: where it started minus where it is."""
        if self._shard is None or self._anchor is None:
            return None
        start = self._value_layout.round_(self._anchor.clone(), begin=self._shard.start)
        return start.sub_(self._packed_shard(self._shard))

    def _spread(self, anchor: torch.Tensor | None) -> torch.Tensor:
        """The whole new anchor, from the shards of the cloud's gateways."""
        if self._memory is None:
            assert anchor is not None  # a lone rank is its cloud's only gateway
            return anchor
        values = self._memory[: self._n_elems]
        if anchor is not None and self._shard is not None:
            values[self._shard].copy_(anchor)
        self.hierarchy.gather_inside(values)
        return values

    def _packed_shard(self, shard: slice) -> torch.Tensor:
        part = torch.empty(shard.stop - shard.start, device=self.hierarchy.device)
        self._value_layout.pack(self._values, part, begin=shard.start)
        return part

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Also ``steps`` and ``tokens`` since the last round; on gateways ``anchor`` and
        ``momentum``: this rail's shard, fp32.
        """
        state = {**super().state_dict(), "steps": self._steps, "tokens": self._tokens}
        if self._anchor is not None and self._momentum is not None:
            state |= {"anchor": self._anchor, "momentum": self._momentum}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `SyncRule.load_state_dict`."""
        outer: list[torch.Tensor] = []
        if self._anchor is not None:
            for name in ("anchor", "momentum"):
                tensor = state.get(name)
                if not isinstance(tensor, torch.Tensor) or tensor.shape != self._anchor.shape:
                    raise ConfigError(
                        f"the checkpoint's sync state has no {name!r} of {self._anchor.numel()} "
                        "elements; resume with the clouds and rails it was written with"
                    )
                outer.append(tensor.detach().to(self._anchor, copy=True))
        super().load_state_dict(state)
        if outer:
            self._anchor, self._momentum = outer
        self._steps, self._tokens = int(state["steps"]), int(state["tokens"])


def outer_step(
    anchor: torch.Tensor, momentum: torch.Tensor, delta: torch.Tensor, config: SyncConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(new anchor, new momentum) of one SGD step with gradient ``delta``, whose memory it takes.

        m <- mu m + d;  a <- a - lr (d + mu m)  with Nesterov,  a - lr m  without

    fp32 on any device, as `torch.optim.SGD` defines it. Products and sums are separate operations:
    ``add(..., alpha=)`` may be one fused multiply-add, with other bits on other machines.
    """
    momentum = momentum.mul(config.outer_momentum).add_(delta)
    if config.nesterov:
        step = delta.add_(momentum.mul(config.outer_momentum))
    else:
        step = delta.copy_(momentum)
    step.mul_(config.outer_lr)
    return torch.sub(anchor, step, out=step), momentum
