"""Adaptive local steps: who takes how many, against a slow truth, with clocks that tests turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from ranks import run_ranks
from reference_sync import Outer, Run, Vector, weighted_mean
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
)

from pyfedcomm import sync
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Group
from pyfedcomm.sync import SyncConfig
from pyfedcomm.sync.local import LocalRule
from pyfedcomm.sync.pace import deal
from pyfedcomm.train import loop


class Clock:
    """Stands still until it is told that time has passed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- dealing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [(1.0, 3.0), (0.5, 0.5), (2.0, 1.0, 7.0), (1.0, 1e9)])
@pytest.mark.parametrize(("local_steps", "least", "most"), [(4, 1, 16), (5, 3, 6), (1, 1, 1)])
def test_no_other_deal_ends_sooner(
    seconds: Sequence[float], local_steps: int, least: int, most: int
) -> None:
    n_steps = local_steps * len(seconds)
    dealt = deal(n_steps, seconds, least, most)
    assert sum(dealt) == n_steps
    assert all(least <= steps <= most for steps in dealt)

    def end(steps: Sequence[int]) -> float:
        return max(n * s for n, s in zip(steps, seconds, strict=True))

    every = itertools.product(range(least, most + 1), repeat=len(seconds))
    assert end(dealt) == min(end(steps) for steps in every if sum(steps) == n_steps)


def test_a_cloud_three_times_slower_takes_a_third_of_the_steps() -> None:
    assert deal(40, [1.0, 3.0], 1, 80) == [30, 10]
    assert deal(40, [3.0, 1.0], 1, 80) == [10, 30]
    assert deal(40, [1.0, 3.0], 1, 25) == [25, 15]
    assert deal(40, [1.0, 1.0], 1, 80) == [20, 20]


# --- rounds --------------------------------------------------------------------------------------


def gradient(cloud: int, step: int) -> Vector:
    return crafted(1000 * step + cloud)


def truth_of(config: SyncConfig, schedule: list[list[int]], tokens: int) -> list[Vector]:
    """All clouds' parameters after rounds in which cloud c takes ``schedule[round][c]`` steps.

    Cloud after cloud from one turn of a fragment to the next; what arrives waits for its step.
    """
    n = len(schedule[0])
    streaming = config.rule == "streaming"
    parts: Sequence[Any] = FRAGMENTS if streaming else (slice(None),)
    overlap = config.overlap_steps if streaming else 0
    mixing = np.float32(config.mixing if streaming else 0)
    run = Run(
        crafted(0),
        [[c] for c in range(n)],
        INNER_LR,
        config.rule,
        outer_lr=config.outer_lr,
        outer_momentum=config.outer_momentum,
        fragments=parts,
        horizon=config.horizon,
        decay=config.outer_decay,
        end=config.outer_end,
    )
    params, anchor, steps = run.params, run.anchor, [0] * n
    outer = [Outer(run, len(anchor[part])) for part in parts]
    since = [[0] * n for _ in parts]
    flying: list[list[tuple[int, int, Vector]]] = [[] for _ in range(n)]

    def arrive(c: int) -> None:
        for due, p, values in [f for f in flying[c] if f[0] <= steps[c]]:
            part = parts[p]
            own = mixing * params[c][part]
            params[c][part] = own + (1 - mixing) * values if mixing else values
            flying[c].remove((due, p, values))

    for i, round_steps in enumerate(schedule):
        begin = list(steps)
        for p, part in enumerate(parts):
            deltas = []
            for c in range(n):
                while steps[c] < begin[c] + (p + 1) * round_steps[c] // len(parts):
                    arrive(c)
                    params[c] = params[c] - np.float32(INNER_LR) * gradient(c, steps[c])
                    steps[c] += 1
                    for counted in since:
                        counted[c] += tokens
                deltas.append(anchor[part] - params[c][part])
            mean = weighted_mean(deltas, [float(t) for t in since[p]])
            since[p] = [0] * n
            done = i * config.local_steps + (p + 1) * config.local_steps // len(parts)
            anchor[part] = anchor[part] - outer[p].step(mean, run.scale(done))
            for c in range(n):
                arrive(c)
                flying[c].append((steps[c] + overlap, p, anchor[part].copy()))
        for c in range(n):
            arrive(c)
    return params


def train_one_step(rule: Any, named: Any, clock: Clock, seconds: float, step: int) -> None:
    clock.now += seconds
    set_gradients(named, gradient(rule.hierarchy.topology.cloud, step))
    rule.after_backward(4)
    torch.optim.SGD([p for _, p in named], lr=INNER_LR).step()
    rule.after_step(4)


