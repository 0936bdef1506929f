"""Checkpoints are written beside the training that goes on, and named when all clouds have theirs.

    step S        every rank copies what it stores to host memory; training goes on
    meanwhile     a thread of each rank writes, hashes and syncs its part of a hidden directory
    fixed steps   the ranks tell each other how far they are: once all have written, each cloud
                  names its directory; once all have named theirs, older checkpoints go

So whatever fails, and wherever, every cloud still has the newest checkpoint that all of them have.
The steps at which ranks ask are fixed, and an answer is read one step after it was asked for: no
rank waits for a disk, nor, as long as a step takes longer than a round trip, for another rank.

The thread does not communicate. What a checkpoint looks like is ``checkpoint``'s business.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError

from pyfedcomm import sync
from pyfedcomm.errors import ConfigError
from pyfedcomm.topology import Topology
from pyfedcomm.train import checkpoint, state
from pyfedcomm.train.checkpoint import Checkpoints
from pyfedcomm.work import Work

# What a rank tells of the checkpoint under way.
_FAILED, _WRITING, _WRITTEN, _NAMED = -1.0, 0.0, 1.0, 2.0

ASKS = 16
"""How often, in the steps from one checkpoint to the next, ranks ask how far they are."""

DROP_S = 10.0
"""Seconds that a write may take to notice that it is in vain; then its files are left behind."""

WriteModel = Callable[[Path], None]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that all clouds have; the numbers are this rank's."""

    step: int
    held_s: float
    """Seconds for which it held training: the copy, and the agreement."""
    write_s: float
    """Seconds of writing, hashing and syncing, beside it."""
    n_bytes: int


