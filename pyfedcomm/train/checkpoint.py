"""Checkpoints of one cloud: complete, or not there. Their format, and how one is found and opened.

    out/checkpoints/CLOUD/step-00000100/
        manifest.json            size and SHA-256 of every other file; residuals of all clouds
        model/                   opens with AutoModelForCausalLM.from_pretrained
        cloud.json, .safetensors     what the ranks of the cloud have in common: optimizer
        rank-0.json, .safetensors    what is each rank's own: sync state, data position, generators

A directory of that name is a whole one: it is written under another, see ``saving``. The ranks of a
cloud must see one file system. What is stored is decided in ``loop``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyfedcomm.errors import ConfigError, CorruptFrame, Error
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology
from pyfedcomm.train import state
from pyfedcomm.train.agree import agree, agree_on

FORMAT = 3
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_BLOCK = 1 << 20

T = TypeVar("T")


Clouds = list[list[Any]]
"""Name and number of ranks of each cloud of a run, in order."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened one: complete, and every file that was read is as it was written."""

    path: Path
    step: int
    cloud_state: dict[str, Any]
    rank_states: dict[int, dict[str, Any]]
    """By local rank: this rank's own; with other clouds or ranks than then, those of all."""

    @property
    def model(self) -> Path:
        """The directory that ``from_pretrained`` opens."""
        return self.path / "model"


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from; equal on all ranks but for ``own``."""

    step: int
    own: Checkpoint | None
    """This cloud's; None if it joins a run of others."""
    changed: bool
    """The clouds, or their ranks, are others than those that wrote it, and may be."""
    saved: Clouds
    """Those."""
    holders: tuple[str, ...]
    """Clouds that have their part of it."""
    joined: tuple[str, ...]
    """Clouds that have none of it."""
    residuals: dict[str, dict[str, float]]
    """By cloud: norms of what it owed then, as ``sender`` and as ``owner`` of sums."""

    @property
    def lost(self) -> tuple[str, ...]:
        """Clouds whose part of it nobody has."""
        return tuple(name for name, _ in self.saved if name not in self.holders)


