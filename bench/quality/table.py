"""Rows beside each other: each point's mean over seeds, compared with data-parallel in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import read_rows

Row = dict[str, Any]
Base = dict[int, float]
"""Seed -> loss."""


@dataclass(frozen=True)
class Compared:
    """One point over all its seeds."""

    name: str
    local_steps: int | None
    """None where every step is exchanged."""
    seeds: int
    loss: float
    """Held-out, nats a token: mean over seeds."""
    loss_least: float
    loss_most: float
    bytes_per_token: float
    """Between clouds, all frames of all ranks."""
    fewer: float
    """Bytes of data parallelism in fp32 (see `pyfedcomm.train.loop.TrainResult`) over own ones."""
    difference: float
    """Loss over that of data-parallel with the same seed, AdamW and the preset's learning rate,
    minus 1, in percent; mean over the seeds that both have; NaN without one."""
    own_difference: float
    """The same, over the least loss of data-parallel with the point's own optimizer at any rate."""


def read(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    return read_rows(path) if path.exists() else []


def compare(rows: Sequence[Row]) -> list[Compared]:
    """Points in the order in which they come first; all of one preset."""
    names = list(dict.fromkeys(row["point"] for row in rows))
    exact = [row for row in rows if (row["rule"], row["codec"]) == ("gradient", "fp32")]
    baseline = next((row["point"] for row in exact if _kind(row) == ("adamw", 1.0)), None)
    base: Base = {row["seed"]: row["eval_loss"] for row in exact if row["point"] == baseline}
    best: dict[str, Base] = {}
    for row in exact:
        losses = best.setdefault(_kind(row)[0], {})
        losses[row["seed"]] = min(row["eval_loss"], losses.get(row["seed"], math.inf))
    names.sort(key=lambda name: name != baseline)
    return [_compare([row for row in rows if row["point"] == name], base, best) for name in names]


def _kind(row: Row) -> tuple[str, float]:
    """Optimizer, and times of the preset's rate; AdamW and 1 in older rows, which do not say."""
    return row.get("optimizer", "adamw"), row.get("rate", 1.0)


def _compare(rows: Sequence[Row], base: Base, best: dict[str, Base]) -> Compared:
    losses = [row["eval_loss"] for row in rows]
    first = rows[0]
    return Compared(
        name=first["point"],
        local_steps=None if first["rule"] == "gradient" else first["local_steps"],
        seeds=len(rows),
        loss=_mean(losses),
        loss_least=min(losses),
        loss_most=max(losses),
        bytes_per_token=_mean([row["wan_bytes"] / row["tokens"] for row in rows]),
        fewer=_mean([row["wan_bytes_data_parallel"] / row["wan_bytes"] for row in rows]),
        difference=_above(rows, base),
        own_difference=_above(rows, best.get(_kind(first)[0], {})),
    )


def _above(rows: Sequence[Row], base: Base) -> float:
    """Mean percent above the base of the same seed."""
    percents = [
        100 * (row["eval_loss"] / base[row["seed"]] - 1) for row in rows if row["seed"] in base
    ]
    return _mean(percents) if percents else math.nan


def render(rows: Sequence[Row]) -> str:
    """A markdown table."""
    lines = [
        "| point | H | seeds | held-out loss | least to most | bytes between clouds a token "
        "| times fewer | loss above data-parallel | with its own optimizer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in compare(rows):
        differences = (each.difference, each.own_difference)
        cells = [
            each.name,
            "-" if each.local_steps is None else str(each.local_steps),
            str(each.seeds),
            f"{each.loss:.4f}",
            f"{each.loss_least:.4f} to {each.loss_most:.4f}" if each.seeds > 1 else "-",
            f"{each.bytes_per_token:.4g}",
            f"{each.fewer:,.0f}" if each.fewer >= 10 else f"{each.fewer:.2f}",
            *("-" if math.isnan(d) else f"{d:+.2f} %" for d in differences),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
