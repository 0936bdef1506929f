"""``sync.nonfinite = "exclude"``: a cloud that diverges is left out, told, and set back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import errors_of, run_ranks
from reference_sync import Run
from small_model import (
    EXACT,
    IN_ROUNDS,
    INNER_LR,
    bits,
    config_for,
    crafted,
    flat_of,
    make_parameters,
    opened,
    set_gradients,
    train,
)

from pyfedcomm import sync
from pyfedcomm.buckets import fingerprint
from pyfedcomm.errors import NonFinite
from pyfedcomm.group import Group

EXCHANGING = [name for name in IN_ROUNDS if name != "isolated"]
SYNCHRONOUS = [name for name in EXCHANGING if name not in ("gradient", "streaming")]


def spoil(named: Any) -> None:
    with torch.no_grad():
        named[3][1][2, 3] = float("nan")


@pytest.mark.parametrize("rule", SYNCHRONOUS)
def test_the_round_is_that_of_the_others(rule: str) -> None:
    """As if the diverged cloud had trained on no token; in the next round it is one of them."""
    config = config_for(rule, EXACT, nonfinite="exclude", local_steps=2)
    truth = Run(crafted(0), [[0], [1], [2]], INNER_LR, rule, 2, 0.5, 0.5)
    for step in range(4):
        gradients = [crafted(1000 * step + rank) for rank in range(3)]
        truth.step(gradients, (2, 2, 0) if step < 2 else (2, 2, 4))

    def fn(group: Group) -> tuple[Any, dict[str, int], int]:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            train(made, named, group.rank, range(1), lambda *_: 2)
            if group.rank == 2:
                spoil(named)
            train(made, named, group.rank, range(1, 2), lambda *_: 2)
            train(made, named, group.rank, range(2, 4), lambda _, r: (2, 2, 4)[r])
        return flat_of(named), made.excluded, made.restarts

    for rank, (final, excluded, restarts) in enumerate(run_ranks(3, fn)):
        np.testing.assert_array_equal(final, truth.params[0])
        assert excluded == {"c2": 1}
        assert restarts == (rank == 2)


def test_gradients_that_are_not_finite_are_left_out() -> None:
    config = config_for("gradient", EXACT, nonfinite="exclude")
    truth = Run(crafted(0), [[0], [1]], INNER_LR, "gradient")
    truth.step([crafted(0), crafted(1)], (4, 0))
    truth.step([crafted(1000), crafted(1001)], (4, 4))

    def fn(group: Group) -> tuple[Any, dict[str, int], int]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            set_gradients(named, crafted(group.rank) * np.float32("nan" if group.rank else 1))
            rule.after_backward(4)
            torch.optim.SGD([p for _, p in named], lr=INNER_LR).step()
            rule.after_step(4)
            train(rule, named, group.rank, range(1, 2), lambda *_: 4)
        return flat_of(named), rule.excluded, rule.restarts

    for final, excluded, restarts in run_ranks(2, fn):
        np.testing.assert_array_equal(final, truth.params[0])
        assert (excluded, restarts) == ({"c1": 1}, 0)


@pytest.mark.parametrize("rule", EXCHANGING)
def test_it_is_left_out_once_and_all_end_bit_identical(rule: str) -> None:
    """NaNs everywhere in one cloud, lossy codec: residuals and all fragments stay finite."""
    config = config_for(
        rule,
        EXACT,
        nonfinite="exclude",
        local_steps=4,
        overlap_steps=2,
        codec="int8",
        error_feedback=True,
    )

    def fn(group: Group) -> tuple[str, dict[str, int], bool, bool]:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            train(made, named, group.rank, range(5), lambda *_: 3)
            if group.rank == 1:
                bad = crafted(1) * np.float32("nan")
                if rule == "gradient":
                    set_gradients(named, bad)
                else:
                    for _, p in named:
                        p.data.fill_(float("nan"))
            if rule == "gradient":
                made.after_backward(3)
                made.after_step(3)
            train(made, named, group.rank, range(5, 8), lambda *_: 3)
            healthy = bool(np.isfinite(flat_of(named)).all())
            train(made, named, group.rank, range(8, 16), lambda *_: 3)
            made.finish()
            state = made.state_dict()
        finite = all(torch.isfinite(t).all() for t in state.values() if isinstance(t, torch.Tensor))
        return fingerprint(named), made.excluded, healthy, finite and bool(flat_of(named).any())

    results = run_ranks(3, fn)
    assert {result[0] for result in results} == {results[0][0]}
    assert [result[1:] for result in results] == [({"c1": 1}, True, True)] * 3


def test_a_restart_is_not_repeated_by_a_resume() -> None:
    """Saved while the NaNs of a cloud are under way: the resumed run goes on bit for bit."""
    config = config_for(
        "streaming", EXACT, nonfinite="exclude", local_steps=4, overlap_steps=2, codec="int8"
    )

    def fn(group: Group) -> tuple[Any, Any]:
        straight = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, straight, hierarchy)
            train(rule, straight, group.rank, range(3), lambda *_: 3)
            if group.rank == 1:
                spoil(straight)
            train(rule, straight, group.rank, range(3, 5), lambda *_: 3)
            assert rule.restarts == group.rank
            saved, state = [p.detach().clone() for _, p in straight], rule.state_dict()
            assert state["flights"]
            train(rule, straight, group.rank, range(5, 9), lambda *_: 3)
            whole = {**bits(straight), **bits(rule.state_dict())}
        resumed = make_parameters()
        with opened(group) as hierarchy, torch.no_grad():
            for (_, p), value in zip(resumed, saved, strict=True):
                p.copy_(value)
            rule = sync.make(config, resumed, hierarchy)
            rule.load_state_dict(state)
            train(rule, resumed, group.rank, range(5, 9), lambda *_: 3)
            assert (rule.excluded, rule.restarts) == ({"c1": 1}, 0)
            return whole, {**bits(resumed), **bits(rule.state_dict())}

    for whole, resumed in run_ranks(2, fn):
        assert whole == resumed


@pytest.mark.parametrize("rule", EXCHANGING)
def test_where_every_cloud_diverges_the_round_fails(rule: str) -> None:
    config = config_for(rule, EXACT, nonfinite="exclude", local_steps=2)

    def fn(group: Group) -> None:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            set_gradients(named, crafted(1) * np.float32("nan"))
            made.after_backward(3)
            spoil(named)
            made.after_step(3)
            made.finish()

    for error in errors_of(2, fn):
        assert isinstance(error, NonFinite)