class Checkpoints:
    """The checkpoints of this rank's cloud. Every method is collective over all clouds."""

    def __init__(
        self, out: Path, world: Group, topology: Topology, who: str, *, timeout: float
    ) -> None:
        """Those of a run in ``out``; messages call this rank ``who``.

        timeout: seconds that a rank may take to read or write its part.
        """
        self.directory = out / "checkpoints" / topology.cloud_name
        self.world, self.topology, self.who, self.timeout = world, topology, who, timeout

    def check_unused(self) -> None:
        """Raises ConfigError on every rank if a fresh run would mix with an older one's."""
        self.agree(self._refuse_used)

    def agree(self, fn: Callable[[], T]) -> T:
        """`agree.agree` among all ranks, with the time that reading and writing may take."""
        return agree(self.world, self.who, fn, timeout=self.timeout)

    def path(self, step: int) -> Path:
        """Where this cloud's checkpoint of a step is, or will be."""
        return path_of(self.directory, step)

    def _refuse_used(self) -> None:
        found = steps_in(self.directory)
        if found:
            raise ConfigError(
                f"{self.directory} already holds checkpoints, the newest of step {found[-1]}: "
                "continue that run with --resume auto, choose another run.out, or delete them"
            )

    def open(self, resume: str, *, elastic: bool = False) -> Resumed | None:
        """What to go on from; None if ``resume`` is ``auto`` and there is nothing.

        resume: ``"auto"``, the newest one of this run that all clouds have; a run's directory or
            a directory of steps, the newest in there; or one checkpoint. ``{cloud}`` stands for
            the cloud's name.
        elastic: other clouds and ranks may go on: from the newest checkpoint that is there for all
            clouds of its time that are here, and have any. Clouds without it join.
        Raises on every rank: ConfigError if there is none to go on from or clouds would go on
        from different steps, CorruptFrame if a file is missing, truncated or altered.
        """
        place = self.agree(lambda: self._look(resume))
        listed = {step: place.clouds_at(step) if elastic else [] for step in place.steps}
        told = self.world.all_gather_object(
            [self.topology.cloud_name, place.single, list(listed.items())], timeout=self.timeout
        )
        lists = {name: dict(steps) for name, single, steps in told if elastic or not single}
        if resume == "auto" and not any(lists.values()):
            return None
        common = _common(lists, elastic)
        if lists and common is None:
            self._raise_none(resume, lists)
        step = place.steps[0] if common is None else common
        path = place.path if place.single else path_of(place.path, step)
        joins = elastic and step not in place.steps
        manifest = self.agree(lambda: None if joins else self._manifest(path, elastic))
        return self._resumed(step, manifest, path, elastic)

    def _look(self, resume: str) -> _Place:
        """What this rank can see."""
        name = self.topology.cloud_name
        if resume == "auto":
            return _Place(self.directory, steps_in(self.directory))
        chosen = Path(resume.replace("{cloud}", name))
        if (chosen / MANIFEST).is_file():
            return _Place(chosen, [read_manifest(chosen)["step"]], single=True)
        nested = chosen / "checkpoints" / name
        directory = nested if nested.is_dir() else chosen
        return _Place(directory, steps_in(directory))

    def _raise_none(self, resume: str, lists: _Lists) -> None:
        listed = "; ".join(
            f"cloud {n}: {', '.join(map(str, s)) or 'none'}" for n, s in lists.items()
        )
        where = self.directory if resume == "auto" else resume
        raise ConfigError(
            f"--resume {resume}: {where} holds no checkpoint that all clouds have ({listed}); give "
            "the path of a checkpoint, with {cloud} for the cloud's name, let clouds that have "
            "none join with --elastic, or start without --resume"
        )

    def _manifest(self, path: Path, elastic: bool) -> dict[str, Any]:
        manifest = read_manifest(path)
        expected = {"cloud": self.topology.cloud_name, "ranks": self.topology.local_size}
        for key, own in expected.items():
            if manifest[key] != own and not (elastic and key == "ranks"):
                raise ConfigError(
                    f"{path} was written with {key} {manifest[key]!r}, this rank's cloud has "
                    f"{own!r}; resume with the clouds it was written with ({{cloud}} in a path "
                    "stands for the cloud's name), or with others: --elastic"
                )
        return manifest

    def _resumed(
        self, step: int, manifest: dict[str, Any] | None, path: Path, elastic: bool
    ) -> Resumed:
        """Compares the clouds with those that wrote the checkpoint, and reads this rank's part."""
        saved = None if manifest is None else manifest["clouds"]
        agree_on(
            self.world,
            self.who,
            {}
            if manifest is None
            else {"the step to resume from": manifest["step"], "the clouds of that run": saved},
            remedy="resume all clouds from checkpoints of one step of one run",
        )
        told = self.world.all_gather_object(
            [self.topology.cloud_name, saved, None if manifest is None else manifest["residuals"]],
            timeout=self.timeout,
        )
        holders = tuple(dict.fromkeys(name for name, clouds, _ in told if clouds is not None))
        joined = tuple(name for name in self.topology.names if name not in holders)
        _, saved, residuals = next(row for row in told if row[1] is not None)
        # Without ``elastic`` other clouds are an error, which ``resuming`` finds.
        changed = elastic and (bool(joined) or saved != clouds_of(self.topology))
        own = self.agree(lambda: None if manifest is None else self._read(path, manifest, changed))
        return Resumed(step, own, changed, saved, holders, joined, residuals)

    def _read(self, path: Path, manifest: dict[str, Any], changed: bool) -> Checkpoint:
        here = self.topology.local_rank
        ranks = range(manifest["ranks"]) if changed else [here]
        verify(path, manifest, only=".*" if changed else rf"(?!rank-).*|rank-{here}\..*")
        if path.parent.resolve() != self.directory.resolve():
            self._refuse_used()
        return Checkpoint(
            path,
            manifest["step"],
            state.read(path / "cloud"),
            {rank: state.read(path / f"rank-{rank}") for rank in ranks},
        )


@dataclass(frozen=True)
class _Place:
    """Where a cloud's checkpoints are, or (``single``) its one."""

    path: Path
    steps: list[int]
    single: bool = False

    def clouds_at(self, step: int) -> list[str]:
        """Clouds of the run when it was written; none if that cannot be read, which `open` tells
        if it is the one that is chosen.
        """
        with contextlib.suppress(Error):
            path = self.path if self.single else path_of(self.path, step)
            return [name for name, _ in read_manifest(path)["clouds"]]
        return []


_Lists = dict[str, dict[int, list[str]]]
"""Cloud -> the steps that it has -> the clouds of that time (only where they are asked for)."""


def _common(lists: _Lists, elastic: bool) -> int | None:
    """The step to go on from, see `Checkpoints.open`."""
    wanted: dict[int, set[str]] = {}
    for steps in lists.values():
        for step, then in steps.items():
            wanted.setdefault(step, set() if elastic else set(lists)).update(then)
    here = {name for name, steps in lists.items() if steps or not elastic}
    whole = [s for s, names in wanted.items() if all(s in lists[n] for n in names & here)]
    return max(whole, default=None)