def train_one_round(rule: Any, named: Any, clock: Clock, seconds: float, steps: int) -> int:
    """Returns the steps that this cloud took in it; ``steps``: before it."""
    taken, at = 0, 0.0
    while True:
        train_one_step(rule, named, clock, seconds, steps + taken)
        taken += 1
        at = rule.advance(at)
        if rule.common_step(at) is not None:
            assert rule.common_step(at) == rule.config.local_steps
            return taken


@pytest.mark.parametrize("seconds", [(1.0, 3.0), (5.0, 1.0)])
@pytest.mark.parametrize(
    ("rule", "decay"),
    [("fedavg", 0.0), *itertools.product(("diloco", "streaming"), (0.0, 1.0))],
)
def test_rounds_of_unequal_clouds_equal_the_plain_algorithm(
    rule: str, decay: float, seconds: tuple[float, float]
) -> None:
    """decay: over so much of the run, of 16 steps of a cloud on average, the outer step falls."""
    falling = {"outer_decay": decay, "outer_end": 0.5, "horizon": 16}
    config = config_for(rule, EXACT, adaptive=True, local_steps=4, algorithm="direct", **falling)

    def fn(group: Group) -> tuple[list[int], Any]:
        named, clock, taken = make_parameters(), Clock(), list[int]()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            assert isinstance(made, LocalRule)
            made.pace.clock = clock
            for _ in range(4):
                mine = seconds[group.rank]
                taken.append(train_one_round(made, named, clock, mine, sum(taken)))
        return taken, flat_of(named)

    results = run_ranks(2, fn)
    dealt = {(1.0, 3.0): [6, 2], (5.0, 1.0): [2, 6] if rule == "streaming" else [1, 7]}[seconds]
    # What is told at a round's end decides the next one, or, if it arrives later, the one after.
    schedule = [[4, 4]] * (2 if rule == "streaming" else 1)
    schedule += [dealt] * (4 - len(schedule))
    assert [list(taken) for taken in zip(*(r[0] for r in results), strict=True)] == schedule
    expected = truth_of(config, schedule, tokens=4)
    for rank, (_, final) in enumerate(results):
        np.testing.assert_array_equal(final, expected[rank])


@pytest.mark.parametrize("rule", REPEATING)
def test_three_clouds_agree_whatever_their_clocks_say(rule: str) -> None:
    """Speeds change, a cloud measures nothing at first, all finish in the middle of a round of
    unequal steps; they end bit-identical, though the outer step follows from how far they are."""
    falling = {} if rule == "fedavg" else {"outer_decay": 1.0, "horizon": 37}
    config = config_for(rule, EXACT, adaptive=True, local_steps=6, adaptive_max=2.0, **falling)

    def fn(group: Group) -> tuple[list[int], Any]:
        generator = np.random.default_rng(group.rank)
        named, clock, taken = make_parameters(), Clock(), list[int]()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            assert isinstance(made, LocalRule)
            made.pace.clock = clock
            for round_ in range(6):
                mine = float(generator.uniform(0.1, 4)) if round_ or group.rank else 0.0
                taken.append(train_one_round(made, named, clock, mine, sum(taken)))
                if round_ == 3:
                    train_one_step(made, named, clock, mine, sum(taken))
                    made.finish()
            made.finish()
        return taken, flat_of(named)

    results = run_ranks(3, fn)
    for steps in zip(*(taken for taken, _ in results), strict=True):
        assert sum(steps) == 18, "local_steps on average"
        assert all(1 <= n <= 12 for n in steps)
    assert len({n for taken, _ in results for n in taken}) > 1
    for _, final in results:
        np.testing.assert_array_equal(final, results[0][1])


def test_one_pause_is_no_slowness() -> None:
    """An evaluation between two steps does not count, and one slow step in a round hardly."""
    config = config_for("fedavg", EXACT, adaptive=True, local_steps=6)

    def fn(group: Group) -> list[int]:
        named, clock, taken = make_parameters(), Clock(), list[int]()
        with opened(group) as hierarchy:
            made = sync.make(config, named, hierarchy)
            assert isinstance(made, LocalRule)
            made.pace.clock = clock
            for _ in range(3):
                clock.now += 100.0 * group.rank
                taken.append(train_one_round(made, named, clock, 1.0, sum(taken)))
        return taken

    assert run_ranks(2, fn) == [[6, 6, 6]] * 2


