"""An outer step size that falls towards the end of the run. One rank per cloud, in threads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
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
    train,
)

from pyfedcomm import sync
from pyfedcomm.group import Group

DECAYING = [rule for rule in REPEATING if rule != "fedavg"]


@pytest.mark.parametrize("tokens", [(4,), (2, 2), (1, 5, 2)])
@pytest.mark.parametrize("rule", DECAYING)
@pytest.mark.parametrize(
    ("decay", "horizon", "ends"),
    [(1.0, 12, (10,)), (0.5, 12, (10,)), (0.5, 6, (10,)), (1.0, 12, (4, 10))],
)
def test_the_outer_step_falls_towards_the_end(
    rule: str, tokens: tuple[int, ...], decay: float, horizon: int, ends: tuple[int, ...]
) -> None:
    """ends: steps after which all finish; 4 is in the middle of a round."""
    parts = [range(*part) for part in itertools.pairwise((0, *ends))]
    n = len(tokens)
    config = config_for(rule, EXACT, outer_decay=decay, outer_end=0.5, horizon=horizon)
    truth, constant = (
        Run(
            crafted(0),
            [[c] for c in range(n)],
            INNER_LR,
            rule,
            3,
            0.5,
            0.5,
            fragments=FRAGMENTS,
            overlap=1,
            mixing=0.5,
            horizon=length,
            decay=decay,
            end=0.5,
        )
        for length in (horizon, 0)
    )
    for each in (truth, constant):
        for part in parts:
            for step in part:
                each.step([crafted(1000 * step + rank) for rank in range(n)], tokens)
            each.finish()
    assert (truth.anchor != constant.anchor).any()

    def fn(group: Group) -> Any:
        named = make_parameters()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            for part in parts:
                train(made, named, group.rank, part, lambda _, r: tokens[r])
                made.finish()
        return flat_of(named)

    for rank, final in enumerate(run_ranks(n, fn)):
        np.testing.assert_array_equal(final, truth.params[rank])


@pytest.mark.parametrize("rule", DECAYING)
def test_resumed_while_it_falls_as_if_never_interrupted(rule: str) -> None:
    config = config_for(rule, EXACT, outer_decay=1.0, horizon=11, codec="int8", error_feedback=True)

    def fn(group: Group) -> tuple[Any, Any]:
        finals = []
        for interrupted in (False, True):
            named = make_parameters()
            with opened(group) as hierarchy:
                made = sync.make(config, named, hierarchy)
                train(made, named, group.rank, range(7), lambda *_: 5)
                if interrupted:
                    state = made.state_dict()
                    made = sync.make(config, named, hierarchy)
                    made.load_state_dict(state)
                train(made, named, group.rank, range(7, 11), lambda *_: 5)
                made.finish()
            finals.append(bits(named))
        return finals[0], finals[1]

    for uninterrupted, resumed in run_ranks(2, fn):
        assert uninterrupted == resumed


def test_without_a_horizon_it_does_not_fall() -> None:
    def fn(group: Group) -> tuple[Any, Any]:
        finals = []
        for decay in (0.0, 1.0):
            named = make_parameters()
            with opened(group) as hierarchy:
                made = sync.make(config_for("diloco", EXACT, outer_decay=decay), named, hierarchy)
                train(made, named, group.rank, range(7), lambda *_: 5)
                made.finish()
            finals.append(bits(named))
        return finals[0], finals[1]

    for constant, decaying in run_ranks(2, fn):
        assert constant == decaying
