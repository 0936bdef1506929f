"""Checkpoints: complete or not there; what is damaged is named; all clouds go on together."""

from __future__ import annotations

import errno
import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import errors_of, run_ranks
from tiny_run import one_rank_per_cloud

from pyfedcomm.errors import ConfigError, CorruptFrame, InvalidArgument
from pyfedcomm.group import Group
from pyfedcomm.train import checkpoint as checkpoint_module
from pyfedcomm.train import state
from pyfedcomm.train.checkpoint import Checkpoint, Checkpoints, steps_in


def opened(group: Group, out: Path, keep: int = 2) -> Checkpoints:
    topology = one_rank_per_cloud(group)
    who = f"rank {group.rank} (cloud {topology.cloud_name})"
    return Checkpoints(out, group, topology, who, keep=keep, timeout=20.0)


def write_model(directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    (directory / "weights").write_bytes(bytes(1000))


def save(group: Group, out: Path, *steps: int, keep: int = 2) -> None:
    checkpoints = opened(group, out, keep)
    for step in steps:
        own = {"x": torch.full((3,), float(group.rank)), "step": step}
        checkpoints.save(step, write_model, {"common": step}, own)


def open_path(out: Path, resume: str, group: Group) -> Checkpoint | None:
    return opened(group, out).open(resume)


def has(out: Path) -> list[list[int]]:
    return [steps_in(out / "checkpoints" / f"cloud{i}") for i in range(2)]


def all_files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# --- state ----------------------------------------------------------------------------------------


def test_state_round_trip(tmp_path: Path) -> None:
    big = torch.arange(12.0).view(3, 4)
    tree: dict[Any, Any] = {
        "tensors": [big[:, 1], big.t(), torch.tensor(2**40), torch.zeros(0, dtype=torch.bfloat16)],
        "tied": (big, big),
        "plain": [None, True, 3, 0.1, "ü", float("inf")],
        3: {"int key": {("a", 1): 2}},
        "@tensor": "not a tag",
    }
    written = state.write(tree, tmp_path / "s.tate")
    assert [p.name for p in written] == ["s.tate.json", "s.tate.safetensors"]
    read = state.read(tmp_path / "s.tate")
    for a, b in zip(
        [*tree.pop("tensors"), *tree.pop("tied")],
        [*read.pop("tensors"), *read.pop("tied")],
        strict=True,
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert read == tree
    with pytest.raises(InvalidArgument, match="cannot hold a set"):
        state.write({"x": {1, 2}}, tmp_path / "other")


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()]

    draw()
    state.write(state.random_state(), tmp_path / "random")
    drawn = draw()
    assert draw() != drawn
    state.set_random_state(state.read(tmp_path / "random"))
    assert draw() == drawn


# --- saving ---------------------------------------------------------------------------------------


def test_save_and_open(tmp_path: Path) -> None:
    def rank(group: Group) -> Checkpoint | None:
        assert opened(group, tmp_path).open("auto") is None
        save(group, tmp_path, 3, 6, 9)
        return opened(group, tmp_path).open("auto")

    for i, found in enumerate(run_ranks(2, rank)):
        assert found is not None
        assert found.path == tmp_path / "checkpoints" / f"cloud{i}" / "step-00000009"
        assert (found.step, found.cloud_state) == (9, {"common": 9})
        assert found.rank_state["x"].tolist() == [float(i)] * 3
        assert (found.model / "weights").stat().st_size == 1000
    assert has(tmp_path) == [[6, 9], [6, 9]], "the last two are kept"
    assert not [name for name in all_files(tmp_path) if "/." in name], "nothing temporary is left"


def test_a_run_resumed_at_an_older_step_replaces_what_came_after(tmp_path: Path) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3, 6, 9, keep=9))
    run_ranks(2, lambda group: save(group, tmp_path, 6, keep=9))
    assert has(tmp_path) == [[3, 6], [3, 6]]


def full_disk(cloud: str, phase: str) -> Callable[..., Any]:
    """A write that finds no room, on one cloud only."""
    writers: dict[str, Callable[..., Any]] = {
        "rank state": state.write,
        "manifest": checkpoint_module._write_manifest,
    }
    original = writers[phase]

    def write(*args: Any) -> Any:
        path = next(a for a in args if isinstance(a, Path))
        if cloud in str(path):
            (path.parent / "half-written").write_bytes(b"...")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(*args)

    return write


