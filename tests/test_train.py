"""Training as a whole, and resuming; ranks as threads, one per cloud."""

from __future__ import annotations

import math
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from ranks import run_ranks
from tiny_run import (
    assert_equal_weights,
    failures,
    losses,
    one_rank_per_cloud,
    records,
    run,
    weights,
)

from pyfedcomm import buckets
from pyfedcomm.data import tokenizers
from pyfedcomm.errors import ConfigError, Error
from pyfedcomm.group import Group
from pyfedcomm.train import evaluation, loop, model, optim
from pyfedcomm.train.config import TrainSteps, from_table
from pyfedcomm.train.metrics import format_bytes


def test_two_clouds_learn_together_and_tell_it(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path, train={"steps": 30}, log={"every": 5, "tensorboard": True})
    first, second = run(config)
    assert first == second
    assert first.bit_identical
    assert first.eval_loss < first.eval_loss_start - 0.5
    assert first.eval_loss == pytest.approx(sum(first.eval_losses_by_cloud.values()) / 2)
    assert (first.steps, first.rounds, first.tokens) == (30, 15, 30 * 2 * 2 * 16)
    assert first.wan_bytes_data_parallel == 2 * 4 * first.n_params * 30
    # Each cloud sends its int8 contribution to half of the bucket, and the other half's sum.
    assert first.n_params * 2 * 15 <= first.wan_bytes <= 1.2 * first.n_params * 2 * 15

    out = tmp_path / "out"
    start, *logged, end = records(out)
    assert start["event"] == "start"
    assert start["config"]["sync.codec"] == "int8"
    assert (start["config"]["train.optimizer"], start["optimizer"]) == ("auto", "muon")
    assert end == {"event": "end", **asdict(first)}
    assert [r["step"] for r in logged if "event" not in r] == [5, 10, 15, 20, 25, 30]
    assert [r["eval_loss"] for r in logged if r.get("event") == "eval"] == [
        first.eval_loss_start,
        first.eval_loss,
    ]
    last = [r for r in logged if "event" not in r][-1]
    assert last.keys() == {
        *("step", "round", "loss", "tokens", "tokens_per_s", "lr", "wan_bytes", "time"),
        *("cloud", "rank", "excluded"),
    }
    assert (last["wan_bytes"], last["tokens"]) == (first.wan_bytes, first.tokens)
    assert last["time"].keys() == {"compute", "encode", "wire", "wait"}
    assert losses(out) == losses(out / "cloud1"), "each cloud has the numbers of the whole run"
    assert list(out.glob("tensorboard/events.out.tfevents.*"))
    assert_equal_weights(weights(out, 30, cloud=0), weights(out, 30, cloud=1))


def test_the_outer_step_falls_towards_the_last_step(tmp_path: Path) -> None:
    def loss(name: str, **sync: Any) -> float:
        table = tiny_run.table(tmp_path, train={"steps": 8}, run={"out": str(tmp_path / name)})
        table["sync"] = {"rule": "diloco", "local_steps": 2, "outer_decay": 1.0, **sync}
        return run(from_table(table))[0].eval_loss

    assert loss("known") == loss("told", horizon=8) != loss("later", horizon=800)


