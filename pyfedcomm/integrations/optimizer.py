"""Any torch optimizer, in any loop, with a sync rule around its steps.

    optimizer = CrossCloudOptimizer(torch.optim.AdamW(model.named_parameters()), group,
                                    sync=SyncConfig(local_steps=50))
    loss.backward(); optimizer.step(n_tokens=n); optimizer.zero_grad()
    optimizer.finish()

It adds nothing to a rule (``sync``) but the order of its calls, and knows neither data nor models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyfedcomm import sync as sync_rules
from pyfedcomm.buckets import NamedParameters
from pyfedcomm.errors import ConfigError, InvalidArgument
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.integrations.clouds import hierarchy_over
from pyfedcomm.sync import SyncConfig, SyncRule

_SYNC = "sync"


class CrossCloudOptimizer(torch.optim.Optimizer):
    """Steps ``optimizer`` and keeps its parameters in step over all ranks of all clouds.

    An optimizer as torch means it: ``param_groups`` and ``state`` are those of the one inside, so
    learning-rate schedulers, hooks and `torch.amp.GradScaler` work on it. All ranks make the same
    calls. As a context manager it calls `finish` and `close` at the end of the block; an error
    inside the block breaks the group, so that no other rank waits.
    """

    rule: SyncRule
    hierarchy: Hierarchy

    # GradScaler then calls `step` whatever it found, and leaves scale and findings to it: whether
    # to step is for all ranks to decide together.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        over: Group | Hierarchy,
        *,
        sync: SyncConfig | None = None,
        named_parameters: NamedParameters | None = None,
    ) -> None:
        """Collective over all ranks. Parameters have the values that training starts from.

        optimizer: has all its parameters, on one kind of device.
        over: a `Group`, each member of which is a cloud of one rank; or a `Hierarchy`.
        sync: the same on all ranks; default `SyncConfig()`, which exchanges every 40 steps. With
            ``horizon``, the steps of the whole run, its outer step falls towards the end.
        named_parameters: names for messages, and for the layers that ``streaming`` deals out;
            default the names that ``optimizer`` was given, else ``group.0.parameter.0``, and then a
            parameter group is all that can be told apart. Frozen parameters among them are
            checked to be equal on all ranks, and not exchanged.
        Raises InvalidArgument; ConfigError on every rank where configs or models differ.
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InvalidArgument(
                "LBFGS evaluates the loss as often as its line search likes, on each rank "
                "differently, and ranks would wait for each other: use an optimizer of one "
                "gradient a step"
            )
        self._inner = optimizer
        # Makes the hooks that torch's methods look for. Its __init__ would also make parameter
        # groups and a state, and those are the inner optimizer's.
        self.__setstate__({})
        named = _named(optimizer, named_parameters)
        self.hierarchy, self._owned = hierarchy_over(over, named[0][1].device)
        self._averaged: int | None = None
        try:
            self.rule = sync_rules.make(sync or SyncConfig(), named, self.hierarchy)
        except BaseException:
            self.close()
            raise
        self._restarts = 0

    # --- a step ----------------------------------------------------------------------------------

    def average_gradients(self, n_tokens: int = 1) -> None:
        """What `step` does first; call it before it to clip what it leaves in ``.grad``.

        n_tokens: as in `step`, which then needs none.
        """
        if self._averaged is not None:
            raise InvalidArgument("average_gradients was called twice without a step between")
        self.rule.after_backward(n_tokens)
        self._averaged = n_tokens

    def step(self, closure: Callable[[], Any] | None = None, *, n_tokens: int = 1) -> Any:
        """One step of the inner optimizer, and the rule's part before and after it.

        closure: evaluated once, with gradients; what it returns is returned.
        n_tokens: that this rank's gradients are the mean over, 0 if it had none; this is what it
            counts. The default counts every rank's steps alike.
        Raises what `SyncRule` does, on every rank: NonFinite, Timeout, PeerLost, ...
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        good = self._unscaled()
        if self._averaged is not None:
            n_tokens = self._averaged
        elif good:
            self.rule.after_backward(n_tokens)
        self._averaged = None
        if good:
            self._inner.step()
        self.rule.after_step(n_tokens)
        if self.rule.restarts > self._restarts:
            # The cloud had diverged and starts again from the common parameters: as a beginner.
            self._restarts = self.rule.restarts
            self._inner.state.clear()
        return result

    def _unscaled(self) -> bool:
        """Undoes the scale of a GradScaler; False if an overflow anywhere forbids this step.

        A rank that skipped a step by itself would leave the others waiting, and its parameters
        behind those of its cloud.
        """
        found = getattr(self, "found_inf", None)
        if found is None:
            return True
        scale = getattr(self, "grad_scale", None)
        if scale is not None and self._averaged is not None:
            raise InvalidArgument(
                "average_gradients was given scaled gradients: call scaler.unscale_(optimizer) "
                "before it"
            )
        if scale is not None:
            divisor = float(scale)  # a power of two, unless somebody chose another
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.div_(divisor)
        bad = float(found) > 0
        if self.rule.config.rule == "gradient":
            return not any(self.hierarchy.world.all_gather_object(bad))
        return self.hierarchy.sum_inside(float(bad)) == 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's."""
        self._inner.zero_grad(set_to_none)

    def finish(self) -> None:
        """The last round: afterwards all ranks of all clouds have equal parameters.

        Collective. More steps may follow. Not so with the rule ``isolated``.
        """
        self.rule.finish()

    def close(self) -> None:
        """Frees the networks if they were made here. Idempotent."""
        if self._owned:
            self.hierarchy.close()

    def __enter__(self) -> CrossCloudOptimizer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        try:
            if error is None:
                self.finish()
            elif self.hierarchy.world.broken is None:
                self.hierarchy.world.abort(f"{type(error).__name__}: {error}")
                if self.hierarchy.inter is not None:
                    self.hierarchy.inter.abort(f"{type(error).__name__}: {error}")
        finally:
            self.close()

    # --- what the inner optimizer has ------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimizer's."""
        return self._inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The inner optimizer's."""
        return self._inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's."""
        return self._inner.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: what is exchanged was agreed on when this was made."""
        raise InvalidArgument(
            "a CrossCloudOptimizer cannot be given more parameters: add the group to the "
            "optimizer before it is wrapped"
        )

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and beside it ``sync``: this rank's state of the rule.

        Raises InvalidArgument while ``async`` has a push under way.
        """
        return {**self._inner.state_dict(), _SYNC: self.rule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from `state_dict` of the same rank; bit for bit, with the parameters of then.

        Raises ConfigError where the rule, the model or the clouds are others.
        """
        if _SYNC not in state_dict:
            raise ConfigError(
                "this state was saved without a CrossCloudOptimizer: load it into the optimizer "
                "before that is wrapped"
            )
        self.rule.load_state_dict(state_dict[_SYNC])
        self._inner.load_state_dict({k: v for k, v in state_dict.items() if k != _SYNC})


def _named(
    optimizer: torch.optim.Optimizer, given: NamedParameters | None
) -> list[tuple[str, torch.nn.Parameter]]:
    """The optimizer's parameters by name; with ``given`` in its order, frozen ones among them."""
    own: dict[torch.nn.Parameter, str] = {}
    for g, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for i, p in enumerate(group["params"]):
            own[p] = names[i] if names else f"group.{g}.parameter.{i}"
    if given is None:
        return [(name, p) for p, name in own.items()]
    named = [(name, p) for name, p in given if p in own or not p.requires_grad]
    missing = set(own) - {p for _, p in named}
    if missing:
        shapes = ", ".join(str(list(p.shape)) for p in own if p in missing)
        raise InvalidArgument(
            f"named_parameters lacks {len(missing)} parameters of the optimizer, of the shapes "
            f"{shapes}: give model.named_parameters() of the model that it optimizes"
        )
    return named
