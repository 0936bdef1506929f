"""Reads a run's ``metrics.jsonl``. Knows the records of `train.metrics`, draws nothing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfedcomm.errors import ConfigError
from pyfedcomm.train.metrics import METRICS_FILE


@dataclass(frozen=True)
class Step:
    """One logged optimizer step."""

    step: int
    loss: float
    """Training loss, mean over all ranks of all clouds; NaN where it was not finite."""
    wan_bytes: int
    """Bytes between clouds since the start, all ranks together, headers included."""


@dataclass(frozen=True)
class Run:
    """What a run logged."""

    name: str
    """How the report calls it."""
    start: dict[str, Any]
    """The ``start`` event: configuration, model, clouds; empty if the run did not get that far."""
    steps: tuple[Step, ...]
    evals: tuple[tuple[int, float], ...]
    """(step, held-out loss)."""
    end: dict[str, Any]
    """The fields of `train.result.TrainResult`; empty if the run did not finish."""

    @property
    def finished(self) -> bool:
        return bool(self.end)


def read_run(directory: Path, name: str) -> Run:
    """The run whose output is in ``directory``; an empty one if it has not logged anything yet.

    A last line that was cut off (the run is going on, or was killed) is left out; any other line
    that is not a record raises `ConfigError` with its number.
    """
    path = directory / METRICS_FILE
    start: dict[str, Any] = {}
    end: dict[str, Any] = {}
    steps: list[Step] = []
    evals: list[tuple[int, float]] = []
    for number, record in enumerate(read_records(path), start=1):
        event = record.get("event")
        try:
            if event == "start":
                start = record
            elif event == "end":
                losses = {k: _loss(record[k]) for k in ("eval_loss_start", "eval_loss")}
                end = {**record, **losses}
            elif event == "eval":
                evals.append((int(record["step"]), _loss(record["eval_loss"])))
            elif event is None:
                loss = _loss(record["loss"])
                steps.append(Step(int(record["step"]), loss, int(record["wan_bytes"])))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{path}, line {number}: not a record of a training run") from None
    return Run(name, start, tuple(steps), tuple(evals), end)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a ``metrics.jsonl``; none if the file is not there yet."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    records = []
    # What follows the last newline is empty, or a record that is still being written.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{path}, line {number}: not a record of a training run")
        records.append(record)
    return records


def _loss(value: float | None) -> float:
    """JSON has no NaN; metrics have null instead."""
    return math.nan if value is None else float(value)