class Saver:
    """Writes this rank's part of its cloud's checkpoints. Collective, but for `drop`.

    As a context it drops on an error what is under way.
    """

    held_s: float
    """Seconds for which checkpoints have held training so far."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        keep: int,
        background: bool = True,
        every: int = 0,
        report: Callable[[Saved], None] | None = None,
    ) -> None:
        """keep: how many checkpoints stay. background: False writes each at once.

        every: steps from one to the next; 0: there is only one. report: told of each.
        """
        self._home, self._keep, self._background = checkpoints, keep, background
        self._interval = max(1, every // ASKS)
        self._report = report
        self._writing: _Writing | None = None
        self._asked: Work[torch.Tensor] | None = None
        self._next_ask = 0
        self._removing: list[threading.Thread] = []
        self._leader = checkpoints.topology.local_rank == 0
        self.held_s = 0.0
        self._home.agree(self._sweep)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.drop()

    def begin(
        self,
        step: int,
        freeze_model: Callable[[], WriteModel],
        cloud_state: dict[str, Any],
        rank_state: dict[str, Any],
    ) -> None:
        """Takes what this rank stores, and begins to write it.

        freeze_model: called at once, on one rank of the cloud; what it returns is called in the
            background, with the directory to write to.
        cloud_state, rank_state: dicts of tensors and plain values; the first is taken from one
            rank of the cloud. ``rank_state["sync"]`` is the sync rule's.
        Waits for the one before, if that is not done. Errors are raised, on every rank, by whatever
        is called next.
        """
        with self._holding():
            self.finish()
            self._writing = _Writing(self._home, step)
            self._writing.take(freeze_model if self._leader else None, cloud_state, rank_state)
            self._writing.start()
            self._next_ask = step + self._interval
            if not self._background:
                self.finish()

    def after_step(self, step: int) -> None:
        """Goes on with the checkpoint under way, if there is one.

        Call it after every step, or after every one that all ranks have in common.
        Raises on every rank if any rank fails; what it wrote is removed and the checkpoints
        before it are as they were.
        """
        if self._writing is None:
            return
        if self._asked is not None:
            with self._holding():
                self._hear()
        elif step >= self._next_ask:
            self._ask()
            self._next_ask = step + self._interval

    def finish(self) -> None:
        """Waits until every cloud has the checkpoint under way. Raises as `after_step` does."""
        if self._asked is not None:
            self._hear()
        while self._writing is not None:
            self._writing.join()
            self._ask()
            self._hear()
        for thread in self._removing:
            thread.join()
        self._removing.clear()

    def drop(self) -> None:
        """Gives up the checkpoint under way, if any, and removes it. Asks nobody."""
        writing, self._writing, self._asked = self._writing, None, None
        if writing is None:
            return
        writing.cancelled = True
        writing.join(DROP_S)
        if self._leader and not writing.is_alive():
            shutil.rmtree(writing.temporary, ignore_errors=True)

    # --- inside ----------------------------------------------------------------------------------

    def _ask(self) -> None:
        assert self._writing is not None
        mine = torch.tensor([self._writing.progress, *self._writing.squares], dtype=torch.float64)
        self._asked = self._home.world.all_gather(mine, timeout=self._home.timeout, async_op=True)

    def _hear(self) -> None:
        """What follows from the answer, the same on every rank."""
        assert self._asked is not None
        assert self._writing is not None
        rows, self._asked = self._asked.wait().tolist(), None
        slowest = min(row[0] for row in rows)
        try:
            if slowest == _FAILED:
                self._home.agree(self._writing.raise_failure)
        except BaseException:
            self.drop()
            raise
        if slowest == _WRITTEN:
            topology = self._home.topology
            self._writing.publish(_norms(topology, rows) if self._leader else None)
        elif slowest == _NAMED:
            self._done()

    def _done(self) -> None:
        writing, self._writing = self._writing, None
        assert writing is not None
        if self._leader:
            self._prune(writing.step)
        if self._report is not None:
            self._report(Saved(writing.step, writing.held_s, writing.write_s, writing.n_bytes))

    def _prune(self, step: int) -> None:
        """Removes all but the newest; and later ones, from before a resume at an older step."""
        steps = checkpoint.steps_in(self._home.directory)
        kept = [s for s in steps if s <= step][-self._keep :]
        doomed = []
        for old in sorted(set(steps) - set(kept)):
            # What cannot be deleted costs space, and is no reason to end a run.
            with contextlib.suppress(OSError):
                doomed.append(_hide(self._home.path(old)))
        if doomed:
            thread = threading.Thread(target=_remove, args=(doomed,), daemon=True)
            thread.start()
            self._removing.append(thread)

    def _sweep(self) -> None:
        """Removes what a run that was killed had not finished to write, or to delete."""
        if self._leader and self._home.directory.is_dir():
            for kind in ("writing", "deleting"):
                _remove(list(self._home.directory.glob(f".step-*.{kind}")))

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self.held_s += seconds
            if self._writing is not None:
                self._writing.held_s += seconds


class _Writing(threading.Thread):
    """One checkpoint under way, on one rank. A failure is kept until all ranks hear of it."""

    def __init__(self, home: Checkpoints, step: int) -> None:
        super().__init__(name=f"checkpoint of step {step}", daemon=True)
        self.step, self._home = step, home
        self._final = home.path(step)
        self.temporary = self._final.with_name(f".{self._final.name}.writing")
        self.progress = _WRITING
        self.squares = (0.0, 0.0)
        self.cancelled = False
        self.held_s = self.write_s = 0.0
        self.n_bytes = 0
        self._failure: Exception | None = None
        self._write_model: WriteModel | None = None
        self._cloud_state: dict[str, Any] | None = None
        self._rank_state: dict[str, Any] = {}

    def take(
        self,
        freeze_model: Callable[[], WriteModel] | None,
        cloud_state: dict[str, Any],
        rank_state: dict[str, Any],
    ) -> None:
        """Copies what will be written. freeze_model: None on all ranks of a cloud but one."""
        with self._keeping_failure():
            self._rank_state = state.snapshot(rank_state)
            if freeze_model is not None:
                self._cloud_state = state.snapshot(cloud_state)
                self._write_model = freeze_model()

    def run(self) -> None:
        """The thread: this rank's files, on the disk, with their hashes."""
        if self.progress == _FAILED:
            return
        begin = time.perf_counter()
        with self._keeping_failure():
            self.temporary.mkdir(parents=True, exist_ok=True)
            entries = {
                str(path.relative_to(self.temporary)): checkpoint.fingerprint(path, sync=True)
                for path in self._files()
            }
            self.n_bytes = sum(size for size, _ in entries.values())
            self.squares = sync.residual_squares(self._rank_state.get("sync", {}))
            checkpoint.write_part(self.temporary, self._home.topology.local_rank, entries)
            self._write_model = self._cloud_state = None
            self._rank_state = {}
            self.write_s = time.perf_counter() - begin
            self.progress = _WRITTEN

    def publish(self, norms: dict[str, Any] | None) -> None:
        """All ranks have written: the directory gets its name, from one rank of the cloud.

        norms: for the manifest; None on the other ranks.
        """
        with self._keeping_failure():
            if norms is not None:
                checkpoint.write_manifest(self.temporary, self.step, self._home.topology, norms)
                if self._final.exists():  # by a run that was resumed from an older one
                    _remove([_hide(self._final)])
                self.temporary.rename(self._final)
                checkpoint.sync_directory(self._home.directory)
            self.progress = _NAMED

    def raise_failure(self) -> None:
        """This rank's, if it has one."""
        if self._failure is not None:
            raise self._failure

    def _files(self) -> Iterator[Path]:
        """Writes one after the other."""
        yield from self._uncancelled(
            state.write(self._rank_state, self.temporary / f"rank-{self._home.topology.local_rank}")
        )
        if self._write_model is not None:
            model = self.temporary / "model"
            model.mkdir()
            self._write_model(model)
            yield from self._uncancelled([p for p in model.rglob("*") if p.is_file()])
            checkpoint.sync_directory(model)
            yield from self._uncancelled(state.write(self._cloud_state, self.temporary / "cloud"))

    def _uncancelled(self, paths: list[Path]) -> Iterator[Path]:
        for path in paths:
            if self.cancelled:
                raise InterruptedError(f"the checkpoint of step {self.step} was given up")
            yield path

    @contextlib.contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._failure = ConfigError(
                f"the checkpoint of step {self.step} could not be written to "
                f"{self._home.directory}: {reason}; make room or point run.out elsewhere, then "
                "continue with --resume auto (the checkpoints before it are intact)"
            )
            self.progress = _FAILED
        except Exception as error:
            self._failure, self.progress = error, _FAILED


def _norms(topology: Topology, rows: list[list[float]]) -> dict[str, Any]:
    """Cloud -> norm of its residuals: what it still owes (sender), and what sums owe (owner)."""
    return {
        name: {
            kind: math.sqrt(sum(rows[rank][i] for rank in ranks))
            for i, kind in ((1, "sender"), (2, "owner"))
        }
        for name, ranks in zip(topology.names, topology.clouds, strict=True)
    }


def _hide(directory: Path) -> Path:
    """A directory with the name of a checkpoint is always a whole one: renamed, then deleted."""
    doomed = directory.with_name(f".{directory.name}.deleting")
    shutil.rmtree(doomed, ignore_errors=True)
    return directory.rename(doomed)


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
