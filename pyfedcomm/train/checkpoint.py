"""Checkpoints of one cloud: complete, or not there.

    out/checkpoints/CLOUD/step-00000100/
        manifest.json            size and SHA-256 of every other file
        model/                   opens with AutoModelForCausalLM.from_pretrained
        cloud.json, .safetensors     what the ranks of the cloud have in common: optimizer
        rank-0.json, .safetensors    what is each rank's own: sync state, data position, generators

All ranks write into a hidden directory beside it; it gets its name only when all of them have
told that they are done, and older checkpoints go only when every cloud has its new one. So
whatever fails, and wherever, every cloud still has the newest checkpoint that all of them have.

The ranks of a cloud must see one file system. What is stored is decided in ``loop``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pyfedcomm.errors import ConfigError, CorruptFrame
from pyfedcomm.group import Group
from pyfedcomm.topology import Topology
from pyfedcomm.train import state
from pyfedcomm.train.agree import agree, agree_on

FORMAT = 2
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """An opened one: complete, and every file that this rank needs is as it was written."""

    path: Path
    step: int
    cloud_state: dict[str, Any]
    rank_state: dict[str, Any]

    @property
    def model(self) -> Path:
        """The directory that ``from_pretrained`` opens."""
        return self.path / "model"


class Checkpoints:
    """The checkpoints of this rank's cloud. Every method is collective over all clouds."""

    def __init__(
        self,
        out: Path,
        world: Group,
        topology: Topology,
        who: str,
        *,
        keep: int,
        timeout: float,
    ) -> None:
        """Keeps those of a run in ``out``; messages call this rank ``who``.

        keep: how many. timeout: seconds that a rank may take to read or write its part.
        """
        self.directory = out / "checkpoints" / topology.cloud_name
        self._world, self._topology, self._who = world, topology, who
        self._keep, self._timeout = keep, timeout

    # --- writing ---------------------------------------------------------------------------------

    def check_unused(self) -> None:
        """Raises ConfigError on every rank if a fresh run would mix with an older one's."""
        self._agree(self._refuse_used)

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        cloud_state: dict[str, Any],
        rank_state: dict[str, Any],
    ) -> Path:
        """Writes a checkpoint in every cloud; returns this cloud's.

        write_model: called on one rank of the cloud with the directory to write to.
        cloud_state, rank_state: dicts of tensors and plain values; the first is taken from one
            rank of the cloud.
        Raises on every rank if any rank fails; what it wrote is removed and the checkpoints
        before it are as they were.
        """
        final = self.directory / f"step-{step:08d}"
        temporary = self.directory / f".{final.name}.writing"
        leader = self._topology.local_rank == 0

        def begin() -> None:
            if leader:
                shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
                temporary.mkdir(parents=True)

        def write() -> None:
            if not temporary.is_dir():
                raise ConfigError(
                    f"{temporary} was made by another rank of this cloud and is not visible here: "
                    "run.out must be a directory that all ranks of a cloud share"
                )
            written = state.write(rank_state, temporary / f"rank-{self._topology.local_rank}")
            if leader:
                (temporary / "model").mkdir()
                write_model(temporary / "model")
                written += [p for p in (temporary / "model").rglob("*") if p.is_file()]
                written += state.write(cloud_state, temporary / "cloud")
            entries = {str(p.relative_to(temporary)): _fingerprint(p, sync=True) for p in written}
            _write_json(temporary / f".manifest-{self._topology.local_rank}", entries)

        def publish() -> None:
            if leader:
                _write_manifest(temporary, step, self._topology)
                if final.exists():  # written before by a run that was resumed from an older one
                    _discard(final)
                temporary.rename(final)
                _sync_directory(self.directory)

        try:
            for phase in (begin, write, publish):
                self._agree(functools.partial(self._naming_disk_errors, step, phase))
        except BaseException:
            if leader:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if leader:
            self._prune(step)
        return final

    def _refuse_used(self) -> None:
        found = steps_in(self.directory)
        if found:
            raise ConfigError(
                f"{self.directory} already holds checkpoints, the newest of step {found[-1]}: "
                "continue that run with --resume auto, choose another run.out, or delete them"
            )

    def _naming_disk_errors(self, step: int, phase: Callable[[], None]) -> None:
        try:
            phase()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"the checkpoint of step {step} could not be written to {self.directory}: "
                f"{reason}; make room or point run.out elsewhere, then continue with --resume auto "
                "(the checkpoints before it are intact)"
            ) from error

    def _prune(self, step: int) -> None:
        """Removes all but the newest; and later ones, from before a resume at an older step."""
        steps = steps_in(self.directory)
        kept = [s for s in steps if s <= step][-self._keep :]
        for old in sorted(set(steps) - set(kept)):
            # What cannot be deleted costs space, and is no reason to end a run.
            with contextlib.suppress(OSError):
                _discard(self.directory / f"step-{old:08d}")

    # --- reading ---------------------------------------------------------------------------------

    def open(self, resume: str) -> Checkpoint | None:
        """The checkpoint to go on from; None if ``resume`` is ``auto`` and there is none.

        resume: ``"auto"``, the newest one of this run that all clouds have; a run's directory or
            a directory of steps, the newest in there; or one checkpoint. ``{cloud}`` stands for
            the cloud's name.
        Raises on every rank: ConfigError if there is none to go on from or clouds would go on
        from different steps, CorruptFrame if a file is missing, truncated or altered.
        """
        chosen = Path(resume.replace("{cloud}", self._topology.cloud_name))
        single = resume != "auto" and (chosen / MANIFEST).is_file()
        if resume == "auto":
            directory = self.directory
        else:
            nested = chosen / "checkpoints" / self._topology.cloud_name
            directory = nested if nested.is_dir() else chosen
        told = self._world.all_gather_object(
            [self._topology.cloud_name, None if single else steps_in(directory)],
            timeout=self._timeout,
        )
        lists = [steps for _, steps in told if steps is not None]
        common = sorted(set.intersection(*map(set, lists))) if lists else []
        if lists and not common and (resume != "auto" or any(lists)):
            has = {name: steps for name, steps in told if steps is not None}
            listed = "; ".join(
                f"cloud {n}: {', '.join(map(str, s)) or 'none'}" for n, s in has.items()
            )
            where = self.directory if resume == "auto" else resume
            raise ConfigError(
                f"--resume {resume}: {where} holds no checkpoint that all clouds have ({listed}); "
                "give the path of a checkpoint, with {cloud} for the cloud's name, or start "
                "without --resume"
            )
        if lists and not common:
            return None
        path = chosen if single else directory / f"step-{common[-1]:08d}"
        opened = agree(self._world, self._who, lambda: self._read(path), timeout=self._timeout)
        agree_on(
            self._world,
            self._who,
            {"the step to resume from": opened.step},
            remedy="resume all clouds from checkpoints of one step",
        )
        return opened

    def _read(self, path: Path) -> Checkpoint:
        manifest = read_manifest(path)
        topology = self._topology
        expected = {"cloud": topology.cloud_name, "ranks": topology.local_size}
        for key, own in expected.items():
            if manifest[key] != own:
                raise ConfigError(
                    f"{path} was written with {key} {manifest[key]!r}, this rank's cloud has "
                    f"{own!r}; resume with the clouds it was written with ({{cloud}} in a path "
                    "stands for the cloud's name)"
                )
        others = re.compile(rf"rank-(?!{topology.local_rank}\.)\d+\..*")
        for name, (size, digest) in manifest["files"].items():
            if not others.fullmatch(name):
                _verify(path, name, size, digest)
        if path.parent.resolve() != self.directory.resolve():
            self._refuse_used()
        return Checkpoint(
            path,
            manifest["step"],
            state.read(path / "cloud"),
            state.read(path / f"rank-{topology.local_rank}"),
        )

    def _agree(self, fn: Callable[[], None]) -> None:
        agree(self._world, self._who, fn, timeout=self._timeout)


