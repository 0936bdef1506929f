"""Checkpoints: complete or not there; what is damaged is named; all clouds go on together."""

from __future__ import annotations

import errno
import functools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import errors_of, run_ranks
from tiny_checkpoint import (
    all_files,
    begin,
    flip,
    found_by,
    freeze_model,
    has,
    open_path,
    opened,
    save,
    truncate,
    write_model,
)

from pyfedcomm.errors import ConfigError, CorruptFrame
from pyfedcomm.group import Group
from pyfedcomm.train import checkpoint as checkpoint_module
from pyfedcomm.train import saving, state
from pyfedcomm.train.checkpoint import Checkpoint, read_manifest, steps_in
from pyfedcomm.train.saving import Saved, Saver

# --- saving ---------------------------------------------------------------------------------------


def test_save_and_open(tmp_path: Path) -> None:
    def rank(group: Group) -> Checkpoint | None:
        assert opened(group, tmp_path).open("auto") is None
        save(group, tmp_path, 3, 6, 9)
        return found_by(group, tmp_path)

    for i, found in enumerate(run_ranks(2, rank)):
        assert found is not None
        assert found.path == tmp_path / "checkpoints" / f"cloud{i}" / "step-00000009"
        assert (found.step, found.cloud_state) == (9, {"common": 9})
        assert found.rank_states[0]["x"].tolist() == [float(i)] * 3
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
        "manifest": checkpoint_module.write_manifest,
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
    where = {"rank state": (state, "write"), "manifest": (checkpoint_module, "write_manifest")}
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
    original = checkpoint_module.write_part

    def elsewhere(directory: Path, *args: Any) -> None:
        if "cloud1" not in str(directory):
            original(directory, *args)

    monkeypatch.setattr(checkpoint_module, "write_part", elsewhere)
    raised = errors_of(2, lambda group: save(group, tmp_path, 3))
    assert all("a directory that all ranks of a cloud share" in str(error) for error in raised)


# --- beside training ------------------------------------------------------------------------------


class Disk:
    """One that writes models only when it is told to."""

    def __init__(self) -> None:
        self.may_write = threading.Event()

    def freeze_model(self) -> Callable[[Path], None]:
        return self.write

    def write(self, directory: Path) -> None:
        assert self.may_write.wait(20.0)
        write_model(directory)


def test_training_goes_on_while_the_disk_is_slow(tmp_path: Path) -> None:
    disk = Disk()

    def rank(group: Group) -> tuple[int, Checkpoint | None]:
        told: list[Saved] = []
        home = opened(group, tmp_path)
        with Saver(home, keep=1, every=4 * saving.ASKS, report=told.append) as saver:
            begin(saver, 2, group)
            saver.finish()
            weights = torch.zeros(3)
            saver.begin(3, disk.freeze_model, {}, {"weights": weights})
            for step in range(4, 40):
                weights += 1  # as an optimizer does, in place
                saver.after_step(step)
            assert steps_in(home.directory) == [2]
            group.barrier()
            disk.may_write.set()
            saver._writing.join()  # type: ignore[union-attr]
            step = 40
            while len(told) < 2:
                saver.after_step(step)
                step += 1
            saver.finish()  # nothing is under way; older ones are gone after it
            assert [saved.step for saved in told] == [2, 3]
            assert all(0 < saved.held_s <= saver.held_s for saved in told)
            assert told[1].n_bytes > 1000
        return step, found_by(group, tmp_path)

    for step, found in run_ranks(2, rank):
        # Asked at every fourth step from the third: 43 and 47; read one later; the next is 49.
        assert step == 49
        assert found is not None
        assert found.rank_states[0]["weights"].tolist() == [0.0] * 3, "as it was when it was taken"
    assert has(tmp_path) == [[3], [3]]