def test_the_saved_model_opens_with_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (result, _) = run(tiny_run.config(tmp_path, train={"steps": 2}))
    directory = tmp_path / "out" / "checkpoints" / "cloud0" / "step-00000002" / "model"
    opened = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    assert sum(p.numel() for p in opened.parameters()) == result.n_params
    # And trains on from there, as a model of its own.
    table = tiny_run.table(tmp_path, run={"out": str(tmp_path / "second")})
    table["model"] = {"path": str(directory)}
    (second, _) = run(from_table(table))
    assert second.eval_loss_start == pytest.approx(result.eval_loss, abs=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_weights_follow_from_the_seed(tmp_path: Path, model_type: str) -> None:
    table = tiny_run.table(tmp_path)
    if model_type == "llama":
        table["model"] = {
            "type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 16,
        }
    config = from_table(table)
    tokenizer = tokenizers.load("bytes")
    built = [model.build(config.model, tokenizer, 16, seed) for seed in (1, 1, 2)]
    fingerprints = [buckets.fingerprint(m.named_parameters()) for m in built]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    (result, _) = run(from_table({**table, "train": {**table["train"], "steps": 2}}))
    assert result.bit_identical


def test_weights_that_differ_by_machine_are_made_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.build

    def build(*args: Any) -> torch.nn.Module:
        built = original(*args)
        if threading.current_thread().name == "rank 1":
            with torch.no_grad():
                next(built.parameters()).add_(1e-3)
        return built

    monkeypatch.setattr(model, "build", build)
    (result, _) = run(tiny_run.config(tmp_path, train={"steps": 2}))
    assert result.bit_identical


def test_isolated_clouds_and_evaluation_across(tmp_path: Path) -> None:
    # Cloud 1 reads other words, so a model is better at home than abroad.
    (tmp_path / "cloud1.txt").write_text("zyx wvu 987 " * 700)
    tables: dict[str, Any] = {"sync": {"rule": "isolated"}, "train": {"steps": 20}}
    home, _ = run(tiny_run.config(tmp_path, **tables))
    assert not home.bit_identical
    assert home.wan_bytes < 1000, "the greeting of the group, and nothing since"
    across, _ = run(
        tiny_run.config(
            tmp_path, **tables, eval={"across": True}, run={"out": str(tmp_path / "across")}
        )
    )
    assert across.eval_loss > home.eval_loss + 0.5
    assert across.wan_bytes == home.wan_bytes
    assert across.control_bytes > home.control_bytes + 2 * 4 * across.n_params
    assert_equal_weights(weights(tmp_path / "out", 20, 1), weights(tmp_path / "across", 20, 1))


def test_gradient_rule_exchanges_every_step(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path, sync={"rule": "gradient", "codec": "fp32"})
    (result, _) = run(config)
    assert result.rounds == 6
    assert result.bit_identical
    assert result.wan_bytes == pytest.approx(result.wan_bytes_data_parallel, rel=0.1)


def test_accumulation_is_one_larger_batch(tmp_path: Path) -> None:
    tables = {"sync": {"rule": "gradient", "codec": "fp32"}}
    large = tiny_run.config(tmp_path, **tables, train={"micro_batch": 4})
    small = tiny_run.config(
        tmp_path,
        **tables,
        train={"micro_batch": 2, "accumulation": 2},
        run={"out": str(tmp_path / "small")},
    )
    (a, _), (b, _) = run(large), run(small)
    assert a.tokens == b.tokens
    assert a.eval_loss == pytest.approx(b.eval_loss, abs=1e-4)


def test_clouds_may_differ_in_batch_size_data_and_directory(tmp_path: Path) -> None:
    tiny_run.write_text(tmp_path / "elsewhere.txt", seed=9)
    clouds = {"cloud1": {"path": str(tmp_path / "elsewhere.txt"), "heldout": 0.2}}
    configs = [
        tiny_run.config(
            tmp_path,
            train={"micro_batch": 1 + i},
            data={"clouds": clouds},
            run={"out": str(tmp_path / f"out{i}")},
        )
        for i in range(2)
    ]
    (result, _) = run(*configs)
    assert result.tokens == 6 * (1 + 2) * 16
    assert result.bit_identical


def test_bf16_autocast_keeps_fp32_parameters(tmp_path: Path) -> None:
    (result, _) = run(tiny_run.config(tmp_path, run={"dtype": "bf16"}))
    assert result.bit_identical
    assert math.isfinite(result.eval_loss)
    assert {t.dtype for t in weights(tmp_path / "out", 6).values()} == {torch.float32}


def test_learning_rate() -> None:
    steps = TrainSteps(steps=100, warmup_steps=10, lr=1.0, min_lr=0.1)
    assert [optim.lr_at(i, steps) for i in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert optim.lr_at(55, steps) == pytest.approx(0.55)
    assert optim.lr_at(100, steps) == pytest.approx(0.1)
    assert optim.lr_at(0, TrainSteps(steps=1, warmup_steps=0, lr=1.0)) == 1.0


def test_only_matrices_decay() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.register_parameter("frozen", torch.nn.Parameter(torch.ones(2), requires_grad=False))
    for kind in ("adamw", "muon"):
        groups = optim.make(layer, TrainSteps(weight_decay=0.3), kind).param_groups
        assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 1), (0.0, 1)]
        assert groups[0]["params"][0] is layer.weight


def test_evaluation_counts_tokens_not_batches(tmp_path: Path) -> None:
    built = model.build(tiny_run.config(tmp_path).model, tokenizers.load("bytes"), 16, 0)
    sequences = torch.randint(0, 257, (5, 17), generator=torch.Generator().manual_seed(0))
    whole = evaluation.token_losses(built.eval(), sequences).item()

    def rank(group: Group) -> evaluation.EvalResult:
        return evaluation.evaluate(
            built,
            sequences.numpy(),
            group,
            one_rank_per_cloud(group),
            batch=2,
            autocast=lambda: torch.autocast("cpu", enabled=False),
            across=False,
            timeout=20.0,
        )

    (result,) = run_ranks(1, rank)
    assert result.loss == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (4e12, "4.0 TB")],
)
def test_format_bytes(n: float, text: str) -> None:
    assert format_bytes(n) == text


