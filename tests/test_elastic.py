"""A run goes on with other clouds, or with other ranks in them; ranks as threads, and mpirun."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from ranks import errors_of, run_ranks
from small_model import CARRYING
from test_train_mpi import DROPOUT, mpirun
from tiny_checkpoint import flip, truncate
from tiny_run import assert_equal_weights, losses, one_rank_per_cloud, records, run, weights

from pyfedcomm.errors import ConfigError, CorruptFrame
from pyfedcomm.group import Group
from pyfedcomm.hierarchy import Hierarchy
from pyfedcomm.train import state
from pyfedcomm.train.checkpoint import read_manifest
from pyfedcomm.train.loop import Trainer
from pyfedcomm.train.setup import prepare

# What is so small is gathered, if nobody says otherwise, and then nobody owns parts of the sum.
EF: dict[str, Any] = {"codec": "int4", "error_feedback": True, "algorithm": "direct"}
RULES = [
    {"rule": "diloco", "local_steps": 2, **EF},  # step 3 is inside a round
    {"rule": "gradient", **EF},
    {"rule": "gradient", "codec": "int8"},
    {"rule": "fedopt", "local_steps": 2, **EF},
    {"rule": "fedavg", "local_steps": 2, "local_momentum": 0.7, **EF},
    {"rule": "sparse", "local_steps": 2, "codec": "chunk_topk(256, 32, int2, beta=0.95)"},
    {"rule": "onebit", "local_steps": 2},
    # Two of three fragments are under way after step 3.
    {"rule": "streaming", "local_steps": 3, "fragments": 3, "overlap_steps": 2, **EF},
    {"rule": "streaming", "local_steps": 40, "codec": "e3m0"},  # longer than what was run
]


def name_of(rule: dict[str, Any]) -> str:
    return "-".join(map(str, rule.values()))


def tables(rule: dict[str, Any], **checkpoint: Any) -> dict[str, Any]:
    return {"sync": rule, "checkpoint": {"every": 3, "keep": 9, **checkpoint}}


def resumed(tmp_path: Path, rule: dict[str, Any], **more: Any) -> Any:
    """A configuration that goes on from step 3 of ``out``, in ``second``."""
    path = str(tmp_path / "out" / "checkpoints" / "{cloud}" / "step-00000003")
    return tiny_run.config(
        tmp_path,
        run={"out": str(tmp_path / "second")},
        **{**tables(rule, resume=path, elastic=True), **more},
    )


def change(out: Path) -> dict[str, Any]:
    (row,) = [r for r in records(out) if r.get("event") == "clouds"]
    return row


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_a_cloud_joins(tmp_path: Path, rule: dict[str, Any]) -> None:
    straight, _ = run(tiny_run.config(tmp_path, **tables(rule)))
    config = resumed(tmp_path, rule, train={"steps": 18})
    result, *others = run(config, config, config)
    assert others == [result, result]
    assert result.bit_identical
    assert result.steps == 18
    assert result.eval_loss < result.eval_loss_start == straight.eval_loss_start
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "second").values())
    assert list(losses(tmp_path / "second" / "cloud2")) == list(range(4, 19))
    assert result.tokens == (3 * 2 + 15 * 3) * 2 * 16, "what two took before, and three since"
    assert change(tmp_path / "second") == {
        "event": "clouds",
        "step": 3,
        "before": [["cloud0", 1], ["cloud1", 1]],
        "joined": ["cloud2"],
        "lost": {},
        "data": "continued",
    }
    assert change(tmp_path / "second" / "cloud2")["data"] == "from its beginning"
    manifest = read_manifest(tmp_path / "second" / "checkpoints" / "cloud2" / "step-00000018")
    assert manifest["clouds"] == [["cloud0", 1], ["cloud1", 1], ["cloud2", 1]]


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_a_cloud_is_gone(tmp_path: Path, rule: dict[str, Any]) -> None:
    config = tiny_run.config(tmp_path, **tables(rule))
    run(config, config, config)
    manifest = read_manifest(tmp_path / "out" / "checkpoints" / "cloud0" / "step-00000003")
    norms = manifest["residuals"]["cloud1"]
    owes = rule["rule"] in CARRYING or rule.get("error_feedback", False)
    assert (norms["sender"] > 0) == owes
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "cloud1")
    # The two that are left keep their names: what was the third is now the second.
    with pytest.warns(UserWarning, match="without the residuals of cloud cloud1: of norm") as told:
        result = run_named(resumed(tmp_path, rule, train={"steps": 18}), "cloud0", "cloud2")
    assert len([w for w in told if "without the residuals" in str(w.message)]) == 2
    assert f"of norm {norms['sender']:.4g} what it had not sent yet" in str(told[0].message)
    assert result.bit_identical
    assert result.eval_loss < result.eval_loss_start
    assert change(tmp_path / "second")["lost"] == {"cloud1": norms}
    assert change(tmp_path / "second" / "cloud2")["before"] == [[f"cloud{i}", 1] for i in range(3)]


def run_named(config: Any, *names: str) -> Any:
    from pyfedcomm.topology import from_labels
    from pyfedcomm.train.loop import train

    def rank(group: Group) -> Any:
        return train(config, group, from_labels(names, ["host"] * group.size, group.rank))

    return run_ranks(len(names), rank)[0]


@pytest.mark.filterwarnings("ignore:the run goes on without")
def test_down_to_one_cloud_and_up_again(tmp_path: Path) -> None:
    rule = RULES[0]
    run(tiny_run.config(tmp_path, **tables(rule)))
    alone = run_named(resumed(tmp_path, rule), "cloud1")
    assert alone.steps == 6
    # Its own residuals have no use either while nothing is coded, and are told as well.
    assert set(change(tmp_path / "second")["lost"]) == {"cloud0", "cloud1"}
    again = tiny_run.config(
        tmp_path,
        run={"out": str(tmp_path / "third")},
        train={"steps": 12},
        **tables(rule, resume=str(tmp_path / "second"), elastic=True),
    )
    both = run_named(again, "cloud0", "cloud1")
    assert (both.steps, both.bit_identical) == (12, True)


@pytest.mark.filterwarnings("ignore:the run goes on without")
def test_a_cloud_that_comes_back_joins_those_that_went_on(tmp_path: Path) -> None:
    """It has older checkpoints, and so have the others: they do not go back to these."""
    config = tiny_run.config(tmp_path, **tables(RULES[0]))
    run(config, config, config)
    auto = tables(RULES[0], resume="auto", elastic=True)
    run(tiny_run.config(tmp_path, train={"steps": 9}, **auto))
    config = tiny_run.config(tmp_path, train={"steps": 12}, **auto)
    result, _, _ = run(config, config, config)
    assert result.bit_identical
    gone, back = (r for r in records(tmp_path / "out") if r.get("event") == "clouds")
    assert (gone["step"], gone["joined"], list(gone["lost"])) == (6, [], ["cloud2"])
    assert (back["step"], back["joined"], list(back["lost"])) == (9, ["cloud2"], [])


def test_a_step_that_a_cloud_did_not_finish_is_not_gone_on_from(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path, **tables(RULES[0]))
    run(config, config)
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "cloud1" / "step-00000006")
    config = tiny_run.config(tmp_path, **tables(RULES[0], resume="auto", elastic=True))
    run(config, config, config)
    assert change(tmp_path / "out")["step"] == 3
    # A cloud that has lost its disk holds nobody up.
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "cloud1")
    with pytest.warns(UserWarning, match="without the residuals of cloud cloud1"):
        run(config, config, config)
    row = [r for r in records(tmp_path / "out") if r.get("event") == "clouds"][-1]
    assert (row["step"], row["joined"]) == (6, ["cloud1"])


def test_nothing_is_different_where_nothing_changed(tmp_path: Path) -> None:
    straight, _ = run(tiny_run.config(tmp_path, **tables(RULES[0])))
    again, _ = run(resumed(tmp_path, RULES[0]))
    assert again.eval_loss == straight.eval_loss
    for i in range(2):
        assert_equal_weights(weights(tmp_path / "out", 6, i), weights(tmp_path / "second", 6, i))
    assert not [r for r in records(tmp_path / "second") if r.get("event") == "clouds"]


# --- what each rank starts with -------------------------------------------------------------------


def test_what_was_a_clouds_own_stays_and_what_joins_starts_from_the_anchor(tmp_path: Path) -> None:
    rule = RULES[0]
    run(tiny_run.config(tmp_path, **tables(rule)))
    config = resumed(tmp_path, rule)

    def rank(group: Group) -> dict[str, Any]:
        topology = one_rank_per_cloud(group)
        ready = prepare(config, group, topology)
        with Hierarchy(group, topology, timeout=20.0) as hierarchy:
            trainer = Trainer(config, ready, hierarchy)
            parameters = [p.detach().clone().reshape(-1) for p in trainer.trainable]
            return {
                "sync": trainer.rule.state_dict(),
                "parameters": torch.cat(parameters),
                "optimizer": trainer.optimizer.state_dict(),
                "data": trainer.feed.state_dict()["taken"],
                "random": torch.rand(3),
            }

    started = run_ranks(3, rank)
    saved = []
    for i in range(2):
        path = tmp_path / "out" / "checkpoints" / f"cloud{i}" / "step-00000003"
        own, common = state.read(path / "rank-0"), state.read(path / "cloud")
        saved.append(own)
        now = started[i]
        n = now["parameters"].numel()
        assert torch.equal(now["sync"]["feedback.0.sender"], own["sync"]["feedback.0.sender"])
        assert now["sync"]["tokens"] == own["sync"]["tokens"] == [32]
        assert now["data"] == own["data"]["taken"] == 6
        assert_equal_weights(
            dict(state_tensors(now["optimizer"])), dict(state_tensors(common["optimizer"]))
        )
        kept = torch.cat([w.reshape(-1) for w in trained(weights(tmp_path / "out", 3, i))])
        assert torch.equal(now["parameters"], kept)
        assert not torch.equal(kept, now["sync"]["fragment.0.anchor"][:n]), "it had moved"

    new = started[2]
    n = new["parameters"].numel()
    for name in ("anchor", "momentum"):
        for now in started:
            key = f"fragment.0.{name}"
            assert torch.equal(now["sync"][key], saved[0]["sync"][key])
    assert torch.equal(new["parameters"], new["sync"]["fragment.0.anchor"][:n])
    assert not new["sync"]["feedback.0.sender"].any()
    assert (new["sync"]["tokens"], new["sync"]["steps"], new["data"]) == ([0], [1], 0)
    # The residual of the sum is whole again: two parts then, three now.
    before, after = (owned_parts(rows) for rows in (saved, started))
    assert before.any()
    assert torch.equal(before, after)


def trained(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [value for name, value in values.items() if name != "lm_head.weight"]  # it is tied


def state_tensors(optimizer: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return [
        (f"{i}.{name}", value)
        for i, entry in optimizer["state"].items()
        for name, value in entry.items()
    ]


def owned_parts(rows: list[dict[str, Any]]) -> torch.Tensor:
    whole = torch.full_like(rows[0]["sync"]["feedback.0.sender"], math.nan)
    for row in rows:
        begin, end = row["sync"]["feedback.0.owned"]
        whole[begin:end] = row["sync"]["feedback.0.owner"]
    assert not whole.isnan().any(), "each element has an owner"
    return whole


# --- what cannot be -------------------------------------------------------------------------------


@pytest.fixture
def two_clouds(tmp_path: Path) -> Path:
    run(tiny_run.config(tmp_path, **tables(RULES[0])))
    return tmp_path


def failures(config: Any, n: int) -> list[BaseException]:
    from pyfedcomm.train.loop import train

    raised = errors_of(n, lambda g: train(config, g, one_rank_per_cloud(g)))
    assert all(error is not None for error in raised), "every rank must have the error"
    return [error for error in raised if error is not None]


@pytest.mark.parametrize(
    ("n", "more", "said"),
    [
        (3, {"checkpoint": {"resume": "auto"}}, "let clouds that have none join with --elastic"),
        (1, {"checkpoint": {"resume": "auto"}}, "give --elastic"),
        (3, {"model": {"n_layer": 2}}, "the ranks disagree on model.n_layer: 1 on rank 0"),
        (3, {"sync": {**RULES[0], "codec": "fp32"}}, "was written with sync.codec = 'int4'"),
        (
            3,
            {"checkpoint": {"resume": "/nowhere", "elastic": True}},
            "/nowhere holds no checkpoint that all clouds have (cloud cloud0: none;",
        ),
    ],
)
def test_runs_that_do_not_fit(two_clouds: Path, n: int, more: dict[str, Any], said: str) -> None:
    config = resumed(two_clouds, RULES[0], **more)
    if more.get("checkpoint", {}).get("resume") == "auto":
        config = tiny_run.config(two_clouds, sync=RULES[0], checkpoint=more["checkpoint"])
    for error in failures(config, n):
        assert isinstance(error, ConfigError)
        assert said in str(error)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damage_is_found_in_every_clouds_part(
    two_clouds: Path, damage: Callable[[Path], None]
) -> None:
    step = two_clouds / "out" / "checkpoints" / "cloud1" / "step-00000003"
    damage(step / "rank-0.safetensors")
    for error in failures(resumed(two_clouds, RULES[0]), 3):
        assert isinstance(error, CorruptFrame)
        assert "rank 1 (cloud cloud1): " in str(error)
        assert "rank-0.safetensors" in str(error)


# --- under mpirun, with several ranks in a cloud --------------------------------------------------


@pytest.mark.mpi
@pytest.mark.timeout(600)  # three runs, one after the other
def test_clouds_and_ranks_change_under_mpirun(tmp_path: Path) -> None:
    """Two clouds; a third one joins, and clouds shard their models now; then it is gone, and the
    first goes on with one rank."""
    sync_table = {"rule": "streaming", "local_steps": 3, "fragments": 3, "overlap_steps": 2, **EF}
    common: dict[str, Any] = {"model": DROPOUT, "sync": sync_table}
    every: dict[str, Any] = {"every": 4, "keep": 9}
    status, first = mpirun(tmp_path, 3, "--clouds", "2,1", checkpoint=every, **common)
    assert status == 0, first.text
    out, steps = tmp_path / "out", {"steps": 12}
    arguments = ("--resume", "auto", "--elastic")
    status, second = mpirun(
        tmp_path,
        *(4, "--clouds", "2,1,1", *arguments),
        checkpoint=every,
        train=steps,
        run={"parallel": "fsdp"},
        **common,
    )
    assert status == 0, second.text
    assert "ranks are bit-identical" in second.text
    assert change(out)["joined"] == ["cloud2"]
    assert change(out)["step"] == 6
    steps = {"steps": 18}
    status, third = mpirun(
        tmp_path, 2, "--clouds", "1,1", *arguments, checkpoint=every, train=steps, **common
    )
    assert status == 0, third.text
    assert "ranks are bit-identical" in third.text
    rows = [r for r in records(out) if r.get("event") == "clouds"]
    assert [r["before"] for r in rows] == [
        [["cloud0", 2], ["cloud1", 1]],
        [["cloud0", 2], ["cloud1", 1], ["cloud2", 1]],
    ]
    assert rows[1]["lost"]["cloud2"]["sender"] > 0
    curve = losses(out)
    assert list(curve) == list(range(1, 19))
    assert sum(list(curve.values())[-4:]) < sum(list(curve.values())[4:8])