def test_a_disk_that_fills_up_meanwhile_is_heard_of_by_all_at_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    monkeypatch.setattr(state, "write", full_disk("cloud1", "rank state"))
    reached = [0, 0]

    def rank(group: Group) -> None:
        with Saver(opened(group, tmp_path), keep=2, every=saving.ASKS) as saver:
            begin(saver, 6, group)
            saver._writing.join()  # type: ignore[union-attr]
            for step in range(7, 20):
                reached[group.rank] = step
                saver.after_step(step)

    for error in errors_of(2, rank):
        assert isinstance(error, ConfigError)
        assert "rank 1 (cloud cloud1): the checkpoint of step 6" in str(error)
    assert reached == [8, 8]
    assert has(tmp_path) == [[3], [3]]
    assert not [name for name in all_files(tmp_path) if ".writing" in name]


def test_what_cannot_be_copied_is_an_error_on_all_ranks(tmp_path: Path) -> None:
    def freeze() -> Callable[[Path], None]:
        raise MemoryError

    def rank(group: Group) -> None:
        with Saver(opened(group, tmp_path), keep=2) as saver:
            saver.begin(3, freeze if group.rank else freeze_model, {}, {})
            saver.finish()

    for error in errors_of(2, rank):
        assert "rank 1 (cloud cloud1): MemoryError" in str(error)


def test_an_error_of_the_run_drops_what_is_under_way(tmp_path: Path) -> None:
    disk = Disk()

    def rank(group: Group) -> None:
        with Saver(opened(group, tmp_path), keep=2) as saver:
            begin(saver, 3, group)
            saver.finish()
            saver.begin(6, disk.freeze_model, {}, {})
            threading.Timer(0.1, disk.may_write.set).start()
            raise KeyError

    assert all(isinstance(error, KeyError) for error in errors_of(2, rank))
    assert has(tmp_path) == [[3], [3]]
    assert not [name for name in all_files(tmp_path) if "/." in name]


def test_what_a_killed_run_left_is_swept_and_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    run_ranks(2, lambda group: save(group, tmp_path, 3))
    home = tmp_path / "checkpoints" / "cloud0"
    shutil.copytree(home / "step-00000003", home / ".step-00000006.writing")
    (home / ".step-00000006.writing" / "model" / "stale").write_bytes(b"...")
    shutil.copytree(home / "step-00000003", home / ".step-00000001.deleting")
    assert has(tmp_path) == [[3], [3]]
    run_ranks(2, lambda group: save(group, tmp_path, 6))
    assert has(tmp_path) == [[3, 6], [3, 6]]
    assert not [name for name in all_files(tmp_path) if "/." in name or "stale" in name]


def test_the_manifest_tells_the_residuals_of_all_clouds(tmp_path: Path) -> None:
    def rank(group: Group) -> None:
        residuals = {
            "feedback.0.sender": torch.full((4,), 1.0 + group.rank),
            "feedback.1.sender": torch.zeros(2),
            "feedback.0.owner": torch.full((9,), float(group.rank)),
            "fragment.0.anchor": torch.ones(3),
        }
        with Saver(opened(group, tmp_path), keep=2) as saver:
            saver.begin(3, freeze_model, {}, {"sync": residuals})
            saver.finish()

    run_ranks(2, rank)
    for i in range(2):
        manifest = read_manifest(tmp_path / "checkpoints" / f"cloud{i}" / "step-00000003")
        assert manifest["residuals"] == {
            "cloud0": {"sender": 2.0, "owner": 0.0},
            "cloud1": {"sender": 4.0, "owner": 3.0},
        }


# --- opening --------------------------------------------------------------------------------------


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
    found = run_ranks(2, functools.partial(open_path, first, str(steps / "step-00000003")))
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
    file.write_text(json.dumps({**body, "sha256": checkpoint_module.digest(body)}))
    for error in errors_of(2, lambda group: opened(group, tmp_path).open("auto")):
        assert isinstance(error, ConfigError)
        reads = f"this version reads {checkpoint_module.FORMAT}; resume with the version"
        assert f"has checkpoint format 99, {reads}" in str(error)
