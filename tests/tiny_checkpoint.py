"""The smallest checkpoints, of one rank a cloud, and what may happen to their files.

For the tests of `train.checkpoint`, and of what reads checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tiny_run import one_rank_per_cloud

from pyfedcomm.group import Group
from pyfedcomm.train.checkpoint import Checkpoint, Checkpoints, steps_in
from pyfedcomm.train.saving import Saver


def opened(group: Group, out: Path) -> Checkpoints:
    topology = one_rank_per_cloud(group)
    who = f"rank {group.rank} (cloud {topology.cloud_name})"
    return Checkpoints(out, group, topology, who, timeout=20.0)


def write_model(directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    (directory / "weights").write_bytes(bytes(1000))


def freeze_model() -> Callable[[Path], None]:
    return write_model


def begin(saver: Saver, step: int, group: Group) -> None:
    own = {"x": torch.full((3,), float(group.rank)), "step": step}
    saver.begin(step, freeze_model, {"common": step}, own)


def save(group: Group, out: Path, *steps: int, keep: int = 2) -> None:
    """The same with a thread and without; whether it is seen by others is up to tests of runs."""
    with Saver(opened(group, out), keep=keep, background=bool(steps[0] % 2)) as saver:
        for step in steps:
            begin(saver, step, group)
        saver.finish()


def found_by(group: Group, out: Path, resume: str = "auto") -> Checkpoint | None:
    found = opened(group, out).open(resume)
    assert found is None or not found.changed
    return None if found is None else found.own


def open_path(out: Path, resume: str, group: Group) -> Checkpoint | None:
    return found_by(group, out, resume)


def has(out: Path) -> list[list[int]]:
    return [steps_in(out / "checkpoints" / f"cloud{i}") for i in range(2)]


def all_files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