# --- resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "diloco", "local_steps": 2},  # step 3 is inside a round
        {"rule": "diloco", "local_steps": 3},
        {"rule": "diloco", "local_steps": 2, "error_feedback": True},
        {"rule": "gradient"},
        {"rule": "gradient", "error_feedback": True},
        {"rule": "fedopt", "local_steps": 2, "outer_optimizer": "yogi"},
        {"rule": "sparse", "local_steps": 2, "codec": "chunk_topk(256, 32, int2, beta=0.95)"},
        # Two of three fragments are under way after step 3.
        {"rule": "streaming", "local_steps": 3, "fragments": 3, "overlap_steps": 2},
        {"rule": "streaming", "local_steps": 40, "codec": "e3m0"},  # the run is shorter
    ],
    ids=lambda rule: "-".join(map(str, rule.values())),
)
def test_a_resumed_run_is_bit_identical(tmp_path: Path, rule: dict[str, Any]) -> None:
    tables: dict[str, Any] = {
        "sync": {"codec": "int8", **rule},
        "checkpoint": {"every": 3, "keep": 9},
        "log": {"every": 2},  # a record covers steps before and after the checkpoint
    }
    straight, _ = run(tiny_run.config(tmp_path, **tables))
    at_3 = str(tmp_path / "out" / "checkpoints" / "{cloud}" / "step-00000003")
    second = tmp_path / "second"
    tables["checkpoint"]["resume"] = at_3
    resumed, _ = run(tiny_run.config(tmp_path, **tables, run={"out": str(second)}))
    for i in range(2):
        assert_equal_weights(weights(tmp_path / "out", 6, i), weights(second, 6, i))
    expected = losses(tmp_path / "out")
    assert losses(second) == {step: expected[step] for step in (4, 6)}
    same = ("eval_loss_start", "eval_loss", "tokens", "steps", "rounds")
    assert [getattr(resumed, name) for name in same] == [getattr(straight, name) for name in same]
    saved = [r for r in records(second) if r.get("event") == "checkpoint"]
    assert [r["step"] for r in saved] == [6]
    assert 0 < resumed.checkpoint_s < 60
    # Clouds that meet a second time greet a second time, and send again what was under way.
    again = resumed.wan_bytes - straight.wan_bytes
    assert 0 <= again < (1000 if rule["rule"] != "streaming" else 30_000)


@pytest.mark.parametrize("rule", ["diloco", "streaming"])
def test_a_cloud_that_diverges_is_left_out_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Its loss is NaN at two steps: NaNs in its gradients, its parameters and its optimizer."""
    original = evaluation.token_losses
    calls = 0

    def token_losses(*args: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        training = threading.current_thread().name == "rank 1" and not options
        calls += training
        return original(*args, **options) * (math.nan if training and calls in (5, 6) else 1.0)

    monkeypatch.setattr(loop, "token_losses", token_losses)
    config = tiny_run.config(
        tmp_path,
        sync={"rule": rule, "local_steps": 4, "fragments": 2, "nonfinite": "exclude"},
        train={"steps": 24},
    )
    first, second = run(config)
    assert first == second
    assert first.bit_identical
    assert first.eval_loss < first.eval_loss_start - 0.3
    assert first.excluded == {"cloud1": 1}
    logged = [r for r in records(tmp_path / "out") if "event" not in r]
    assert logged[3]["excluded"] == {}
    assert logged[-1]["excluded"] == {"cloud1": 1}
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "out").values())


class Killed(Exception):
    """What ends the first half of a run."""


@pytest.mark.parametrize(("background", "newest"), [(True, 2), (False, 4)])
def test_an_interrupted_run_goes_on_with_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool, newest: int
) -> None:
    """What is under way when a run dies is lost, and the checkpoint before it is whole."""
    tables: dict[str, Any] = {"checkpoint": {"every": 2, "keep": 1, "background": background}}
    straight, _ = run(tiny_run.config(tmp_path, **tables, run={"out": str(tmp_path / "straight")}))

    def killed(trainer: loop.Trainer, step: int) -> None:
        if step == 5:
            raise Killed
        original(trainer, step)

    original = loop.Trainer._train_step
    monkeypatch.setattr(loop.Trainer, "_train_step", killed)
    for error in failures(tiny_run.config(tmp_path, **tables)):
        assert isinstance(error, (Killed, Error))
    monkeypatch.undo()
    for error in failures(tiny_run.config(tmp_path, **tables)):
        assert f"already holds checkpoints, the newest of step {newest}" in str(error)
    tables["checkpoint"]["resume"] = "auto"
    resumed, _ = run(tiny_run.config(tmp_path, **tables))
    assert resumed.eval_loss == straight.eval_loss
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")
    assert [r["step"] for r in records(tmp_path / "out") if "event" not in r] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"sync": {"codec": "fp32"}}, "was written with sync.codec = 'int8', this run has 'fp32'"),
        ({"model": {"n_layer": 2}}, "was written with the model = "),
        ({"data": {"heldout": 0.5}}, "was written with other data; resume with"),
        (
            {"train": {"optimizer": "adamw"}},
            "was written with train.optimizer = 'muon', this run has 'adamw'",
        ),
    ],
)
def test_a_checkpoint_of_another_run(
    tmp_path: Path, tables: dict[str, dict[str, Any]], said: str
) -> None:
    run(tiny_run.config(tmp_path, train={"steps": 2}))
    for error in failures(tiny_run.config(tmp_path, checkpoint={"resume": "auto"}, **tables)):
        assert isinstance(error, ConfigError)
        assert said in str(error)
