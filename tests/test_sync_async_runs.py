"""The rule without rounds: where its clouds meet, what they save, and how they fail."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from async_stage import Stage, one_step
from ranks import errors_of, run_ranks
from reference_sync import Vector
from small_model import bits, flat_of, make_parameters, one_rank_per_cloud, opened

from pyfedcomm import sync
from pyfedcomm.errors import ConfigError, Error, InvalidArgument, NonFinite
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.sync import SyncConfig
from pyfedcomm.sync.asynchronous import Asynchronous
from pyfedcomm.train import loop

# --- meeting, saving -----------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 1])
def test_clouds_meet_where_they_are_asked_to_and_go_on(overlap: int) -> None:
    """The mean of their steps is what counts: cloud 1 takes far more of them than cloud 0."""
    config = SyncConfig(rule="async", local_steps=2, overlap_steps=overlap, codec="int8")
    together = threading.Barrier(2)

    def fn(group: Group) -> tuple[list[int], Vector]:
        named, taken, step, at = make_parameters(), list[int](), 0, 0.0
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for goal in (8, 16):
                rule.meet(goal)
                while rule.common_step(at) is None:
                    time.sleep(0.02 * (1 - group.rank))
                    one_step(rule, named, group.rank, step)
                    step += 1
                    at = max(at, rule.advance(at))
                assert rule.common_step(at) == goal
                taken.append(step)
                assert at >= goal
                rule.state_dict()
                together.wait(20)
            rule.finish()
        return taken, flat_of(named)

    (slow, a), (fast, b) = run_ranks(2, fn)
    np.testing.assert_array_equal(a, b)
    for i, goal in enumerate((8, 16)):
        # A push of each may be on its way when the goal is reached.
        assert 2 * goal <= slow[i] + fast[i] <= 2 * goal + 4 + 2 * overlap


def test_resumed_from_where_clouds_met() -> None:
    """Cloud 1 hears first that the goal is reached, and waits for cloud 0."""
    config = SyncConfig(
        rule="async", local_steps=2, codec="int8", error_feedback=True, buffer=3, overlap_steps=1
    )
    stages = [Stage([0, 1] * 5 + [0, 0] + [1, 0, 0] * 5 + [0]) for _ in range(2)]
    ready = threading.Barrier(2)

    def begin(rule: sync.SyncRule, stage: Stage) -> None:
        assert isinstance(rule, Asynchronous)
        rule.after_backward(0)
        if rule.host is not None:
            stage.host = rule.host
            rule.host.serve()
        ready.wait(30)

    def fn(group: Group) -> list[Any]:
        finals: list[Any] = []
        for interrupted, stage in zip((False, True), stages, strict=True):
            named, at_meeting = make_parameters(), (7, 5)[group.rank]
            with opened(group) as hierarchy:
                rule = sync.make(config, named, hierarchy)
                rule.meet(4)
                begin(rule, stage)
                for step in range(at_meeting):
                    assert rule.common_step(0) is None
                    stage.step(rule, named, group.rank, step)
                assert rule.common_step(0) == 4
                if interrupted:
                    state = rule.state_dict()
                    rule = sync.make(config, named, hierarchy)
                    rule.load_state_dict(state)
                rule.meet(10**6)
                begin(rule, stage)
                for step in range(at_meeting, stage.order.count(group.rank)):
                    stage.step(rule, named, group.rank, step)
                with pytest.raises(InvalidArgument, match="a push under way"):
                    rule.state_dict()
                rule.finish()
                finals.append({**bits(named), **bits(rule.state_dict())})
        return finals

    for straight, resumed in run_ranks(2, fn):
        assert straight == resumed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("hosted_by", ["cpu", "cuda"])
def test_a_cloud_of_gpus_and_one_of_cpus_end_bit_identical(hosted_by: str) -> None:
    config = SyncConfig(rule="async", local_steps=2, codec="int8", error_feedback=True)

    def fn(group: Group) -> Vector:
        device = "cuda" if (hosted_by == "cuda") == (group.rank == 0) else "cpu"
        named = [(name, torch.nn.Parameter(p.detach().to(device))) for name, p in make_parameters()]
        with Hierarchy(group, one_rank_per_cloud(group), device=device) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(5 + group.rank):
                one_step(rule, named, group.rank, step)
            rule.finish()
        return flat_of([(name, torch.nn.Parameter(p.detach().cpu())) for name, p in named])

    a, b = run_ranks(2, fn)
    np.testing.assert_array_equal(a, b)


# --- failures ------------------------------------------------------------------------------------


def aborting(group: Group) -> Hierarchy:
    """Tells the others what its block raises, which `opened` does not."""
    return Hierarchy(group, one_rank_per_cloud(group), timeout=5.0)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_cloud_that_is_lost_ends_all(lost: int) -> None:
    config = SyncConfig(rule="async", local_steps=2, overlap_steps=1)

    def fn(group: Group) -> None:
        named = make_parameters()
        with aborting(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(200):
                if group.rank == lost and step == 5:
                    raise RuntimeError("its machine is gone")
                one_step(rule, named, group.rank, step)
                time.sleep(0.01)

    for rank, error in enumerate(errors_of(3, fn)):
        assert "its machine is gone" in str(error)
        assert isinstance(error, RuntimeError if rank == lost else Error)


def test_a_cloud_that_diverges_ends_all_with_the_parameters_name() -> None:
    def fn(group: Group) -> None:
        named = make_parameters()
        with aborting(group) as hierarchy:
            rule = sync.make(SyncConfig(rule="async", local_steps=2), named, hierarchy)
            for step in range(200):
                if group.rank == 1 and step == 3:
                    with torch.no_grad():
                        named[3][1][2, 3] = float("nan")
                one_step(rule, named, group.rank, step)
                time.sleep(0.01)

    raised = errors_of(3, fn)
    assert isinstance(raised[1], NonFinite)
    for error in raised:
        assert isinstance(error, Error)
        assert "parameter 'head.weight'" in str(error)
        assert "cloud c1" in str(error)


def test_a_cloud_that_diverges_can_be_left_out() -> None:
    config = SyncConfig(rule="async", local_steps=2, nonfinite="exclude", codec="fp32")

    def fn(group: Group) -> tuple[Vector, Any, int]:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(8):
                if group.rank == 1 and step == 3:
                    with torch.no_grad():
                        named[3][1][2, 3] = float("nan")
                one_step(rule, named, group.rank, step)
            rule.finish()
            return flat_of(named), rule.excluded, rule.restarts

    (a, left, _), (b, also, restarts) = run_ranks(2, fn)
    assert np.isfinite(a).all()
    np.testing.assert_array_equal(a, b)
    assert left == also == {"c1": 1}
    assert restarts == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"overlap_steps": 3, "local_steps": 3}, "sync.overlap_steps is 3"),
        ({"adaptive": True}, "has no rounds of many steps"),
        ({"alpha": 0.0}, "sync.alpha is 0.0"),
        ({"alpha": 1.5}, "sync.alpha is 1.5"),
        ({"staleness": -1.0}, "sync.staleness is -1.0"),
        ({"buffer": -1}, "sync.buffer is -1"),
        ({"aggregation": "sum"}, "it must be one of fedbuff, fedasync"),
        ({"local_steps": 0}, "sync.local_steps is 0"),
    ],
)
def test_bad_keys(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sync.check(SyncConfig(rule="async", **keys))


# --- whole runs ----------------------------------------------------------------------------------


def test_a_run_meets_to_evaluate_and_save_and_goes_on_from_there(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "sync": {"rule": "async", "local_steps": 2, "codec": "int8", "error_feedback": True},
        "train": {"steps": 40},
        "eval": {"every": 15},
        "checkpoint": {"every": 20, "keep": 9},
        "log": {"every": 5},
    }
    result, other = tiny_run.run(tiny_run.config(tmp_path, **tables))
    assert result == other
    assert result.bit_identical
    assert result.steps == 40
    assert result.eval_loss < result.eval_loss_start - 0.3
    assert set(result.utilisation) == {"cloud0", "cloud1"}
    assert all(0 < share <= 1 for share in result.utilisation.values())
    per_step = 2 * 16
    # A cloud learns that the goal is reached with its next reply, a step after its next push.
    assert 80 * per_step <= result.tokens <= (80 + 4 * 2) * per_step
    told = tiny_run.records(tmp_path / "out")
    assert [r["step"] for r in told if r.get("event") == "eval"] == [0, 15, 30, 40]
    assert [r["step"] for r in told if "event" not in r] == [15, 20, 30, 40]
    at_20 = str(tmp_path / "out" / "checkpoints" / "{cloud}" / "step-00000020")
    tables["checkpoint"]["resume"] = at_20
    second = {"out": str(tmp_path / "second")}
    resumed, _ = tiny_run.run(tiny_run.config(tmp_path, **tables, run=second))
    assert resumed.bit_identical
    assert resumed.steps == 40
    assert 80 * per_step <= resumed.tokens <= (80 + 4 * 2) * per_step
    assert resumed.eval_loss < resumed.eval_loss_start - 0.3


def test_a_rank_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.Trainer._train_step
    taken = [0, 0]

    def train_step(trainer: loop.Trainer, step: float) -> None:
        taken[trainer.topology.cloud] += 1
        if taken[1] == 7:
            raise OSError("the disk is full")
        original(trainer, step)

    monkeypatch.setattr(loop.Trainer, "_train_step", train_step)
    keys = {"rule": "async", "local_steps": 2}
    raised = tiny_run.failures(tiny_run.config(tmp_path, sync=keys, train={"steps": 400}))
    for error in raised:
        assert "the disk is full" in str(error)
