"""From a point to its row: writes the configurations, starts ``pyfedcomm train``, reads the end."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facts

from pyfedcomm import launch
from pyfedcomm.errors import Error
from pyfedcomm.report.data import read_records
from pyfedcomm.train.config import from_table
from quality.points import Point, read

HERE = Path(__file__).parent
N_CLOUDS = 4
FRAME_STEPS = 3
"""Steps of a run that is there to count the frames of a step."""
SYNC_KEYS = (
    "rule",
    "codec",
    "algorithm",
    "local_steps",
    "outer_lr",
    "outer_decay",
    "outer_end",
    "outer_momentum",
    "local_momentum",
)

Tables = dict[str, dict[str, Any]]
"""A configuration: table -> key -> value."""


@dataclass(frozen=True)
class Bench:
    """What all runs of one call have in common."""

    preset: str
    work: Path
    """Where the runs write."""
    corpus: Path | None = None
    """What `corpus` made; None for the preset's own text."""
    overrides: tuple[str, ...] = ()
    """``table.key=value``, for all runs."""

    def made(self, row: dict[str, Any]) -> bool:
        """Whether the row is of a run with this preset and these overrides."""
        return bool(row["preset"] == self.preset and row["overrides"] == list(self.overrides))


@dataclass(frozen=True)
class Ended:
    """The first record of a run, its first evaluation, and its last record."""

    start: dict[str, Any]
    before: dict[str, Any]
    end: dict[str, Any]


def measure(bench: Bench, point: Point, seed: int, timeout_s: float) -> dict[str, Any]:
    """The row of one point. Raises `pyfedcomm.errors.Error` if a run fails or takes too long."""
    directory = bench.work / f"{bench.preset}-{point.slug}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    chosen = tables(bench, point, seed)
    if bench.preset == "gpu" and point.data_parallel:
        counted, trained, loss = _as_one(bench, directory, chosen, timeout_s)
    else:
        counted = trained = _train(bench, directory, chosen, timeout_s)
        loss = {k: trained.end[k] for k in ("eval_loss", "eval_losses_by_cloud")}
    sync = from_table(chosen).sync
    n_steps, n_counted = int(trained.end["steps"]), int(counted.end["steps"])

    def whole(key: str) -> int:
        return int(counted.end[key]) * n_steps // n_counted

    return {
        "preset": bench.preset,
        "overrides": list(bench.overrides),
        "point": point.name,
        "seed": seed,
        "optimizer": point.optimizer,
        "rate": point.rate,
        **{key: getattr(sync, key) for key in SYNC_KEYS},
        "clouds": N_CLOUDS,
        "n_params": trained.end["n_params"],
        "steps": n_steps,
        "tokens": trained.end["tokens"],
        "rounds": whole("rounds"),
        "eval_loss_start": trained.end["eval_loss_start"],
        **loss,
        "wan_bytes": whole("wan_bytes"),
        "frame_steps": n_counted,
        "wan_bytes_data_parallel": whole("wan_bytes_data_parallel"),
        "bit_identical": counted.end["bit_identical"],
        "seconds": round(trained.end["seconds"], 1),
        "device": _device(trained.start["device"]),
        **facts.here(),
    }


def _as_one(
    bench: Bench, directory: Path, chosen: Tables, timeout_s: float
) -> tuple[Ended, Ended, dict[str, Any]]:
    """Data parallelism without its bytes, and a few steps with them, to be counted.

    The mean of the clouds' gradients is the gradient of the mean over their batches. So one process
    that takes those as one batch, from the text of all clouds, trains as they would. To send all
    gradients at all steps through the memory of one host would take most of an hour.
    """
    train = chosen["train"]
    frames = {**chosen, "train": {**train, "steps": FRAME_STEPS}}
    counted = _train(bench, directory / "frames", frames, timeout_s)
    union = {
        **chosen,
        "train": {**train, "micro_batch": train["micro_batch"] * N_CLOUDS},
        "checkpoint": {"enabled": True},
        "sync": {"rule": "isolated"},
    }
    trained = _train(bench, directory / "union", union, timeout_s, n_clouds=1)
    # Its loss on what each cloud holds out: the first evaluation of a run that starts from it.
    found = sorted((directory / "union" / "checkpoints").rglob("model"))
    judge = {
        **chosen,
        "model": {"path": str(found[-1])},
        "train": {**train, "steps": 1},
        "sync": {"rule": "isolated"},
    }
    before = _train(bench, directory / "judged", judge, timeout_s).before
    loss = {"eval_loss": before["eval_loss"], "eval_losses_by_cloud": before["by_cloud"]}
    return counted, trained, loss


def tables(bench: Bench, point: Point, seed: int) -> Tables:
    """The configuration of one run, but for ``run.out`` and a corpus."""
    chosen: Tables = read(HERE / f"{bench.preset}.toml")
    for override in bench.overrides:
        key, _, value = override.partition("=")
        table, _, name = key.partition(".")
        chosen.setdefault(table, {})[name] = json.loads(value)
    for key in ("lr", "min_lr"):
        chosen["train"][key] *= point.rate
    chosen["train"]["optimizer"] = point.optimizer
    chosen["run"]["seed"] = seed
    chosen["sync"] = point.sync
    return chosen


def _train(
    bench: Bench, directory: Path, chosen: Tables, timeout_s: float, *, n_clouds: int = N_CLOUDS
) -> Ended:
    """One ``pyfedcomm train``."""
    directory.mkdir(parents=True)
    written = {**chosen, "run": {**chosen["run"], "out": str(directory)}}
    # Each text is tokenized once for all runs.
    written["data"] = {**chosen["data"], "cache": str(bench.work / "tokens")}
    if bench.corpus is not None:
        files = "cloud*.jsonl" if n_clouds == 1 else "{cloud}.jsonl"
        written["data"]["path"] = str(bench.corpus / files)
        written["data"]["tokenizer"] = str(bench.corpus / "tokenizer")
    config, log = directory / "run.toml", directory / "log.txt"
    config.write_text(_toml(written), encoding="utf-8")
    command = [sys.executable, "-m", "pyfedcomm", "train", str(config), "--clouds", str(n_clouds)]
    status = launch.run(n_clouds, command, timeout_s=timeout_s, log=log)
    records = read_records(directory / "metrics.jsonl")
    if status != 0 or not records or records[-1].get("event") != "end":
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        error = next((line for line in lines if "error:" in line), "it did not finish")
        raise Error(f"exit status {status}, {error}; all that it printed is in {log}")
    before = next(record for record in records if record.get("event") == "eval")
    return Ended(records[0], before, records[-1])


def _toml(tables: Tables) -> str:
    """Strings, numbers, truth values and lists of them are written alike in JSON and TOML."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _device(name: str) -> str | None:
    if not name.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(name)
