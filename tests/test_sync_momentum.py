"""Local momentum: local steps that repeat how the clouds moved together in the last round.

One rank per cloud, in threads; several ranks per cloud are `test_hierarchy`'s and `test_sharded`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from reference_sync import Run
from small_model import (
    EXACT,
    FRAGMENTS,
    INNER_LR,
    REPEATING,
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
from pyfedcomm.errors import ConfigError, NonFinite
from pyfedcomm.group import Group
from pyfedcomm.sync import SyncConfig
from pyfedcomm.sync.local import LocalRule

HALF = {"local_steps": 4, "local_momentum": 0.5}
"""An eighth at each step: nothing rounds."""


@pytest.mark.parametrize("tokens", [(4,), (2, 2), (1, 3), (1, 5, 2)])
@pytest.mark.parametrize("rule", REPEATING)
def test_rule_equals_the_plain_algorithm(rule: str, tokens: tuple[int, ...]) -> None:
    n = len(tokens)
    config = config_for(rule, EXACT, **HALF)
    truth = Run(
        crafted(0),
        [[c] for c in range(n)],
        INNER_LR,
        rule,
        4,
        0.5,
        0.5,
        fragments=FRAGMENTS,
        overlap=1,
        mixing=0.5,
        local_momentum=0.5,
    )
    history: list[list[Any]] = []
    for step in range(10):
        truth.step([crafted(1000 * step + rank) for rank in range(n)], tokens)
        history.append([p.copy() for p in truth.params])
    truth.finish()
    assert truth.movement.any()

    def fn(group: Group) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            for step in range(10):
                train(made, named, group.rank, range(step, step + 1), lambda _, r: tokens[r])
                np.testing.assert_array_equal(flat_of(named), history[step][group.rank])
            made.finish()
        return flat_of(named)

    for rank, final in enumerate(run_ranks(n, fn)):
        np.testing.assert_array_equal(final, truth.params[rank])


def test_one_cloud_moves_on_as_an_exponential_mean_does() -> None:
    """Rounds of one gradient g after another: M = -lr H g + mu M, and so on."""
    mu, h, lr = 0.5, 4, 0.25
    steps = [1.0, 3.0, -2.0, 0.0]
    config = SyncConfig(rule="fedavg", codec="fp32", local_steps=h, local_momentum=mu)

    def fn(group: Group) -> list[float]:
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([p], lr=lr)
        values = []
        with opened(group) as hierarchy:
            rule = sync.make(config, [("p", p)], hierarchy)
            for gradient in steps:
                for _ in range(h):
                    p.grad = torch.full((1,), gradient)
                    rule.after_backward(1)
                    optimizer.step()
                    rule.after_step(1)
                values.append(float(p.detach()))
        return values

    expected, at, movement = [], 0.0, 0.0
    for gradient in steps:
        movement = -lr * h * gradient + mu * movement
        at += movement
        expected.append(at)
    assert run_ranks(1, fn)[0] == expected


@pytest.mark.parametrize("rule", REPEATING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_inside_a_round_as_if_never_interrupted(rule: str, dtype: torch.dtype) -> None:
    config = config_for(
        rule, EXACT, local_steps=3, local_momentum=0.7, codec="int8", error_feedback=True
    )

    def fn(group: Group) -> tuple[Any, Any, str]:
        finals = []
        for interrupted in (False, True):
            named = make_parameters(dtype)
            with opened(group) as hierarchy:
                made = sync.make(config, named, hierarchy)
                train(made, named, group.rank, range(7), lambda *_: 5)
                if interrupted:
                    state = made.state_dict()
                    assert state["fragment.0.movement"].any()
                    made = sync.make(config, named, hierarchy)
                    made.load_state_dict(state)
                train(made, named, group.rank, range(7, 11), lambda *_: 5)
                state = made.state_dict()
                made.finish()
            finals.append({**bits(named), **bits(state)})
        return finals[0], finals[1], fingerprint(named)

    results = run_ranks(2, fn)
    for straight, resumed, _ in results:
        assert straight == resumed
    assert results[0][2] == results[1][2]


def test_a_failed_round_leaves_the_last_movement() -> None:
    config = config_for("fedavg", EXACT, **HALF)

    def fn(group: Group) -> tuple[Any, Any]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(7), lambda *_: 5)
            set_gradients(named, crafted(group.rank))
            rule.after_backward(5)
            if group.rank == 1:
                with torch.no_grad():
                    named[3][1][2, 3] = float("nan")
            before = {**bits(named), **bits(rule.state_dict())}
            with pytest.raises(NonFinite):
                rule.after_step(5)
            return before, {**bits(named), **bits(rule.state_dict())}

    for before, after in run_ranks(2, fn):
        assert "fragment.0.movement" in before
        assert before == after


def test_a_cloud_that_is_set_back_goes_on_with_the_others() -> None:
    config = config_for("fedavg", EXACT, nonfinite="exclude", **HALF)

    def fn(group: Group) -> tuple[str, int]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            train(rule, named, group.rank, range(7), lambda *_: 5)
            if group.rank == 1:
                with torch.no_grad():
                    named[3][1][2, 3] = float("nan")
            train(rule, named, group.rank, range(7, 8), lambda *_: 5)
            assert bool(torch.isfinite(rule.state_dict()["fragment.0.movement"]).all())
            train(rule, named, group.rank, range(8, 12), lambda *_: 5)
            return fingerprint(named), rule.restarts

    (first, _), (second, restarts) = run_ranks(2, fn)
    assert first == second
    assert restarts == 1


@pytest.mark.parametrize("rule", ["fedavg", "streaming"])
def test_clouds_of_unequal_pace_repeat_the_same_in_a_round(rule: str) -> None:
    """With gradients of zero, a round of any number of steps moves by mu times the one before."""
    config = config_for(
        rule, EXACT, outer_lr=1.0, outer_momentum=0.0, adaptive=True, mixing=0.0, **HALF
    )
    seconds = (1.0, 3.0)

    def fn(group: Group) -> tuple[list[int], list[float], str]:
        named, now, taken = make_parameters(), [0.0], list[int]()
        start = torch.from_numpy(flat_of(named))
        optimizer = torch.optim.SGD([p for _, p in named], lr=INNER_LR)
        moved = []
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            assert isinstance(made, LocalRule)
            made.pace.clock = lambda: now[0]
            for round_ in range(5):
                at, n_steps = 0.0, 0
                while n_steps == 0 or made.common_step(at) is None:
                    set_gradients(named, np.full(len(start), float(round_ == 0), np.float32))
                    now[0] += seconds[group.rank]
                    made.after_backward(1)
                    optimizer.step()
                    made.after_step(1)
                    n_steps += 1
                    at = made.advance(at)
                taken.append(n_steps)
                end = torch.from_numpy(flat_of(named))
                moved.append(float((end - start).mean()))
                start = end
            made.finish()
        return taken, moved, fingerprint(named)

    results = run_ranks(2, fn)
    assert results[0][0][-1] > results[1][0][-1], "the fast cloud takes more steps"
    assert results[0][2] == results[1][2]
    if rule == "fedavg":  # of streaming's fragments some are under way when a round ends
        for _, moved, _ in results:
            np.testing.assert_allclose(moved[1:], [moved[0] / 2**k for k in range(1, 5)], rtol=1e-4)


@pytest.mark.parametrize("rule", ["gradient", "isolated", "async"])
def test_rules_without_rounds_of_their_own_refuse_it(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"local_momentum is 0\.5, but sync\.rule = .* no rounds"):
        sync.check(SyncConfig(rule=rule, local_momentum=0.5))