def _discard(checkpoint: Path) -> None:
    """Renamed first: a directory with the name of a checkpoint is always a whole one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.deleting")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


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
        if manifest["sha256"] != _digest(body):
            raise ValueError("its own checksum does not match")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFrame(
            f"{file} is missing, truncated or altered ({error}); {_REMEDY}"
        ) from error
    if manifest["format"] != FORMAT:
        raise ConfigError(
            f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}"
        )
    return dict(manifest)


_REMEDY = "resume from an older checkpoint, or delete this one and use --resume auto"


def _verify(path: Path, name: str, size: int, digest: str) -> None:
    file = path / name
    if not file.is_file():
        raise CorruptFrame(f"{file} is missing; {_REMEDY}")
    actual = file.stat().st_size
    if actual < size:
        raise CorruptFrame(f"{file} is truncated: {actual} bytes of {size}; {_REMEDY}")
    if [actual, _fingerprint(file)[1]] != [size, digest]:
        raise CorruptFrame(f"{file} was altered: its SHA-256 is not the manifest's; {_REMEDY}")


def _fingerprint(file: Path, *, sync: bool = False) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            size += len(block)
        if sync:  # what is renamed into place must be on the disk, not only in its cache
            os.fsync(source.fileno())
    return size, digest.hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_manifest(directory: Path, step: int, topology: Topology) -> None:
    files: dict[str, Any] = {}
    for rank in range(topology.local_size):
        part = directory / f".manifest-{rank}"
        files |= json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
    body = {
        "format": FORMAT,
        "step": step,
        "cloud": topology.cloud_name,
        "ranks": topology.local_size,
        "files": files,
    }
    _write_json(directory / MANIFEST, {**body, "sha256": _digest(body)})
    _sync_directory(directory)


def _write_json(file: Path, value: Any) -> None:
    with file.open("w", encoding="utf-8") as sink:
        json.dump(value, sink, indent=1)
        sink.flush()
        os.fsync(sink.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
