"""The smallest runs that train: two clouds, a model of some thousand parameters, text of words.

For the tests of `train`. Dropout is off where ranks are threads, because torch's generator is one
per process.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from ranks import errors_of, run_ranks

from pyfedcomm.group import Group
from pyfedcomm.topology import Topology, from_labels
from pyfedcomm.train import config as config_module
from pyfedcomm.train import model
from pyfedcomm.train.config import TrainConfig
from pyfedcomm.train.loop import train
from pyfedcomm.train.result import TrainResult

WORDS = ("the", "cat", "a", "dog", "sat", "on", "under", "mat", "log", "moon")


def write_text(path: Path, seed: int, n_words: int = 2000) -> None:
    generator = random.Random(seed)
    path.write_text(" ".join(generator.choice(WORDS) for _ in range(n_words)), encoding="utf-8")


def table(folder: Path, **tables: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as nested dicts, its text written; ``tables`` overrides keys."""
    for i in range(4):
        text = folder / f"cloud{i}.txt"
        if not text.exists():
            write_text(text, seed=i)
    result: dict[str, dict[str, Any]] = {
        "run": {"out": str(folder / "out"), "threads": 1, "device": "cpu", "timeout_s": 20.0},
        "model": {
            "type": "gpt2",
            "n_layer": 1,
            "n_embd": 16,
            "n_head": 2,
            "n_positions": 16,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        "data": {"path": str(folder / "{cloud}.txt"), "seq_len": 16},
        "train": {"steps": 6, "micro_batch": 2, "warmup_steps": 2, "lr": 1e-2, "min_lr": 1e-3},
        "sync": {"rule": "diloco", "local_steps": 2, "codec": "int8"},
        "eval": {"sequences": 4},
        "log": {"every": 1, "tensorboard": False, "progress": False},
    }
    for name, keys in tables.items():
        result.setdefault(name, {}).update(keys)
    return result


def config(folder: Path, **tables: dict[str, Any]) -> TrainConfig:
    return config_module.from_table(table(folder, **tables))


def one_rank_per_cloud(group: Group) -> Topology:
    labels = [f"cloud{i}" for i in range(group.size)]
    return from_labels(labels, ["host"] * group.size, group.rank)


def toml(tables: dict[str, Any]) -> str:
    """Only what `table` needs: tables of strings, numbers and booleans."""
    lines = []
    for name, keys in tables.items():
        lines.append(f"[{name}]")
        for key, value in keys.items():
            shown = (
                {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
            )
            lines.append(f"{key} = {shown}")
    return "\n".join(lines) + "\n"


def run(*configs: TrainConfig) -> list[TrainResult]:
    """Trains with one rank per cloud; one configuration for both, or one for each."""
    each = configs * 2 if len(configs) == 1 else configs
    return run_ranks(len(each), lambda g: train(each[g.rank], g, one_rank_per_cloud(g)))


def failures(*configs: TrainConfig) -> list[BaseException]:
    each = configs * 2 if len(configs) == 1 else configs
    raised = errors_of(len(each), lambda g: train(each[g.rank], g, one_rank_per_cloud(g)))
    assert all(error is not None for error in raised), "every rank must have the error"
    return [error for error in raised if error is not None]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in records(out) if "event" not in r}


def weights(out: Path, step: int, cloud: int = 0) -> dict[str, torch.Tensor]:
    directory = out / "checkpoints" / f"cloud{cloud}" / f"step-{step:08d}" / "model"
    return dict(model.open_directory(directory).state_dict())


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