@pytest.mark.parametrize("rule", ["diloco", "streaming"])
def test_resumed_between_unequal_rounds(rule: str) -> None:
    config = config_for(rule, EXACT, adaptive=True, local_steps=4, algorithm="direct")
    seconds = (1.0, 3.0)

    def fn(group: Group) -> tuple[Any, Any]:
        finals = []
        for interrupted in (False, True):
            named, clock, steps = make_parameters(), Clock(), 0
            with opened(group) as hierarchy:
                made = sync.make(config, named, hierarchy)
                assert isinstance(made, LocalRule)
                made.pace.clock = clock
                for _ in range(3):
                    steps += train_one_round(made, named, clock, seconds[group.rank], steps)
                if interrupted:
                    state = made.state_dict()
                    made = sync.make(config, named, hierarchy)
                    assert isinstance(made, LocalRule)
                    made.load_state_dict(state)
                    made.pace.clock = clock
                    assert made.pace.steps == (6, 2)[group.rank]
                for _ in range(2):
                    steps += train_one_round(made, named, clock, seconds[group.rank], steps)
                made.finish()
                # The step that a resumed run begins with has no beginning, so it is not measured.
                finals.append({**bits(named), **bits(made.state_dict()), "pace": b""})
        return finals[0], finals[1]

    for straight, resumed in run_ranks(2, fn):
        assert straight == resumed


@pytest.mark.parametrize("rule", ["gradient", "isolated"])
def test_rules_without_rounds_of_many_steps_refuse(rule: str) -> None:
    with pytest.raises(ConfigError, match="has no rounds of many steps"):
        sync.check(SyncConfig(rule=rule, adaptive=True))


@pytest.mark.parametrize(
    ("sync_keys", "said"),
    [
        ({"adaptive": True, "local_steps": 4}, "make it a multiple of sync.local_steps, 4"),
        ({"adaptive": True, "local_steps": 0}, "sync.local_steps is 0"),
        ({"adaptive": True, "adaptive_max": 0.5}, "sync.adaptive_max is 0.5"),
    ],
)
def test_what_a_run_cannot_have(tmp_path: Path, sync_keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny_run.config(tmp_path, sync=sync_keys)


# --- whole runs ----------------------------------------------------------------------------------


def test_a_run_ends_together_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud 1's clock runs three times faster, as if its steps took so much longer."""
    clocks = [Clock(), Clock()]
    taken = [0, 0]
    original = loop.Trainer._train_step

    def train_step(trainer: loop.Trainer, step: float) -> None:
        cloud = trainer.topology.cloud
        assert isinstance(trainer.rule, LocalRule)
        trainer.rule.pace.clock = clocks[cloud]
        clocks[cloud].now += (1.0, 3.0)[cloud]
        taken[cloud] += 1
        original(trainer, step)

    monkeypatch.setattr(loop.Trainer, "_train_step", train_step)
    tables: dict[str, Any] = {
        "sync": {"rule": "diloco", "local_steps": 4, "adaptive": True},
        "train": {"steps": 16},
        "eval": {"every": 3},
        "checkpoint": {"every": 6, "keep": 9},
        "log": {"every": 4},
    }
    result, other = tiny_run.run(tiny_run.config(tmp_path, **tables))
    assert result == other
    assert result.bit_identical
    assert result.steps == 16
    assert taken == [4 + 3 * 6, 4 + 3 * 2]
    assert result.tokens == sum(taken) * 2 * 16
    assert result.rounds == 4
    told = tiny_run.records(tmp_path / "out")
    assert [r["step"] for r in told if "event" not in r] == [4, 8, 12, 16]
    assert [r["step"] for r in told if r.get("event") == "eval"] == [0, 4, 8, 12, 16]
    taken[:] = [0, 0]
    # Steps 6 and 12 are reached where a round ends: after 8 and 12.
    tables["checkpoint"]["resume"] = str(
        tmp_path / "out" / "checkpoints" / "{cloud}" / "step-00000008"
    )
    second = tmp_path / "second"
    resumed, _ = tiny_run.run(tiny_run.config(tmp_path, **tables, run={"out": str(second)}))
    assert taken == [12, 4]
    assert resumed.eval_loss == result.eval_loss
    for cloud in range(2):
        tiny_run.assert_equal_weights(
            tiny_run.weights(tmp_path / "out", 16, cloud), tiny_run.weights(second, 16, cloud)
        )
