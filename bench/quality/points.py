"""The points that are compared: names, and what ``[sync]`` is in each. They are in a TOML file."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("points.toml")


@dataclass(frozen=True)
class Point:
    """One way to exchange."""

    name: str
    sync: dict[str, Any]
    """``[sync]`` of its run; what is not in it is the library's default."""
    rate: float = 1.0
    """Times the preset's learning rate, first to last: what rules share of it differs."""
    optimizer: str = "adamw"
    """``train.optimizer``."""
    presets: list[str] = field(default_factory=lambda: ["cpu", "gpu"])
    """Where it is measured."""

    @property
    def slug(self) -> str:
        """The name as a directory."""
        return re.sub(r"[^\w.]+", "-", self.name)

    @property
    def data_parallel(self) -> bool:
        """Gradients at each step, not coded: what others are compared with."""
        return (self.sync.get("rule"), self.sync.get("codec")) == ("gradient", "fp32")


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return tables


def load(path: Path, preset: str) -> list[Point]:
    """The file's points that are for ``preset``, in its order."""
    points = [Point(**entry) for entry in read(path)["point"]]
    return [point for point in points if preset in point.presets]