def clouds_of(topology: Topology) -> Clouds:
    """As a manifest has them."""
    ranks = zip(topology.names, topology.clouds, strict=True)
    return [[name, len(members)] for name, members in ranks]


def path_of(directory: Path, step: int) -> Path:
    """The checkpoint of a step in a cloud's directory of checkpoints."""
    return directory / f"step-{step:08d}"


def steps_in(directory: Path) -> list[int]:
    """The steps of which ``directory`` holds a checkpoint, ascending; empty if it is not there."""
    if not directory.is_dir():
        return []
    names = [_NAME.fullmatch(path.name) for path in directory.iterdir()]
    return sorted(int(name.group(1)) for name in names if name)


def read_manifest(path: Path) -> dict[str, Any]:
    """The checked manifest of a checkpoint. Raises ConfigError or CorruptFrame."""
    file = path / MANIFEST
    if not path.is_dir():
        raise ConfigError(f"there is no checkpoint {path}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        if manifest["sha256"] != digest(body):
            raise ValueError("its own checksum does not match")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFrame(
            f"{file} is missing, truncated or altered ({error}); {_REMEDY}"
        ) from error
    if manifest["format"] != FORMAT:
        raise ConfigError(
            f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}; "
            "resume with the version of pyfedcomm that wrote it"
        )
    return dict(manifest)


_REMEDY = "resume from an older checkpoint, or delete this one and use --resume auto"


def verify(path: Path, manifest: dict[str, Any], *, only: str) -> list[str]:
    """Raises CorruptFrame unless each file whose name matches ``only`` is as it was written.

    Returns their names.
    """
    names = [name for name in manifest["files"] if re.fullmatch(only, name)]
    for name in names:
        _verify(path, name, *manifest["files"][name])
    return names


def _verify(path: Path, name: str, size: int, digest: str) -> None:
    file = path / name
    if not file.is_file():
        raise CorruptFrame(f"{file} is missing; {_REMEDY}")
    actual = file.stat().st_size
    if actual < size:
        raise CorruptFrame(f"{file} is truncated: {actual} bytes of {size}; {_REMEDY}")
    if [actual, fingerprint(file)[1]] != [size, digest]:
        raise CorruptFrame(f"{file} was altered: its SHA-256 is not the manifest's; {_REMEDY}")


def fingerprint(file: Path, *, sync: bool = False) -> tuple[int, str]:
    """(size, SHA-256) of a file; with ``sync`` it is on the disk afterwards."""
    sha256, size = hashlib.sha256(), 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            sha256.update(block)
            size += len(block)
        if sync:  # what is renamed into place must be on the disk, not only in its cache
            os.fsync(source.fileno())
    return size, sha256.hexdigest()


def digest(body: dict[str, Any]) -> str:
    """The checksum that a manifest carries of all else in it."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_part(directory: Path, local_rank: int, entries: dict[str, Any]) -> None:
    """A rank's part of the manifest of what is being written: file -> (size, SHA-256)."""
    _write_json(directory / f".manifest-{local_rank}", entries)


def write_manifest(
    directory: Path, step: int, topology: Topology, residuals: dict[str, Any]
) -> None:
    """Puts the parts of all ranks of the cloud together; then the checkpoint is complete.

    residuals: what ``saving`` tells of those of all clouds.
    Raises OSError; ConfigError where a rank's part cannot be seen.
    """
    files: dict[str, Any] = {}
    for rank in range(topology.local_size):
        part = directory / f".manifest-{rank}"
        if not part.is_file():
            raise ConfigError(
                f"local rank {rank} of cloud {topology.cloud_name} wrote its part of the "
                f"checkpoint of step {step}, but it cannot be seen in {directory}: run.out must be "
                "a directory that all ranks of a cloud share"
            )
        files |= json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
    body = {
        "format": FORMAT,
        "step": step,
        "cloud": topology.cloud_name,
        "ranks": topology.local_size,
        "clouds": clouds_of(topology),
        "residuals": residuals,
        "files": files,
    }
    _write_json(directory / MANIFEST, {**body, "sha256": digest(body)})
    sync_directory(directory)


def _write_json(file: Path, value: Any) -> None:
    with file.open("w", encoding="utf-8") as sink:
        json.dump(value, sink, indent=1)
        sink.flush()
        os.fsync(sink.fileno())


def sync_directory(directory: Path) -> None:
    """What was made, renamed or removed in it is on the disk afterwards."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
