"""Bad input to a run: one clear error, on every rank; ranks as threads."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
from tiny_run import failures

from pyfedcomm import _core
from pyfedcomm.data import tokenizers
from pyfedcomm.errors import ConfigError, NonFinite
from pyfedcomm.train import evaluation, loop, model, setup
from pyfedcomm.train.config import TrainConfig, from_table


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"sync": {"codec": "int5x"}}, "sync.codec: there is no codec 'int5x'"),
        ({"sync": {"algorithm": "fast"}}, "sync.algorithm: "),
        ({"sync": {"weights": "gold"}}, "gold"),
        ({"sync": {"rule": "magic"}}, "sync.rule is 'magic'; it must be one of gradient"),
        ({"model": {"type": "gpt3"}}, "which transformers does not know; did you mean 'gpt"),
        ({"model": {"n_layers": 2}}, "unknown key 'model.n_layers' for type 'gpt2'; did you mean"),
        ({"model": {"n_head": 3}}, "must be divisible by"),
        ({"model": {"vocab_size": 100}}, "vocab_size is 100, but the tokenizer has 257"),
        ({"data": {"seq_len": 17}}, "data.seq_len is 17, but the model has 16 positions"),
        ({"data": {"tokenizer": "nowhere"}}, "data.tokenizer is 'nowhere': there is no such"),
        ({"data": {"path": "nowhere/*"}}, "data.path 'nowhere/*': there is no such file"),
        ({"data": {"clouds": {"aws": {}}}}, "there is no cloud 'aws'; the clouds of this run are"),
        ({"checkpoint": {"resume": "nowhere"}}, "holds no checkpoint that all clouds have"),
    ],
)
def test_a_mistake_in_the_configuration(
    tmp_path: Path, tables: dict[str, dict[str, Any]], said: str
) -> None:
    for error in failures(tiny_run.config(tmp_path, **tables)):
        assert isinstance(error, ConfigError)
        assert said in str(error)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"sync": {"codec": "bf16"}}, "sync.codec: 'int8' on rank 0 (cloud cloud0), 'bf16' on"),
        (
            {"sync": {"rule": "gradient"}},
            "sync.rule: 'diloco' on rank 0 (cloud cloud0), 'gradient'",
        ),
        ({"train": {"lr": 0.5}}, "train.lr: 0.01 on rank 0 (cloud cloud0), 0.5 on rank 1"),
        ({"model": {"n_layer": 2}}, "model.n_layer: 1 on rank 0 (cloud cloud0), 2 on rank 1"),
        ({"data": {"seq_len": 8}}, "data.seq_len: 16 on rank 0"),
        ({"checkpoint": {"resume": "auto"}}, "whether to resume (checkpoint.resume): False on"),
    ],
)
def test_clouds_that_disagree(tmp_path: Path, tables: dict[str, dict[str, Any]], said: str) -> None:
    for error in failures(tiny_run.config(tmp_path), tiny_run.config(tmp_path, **tables)):
        assert isinstance(error, ConfigError)
        assert said in str(error)


def test_clouds_that_disagree_on_the_vocabulary(tmp_path: Path) -> None:
    from test_data import write_hf_tokenizer

    write_hf_tokenizer(tmp_path / "tok")
    other = tiny_run.config(tmp_path, data={"tokenizer": str(tmp_path / "tok")})
    for error in failures(tiny_run.config(tmp_path), other):
        assert isinstance(error, ConfigError)
        assert "the ranks disagree on the vocabulary: [257, 'bytes-257'] on rank 0" in str(error)


def test_clouds_that_disagree_on_the_weights(tmp_path: Path) -> None:
    configs = []
    for i in range(2):
        built = model.build(tiny_run.config(tmp_path).model, tokenizers.load("bytes"), 16, i)
        model.freeze(built, tokenizers.load("bytes"), built.state_dict())(tmp_path / f"model{i}")
        table = {**tiny_run.table(tmp_path), "model": {"path": str(tmp_path / f"model{i}")}}
        configs.append(from_table(table))
    for error in failures(*configs):
        assert "the ranks disagree on the weights of the model" in str(error)


def test_weights_that_only_one_cloud_has(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path)
    built = model.build(config.model, tokenizers.load("bytes"), 16, 0)
    model.freeze(built, tokenizers.load("bytes"), built.state_dict())(tmp_path / "model")
    table = {**tiny_run.table(tmp_path), "model": {"path": str(tmp_path / "model")}}
    for error in failures(config, from_table(table)):
        assert isinstance(error, ConfigError)
        assert "whether weights are given (model.path): False on rank 0" in str(error)


def test_clouds_that_would_drift_apart_by_muon(tmp_path: Path) -> None:
    """Products of matrices differ with who multiplies them, and gradients alone mend nothing."""
    whole, sharded = {"parallel": "ddp"}, {"parallel": "fsdp"}

    def configs(rule: str, **train: Any) -> list[TrainConfig]:
        tables: dict[str, Any] = {
            "sync": {"rule": rule},
            "train": train,
            "checkpoint": {"enabled": False},
        }
        return [tiny_run.config(tmp_path, run=run, **tables) for run in (whole, sharded)]

    for error in failures(*configs("gradient")):
        assert isinstance(error, ConfigError)
        assert "disagree on what multiplies Muon's matrices: " in str(error)
        assert "fsdp over 1 ranks' on rank 1" in str(error)
        assert "use train.optimizer = 'adamw'" in str(error)
    tiny_run.run(*configs("gradient", optimizer="adamw", steps=1))
    tiny_run.run(*configs("diloco", steps=1))


def test_clouds_that_disagree_on_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_info() -> dict[str, Any]:
        newer = threading.current_thread().name == "rank 1"
        return {**_core.build_info(), "wire_version": 99 if newer else 1}

    monkeypatch.setattr(setup, "_core", SimpleNamespace(build_info=build_info))
    for error in failures(tiny_run.config(tmp_path)):
        assert isinstance(error, ConfigError)
        assert "the version of its frames: 1 on rank 0 (cloud cloud0), 99 on rank 1" in str(error)


def test_what_is_wrong_with_private_data_is_told_at_home_only(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path)
    (tmp_path / "cloud1.txt").write_bytes(b"GIF89a\0\0\0")
    abroad, at_home = failures(config)
    assert isinstance(abroad, ConfigError)
    assert str(abroad).startswith("rank 1 (cloud cloud1): the data of cloud cloud1 cannot be used")
    assert "own ranks say why" in str(abroad)
    assert "cloud1.txt" not in str(abroad)
    assert isinstance(at_home, ConfigError)
    assert str(at_home).startswith("rank 1 (cloud cloud1): ")
    assert "cloud1.txt is not text: NUL byte at offset 6" in str(at_home)


def test_what_is_wrong_with_dealt_data_is_told_to_all(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"GIF89a\0\0\0")
    data = {"path": str(tmp_path / "binary"), "partition": "iid"}
    for error in failures(tiny_run.config(tmp_path, data=data)):
        assert isinstance(error, ConfigError)
        assert "binary is not text: NUL byte at offset 6" in str(error)


def test_a_loss_that_diverges_names_the_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = evaluation.token_losses

    def token_losses(*args: Any, **options: Any) -> torch.Tensor:
        diverged = threading.current_thread().name == "rank 1" and not options
        return original(*args, **options) * (math.inf if diverged else 1.0)

    monkeypatch.setattr(loop, "token_losses", token_losses)
    config = tiny_run.config(tmp_path, sync={"rule": "isolated"})
    for error in failures(config):
        assert isinstance(error, NonFinite)
        assert "the loss of rank 1 is inf at step 1" in str(error)


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").mkdir()
    for error in failures(tiny_run.config(tmp_path)):
        assert isinstance(error, ConfigError)
        assert str(error).startswith("rank 0 (cloud cloud0): Is a directory: ")