@pytest.mark.parametrize("phase", ["rank state", "manifest"])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    before = all_files(tmp_path)
    where = {"rank state": (state, "write"), "manifest": (checkpoint_module, "_write_manifest")}
    monkeypatch.setattr(*where[phase], full_disk("cloud1", phase))
    raised = errors_of(2, lambda group: save(group, tmp_path, 6))
    for error in raised:
        assert isinstance(error, ConfigError)
        assert "rank 1 (cloud cloud1): the checkpoint of step 6" in str(error)
        assert "No space left on device; make room" in str(error)
    after = all_files(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert has(tmp_path)[1] == [3]
    assert not [name for name in after if ".writing" in name]
    monkeypatch.undo()
    found = run_ranks(2, lambda group: opened(group, tmp_path).open("auto"))
    assert [c.step for c in found if c is not None] == [3, 3], "the newest that all clouds have"
    run_ranks(2, lambda group: save(group, tmp_path, 6))
    assert has(tmp_path) == [[3, 6], [3, 6]]


def test_ranks_that_do_not_share_the_directory_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda p: "cloud1" not in str(p) and original(p))
    raised = errors_of(2, lambda group: save(group, tmp_path, 3))
    assert all("a directory that all ranks of a cloud share" in str(error) for error in raised)


# --- opening --------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model/weights", truncate, "model/weights is truncated: 999 bytes of 1000"),
        ("model/weights", flip, "model/weights was altered"),
        ("model/weights", Path.unlink, "model/weights is missing"),
        ("rank-0.safetensors", truncate, "rank-0.safetensors is truncated"),
        ("cloud.json", flip, "cloud.json was altered"),
        ("manifest.json", truncate, "manifest.json is missing, truncated or altered"),
        ("manifest.json", flip, "manifest.json is missing, truncated or altered"),
    ],
)
def test_damage_is_found_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    damage(tmp_path / "checkpoints" / "cloud1" / "step-00000003" / name)
    for error in errors_of(2, lambda group: opened(group, tmp_path).open("auto")):
        assert isinstance(error, CorruptFrame)
        assert "rank 1 (cloud cloud1): " in str(error)
        assert said in str(error)
        assert "resume from an older checkpoint, or delete this one" in str(error)


def test_what_a_path_may_be(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_ranks(2, lambda group: save(group, first, 3, 6))
    steps = first / "checkpoints" / "{cloud}"
    for path in (first, steps, steps / "step-00000006"):
        found = run_ranks(2, functools.partial(open_path, second, str(path)))
        assert [c.step for c in found if c is not None] == [6, 6]
    found = run_ranks(2, lambda group: opened(group, first).open(str(steps / "step-00000003")))
    assert [c.step for c in found if c is not None] == [3, 3]


@pytest.mark.parametrize(
    ("resume", "said"),
    [
        ("{out}/checkpoints/cloud0/step-00000003", "was written with cloud 'cloud0', this rank"),
        ("{out}/nowhere", "holds no checkpoint that all clouds have"),
    ],
)
def test_paths_that_cannot_be_resumed_from(tmp_path: Path, resume: str, said: str) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    path = resume.replace("{out}", str(tmp_path))
    for error in errors_of(2, lambda group: opened(group, tmp_path).open(path)):
        assert isinstance(error, ConfigError)
        assert said in str(error)


def test_one_cloud_without_a_checkpoint(tmp_path: Path) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    shutil.rmtree(tmp_path / "checkpoints" / "cloud1")
    for error in errors_of(2, lambda group: opened(group, tmp_path).open("auto")):
        assert isinstance(error, ConfigError)
        assert "(cloud cloud0: 3; cloud cloud1: none)" in str(error)


def test_clouds_that_would_go_on_from_different_steps(tmp_path: Path) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3, 6))

    def open_own(group: Group) -> None:
        step = 3 + 3 * group.rank
        opened(group, tmp_path).open(f"{tmp_path}/checkpoints/{{cloud}}/step-{step:08d}")

    for error in errors_of(2, open_own):
        assert "the step to resume from: 3 on rank 0 (cloud cloud0), 6 on rank 1" in str(error)


def test_other_checkpoints_are_not_mixed_in(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_ranks(2, lambda group: save(group, first, 3))
    run_ranks(2, lambda group: save(group, second, 9))
    for error in errors_of(2, lambda group: opened(group, second).open(str(first))):
        assert isinstance(error, ConfigError)
        assert "already holds checkpoints, the newest of step 9" in str(error)
    for error in errors_of(2, lambda group: opened(group, second).check_unused()):
        assert "already holds checkpoints" in str(error)


def test_a_checkpoint_of_a_later_format(tmp_path: Path) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    file = tmp_path / "checkpoints" / "cloud0" / "step-00000003" / "manifest.json"
    body = {**json.loads(file.read_text()), "format": 99}
    del body["sha256"]
    file.write_text(json.dumps({**body, "sha256": checkpoint_module._digest(body)}))
    for error in errors_of(2, lambda group: opened(group, tmp_path).open("auto")):
        assert isinstance(error, ConfigError)
        assert "has checkpoint format 99, this version reads 2" in str(error)
