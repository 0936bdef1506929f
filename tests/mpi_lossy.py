"""Rules with a lossy codec and several ranks a cloud: checks of `mpi_hierarchy`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import NonFinite
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import SyncConfig


def all_equal(world: Group, value: Any) -> bool:
    told = world.all_gather_object(value)
    return all(other == told[0] for other in told)


class Lossy:
    """A small model with real-valued gradients, int8 and error feedback."""

    def __init__(self, h: Hierarchy, **change: Any) -> None:
        self.h = h
        self.p = torch.nn.Parameter(torch.linspace(-1, 1, 10_001))
        keys: dict[str, Any] = {"rule": "diloco", "codec": "int8", "error_feedback": True, **change}
        config = SyncConfig(local_steps=2, **keys)
        self.rule = sync.make(config, [("p", self.p)], h)
        self.optimizer = torch.optim.SGD([self.p], lr=0.1, momentum=0.9)
        self.generator = torch.Generator().manual_seed(h.world.rank)

    def step(self) -> None:
        n_tokens = 3 + self.h.world.rank
        self.p.grad = torch.randn(self.p.shape, generator=self.generator)
        self.rule.after_backward(n_tokens)
        self.optimizer.step()
        self.rule.after_step(n_tokens)


def check_lossy(h: Hierarchy) -> None:
    """All ranks end with the same bits, round by round."""
    model = Lossy(h)
    for done in (1, 2, 3):
        model.step()
        model.step()
        assert model.rule.round == done
        assert all_equal(h.world, fingerprint([("p", model.p)]))


def check_resume(h: Hierarchy) -> None:
    """Saved with an exchange under way, on every rank its own part: goes on bit for bit."""
    change: dict[str, Any] = {"rule": "streaming", "fragments": 1, "overlap_steps": 1}
    model = Lossy(h, **change)
    for _ in range(4):
        model.step()
    resumed = Lossy(h, **change)
    state = model.rule.state_dict()
    assert len(state["flights"]) == 1
    with torch.no_grad():
        resumed.p.copy_(model.p)
    resumed.rule.load_state_dict(state)
    resumed.optimizer.load_state_dict(copy.deepcopy(model.optimizer.state_dict()))
    resumed.generator.set_state(model.generator.get_state())
    for _ in range(3):
        model.step()
        resumed.step()
    model.rule.finish()
    resumed.rule.finish()
    mine = snapshot(model.p, model.rule.state_dict())
    assert snapshot(resumed.p, resumed.rule.state_dict()) == mine
    assert all_equal(h.world, fingerprint([("p", model.p)]))


def check_excluded(h: Hierarchy) -> None:
    """A NaN in the last rail's shard of the last cloud: the whole cloud is left out, and told."""
    n_clouds = h.topology.n_clouds
    if n_clouds == 1:
        return
    for rule in ("diloco", "streaming", "gradient"):
        model = Lossy(h, rule=rule, nonfinite="exclude", fragments=1)
        for _ in range(3):
            model.step()
        if h.topology.cloud == n_clouds - 1:
            with torch.no_grad():
                model.p[9_999] = float("nan")
        if rule == "gradient":
            model.p.grad = torch.full_like(model.p, float("nan" if h.topology.cloud else 1))
            model.rule.after_backward(3)
            model.rule.after_step(3)
            expected = n_clouds - 1
            model.p.data.fill_(0.0)
        else:
            model.step()
            model.step()
            expected = 1
        model.rule.finish()
        assert sum(model.rule.excluded.values()) == expected
        assert h.topology.names[-1] in model.rule.excluded
        assert all_equal(h.world, fingerprint([("p", model.p)]))
        assert torch.isfinite(model.p).all()
        restarted = rule != "gradient" and h.topology.cloud == n_clouds - 1
        assert model.rule.restarts == restarted


def check_failed_round(h: Hierarchy) -> None:
    """An infinity in one cloud: every rank is told the parameter, and keeps all that it had."""
    model = Lossy(h)
    for _ in range(3):
        model.step()
    if h.topology.cloud == 1:
        with torch.no_grad():
            model.p[9_000] = float("inf")
    before = snapshot(model.p, model.rule.state_dict())
    with pytest.raises(NonFinite, match="parameter 'p'") as caught:
        model.rule.finish()
    assert caught.value.index == 9_000
    assert snapshot(model.p, model.rule.state_dict()) == before


def snapshot(p: torch.Tensor, state: dict[str, Any]) -> dict[str, bytes]:
    items = {"p": p, **state}
    return {
        name: value.detach().numpy().tobytes()
        if isinstance(value, torch.Tensor)
        else repr(value).encode()
        for name, value in items.items()
    }
