"""What a run tells: ``metrics.jsonl``, TensorBoard event files, and a progress line.

One rank of each cloud writes: the first cloud to ``out``, the others to ``out/CLOUD``, so that
clouds may share a disk or not. The numbers are those of the whole run in all of them. Nothing is
measured or gathered here: see ``loop``.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyfedcomm.errors import ConfigError
from pyfedcomm.train.saving import Saved

METRICS_FILE = "metrics.jsonl"
PHASES = ("compute", "encode", "wire", "wait")


@dataclass(frozen=True)
class StepRecord:
    """One line of ``metrics.jsonl``: the state after ``step`` optimizer steps."""

    step: int
    round: int
    """Exchanges between clouds so far."""
    loss: float
    """Training loss in nats a token, over all ranks' tokens since the line before."""
    tokens: int
    """Trained on so far, all ranks together."""
    tokens_per_s: float
    """All ranks together, in the steps since the line before; evaluation does not count."""
    lr: float
    wan_bytes: int
    """Sent between clouds so far: frames, all ranks together."""
    time: dict[str, float]
    """Seconds since the line before, mean over ranks. compute: forward, backward, optimizer;
    encode: coding and decoding of what is exchanged between clouds; wire: waiting for the network
    between clouds; wait: the rest of synchronising (inside the cloud, and for slower ranks)."""
    excluded: dict[str, int]
    """Rounds so far that a cloud was left out of because it had diverged, by its name."""
    cloud: str
    rank: int
    """Who wrote the line."""


class MetricsWriter:
    """Writes one cloud's records, or nothing at all on a rank that has not to."""

    def __init__(
        self,
        directory: Path,
        *,
        enabled: bool,
        tensorboard: bool,
        progress: bool,
        n_steps: int,
        first_step: int,
    ) -> None:
        """For files in ``directory``; `open` makes them.

        enabled: False makes every method do nothing.
        progress: also show a line on the terminal.
        first_step: steps done before; what an interrupted run logged after them is dropped.
        """
        self._directory = directory
        self._enabled, self._tensorboard, self._progress = enabled, tensorboard, progress
        self._n_steps, self._first_step = n_steps, first_step
        self._stack = ExitStack()
        self._board: Any = None
        self._shown: _Shown | None = None

    def open(self) -> None:
        """Opens the files and shows the progress line. Raises OSError."""
        if not self._enabled:
            return
        first = self._first_step
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / METRICS_FILE
        if first:
            _cut(path, first)
        self._file = self._stack.enter_context(path.open("a" if first else "w", encoding="utf-8"))
        if self._tensorboard:
            self._board = _event_writer(self._directory / "tensorboard", first)
            self._stack.callback(self._board.close)
        if self._progress:
            self._shown = self._stack.enter_context(_Shown(self._n_steps, first))

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(self, summary: dict[str, Any]) -> None:
        """The first event: what is run, as plain values."""
        self._write({"event": "start", **summary})

    def step(self, record: StepRecord) -> None:
        """One logged step."""
        self._write(asdict(record))
        if self._board is not None:
            for name in ("loss", "tokens_per_s", "lr", "wan_bytes", "round"):
                self._board.add_scalar(f"train/{name}", getattr(record, name), record.step)
            for name, seconds in record.time.items():
                self._board.add_scalar(f"time/{name}", seconds, record.step)
            self._board.flush()
        if self._shown is not None:
            self._shown.step(record)

    def eval(self, step: int, loss: float, by_cloud: dict[str, float]) -> None:
        """A held-out evaluation."""
        self._write({"event": "eval", "step": step, "eval_loss": loss, "by_cloud": by_cloud})
        if self._board is not None:
            self._board.add_scalar("eval/loss", loss, step)
            for cloud, value in by_cloud.items():
                self._board.add_scalar(f"eval/{cloud}", value, step)
        self.say(f"step {step}: held-out loss {loss:.4f}")

    def checkpoint(self, saved: Saved) -> None:
        """A checkpoint that all clouds have."""
        self._write({"event": "checkpoint", **asdict(saved)})

    def clouds(self, change: dict[str, Any]) -> None:
        """The run goes on with other clouds or ranks than before."""
        self._write({"event": "clouds", **change})

    def deal(self, step: int, told: dict[str, int]) -> None:
        """Data dealt anew: see `Feed.redeal`."""
        self._write({"event": "deal", "step": step, **told})

    def end(self, result: dict[str, Any]) -> None:
        """The last event: the numbers of the whole run."""
        self._write({"event": "end", **result})

    def say(self, text: str) -> None:
        """A line for whoever watches; not recorded."""
        if self._shown is not None:
            self._shown.say(text)

    def _write(self, record: dict[str, Any]) -> None:
        if self._enabled:
            self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
            self._file.flush()


class _Shown:
    """A progress bar on a terminal, plain lines elsewhere (a log file, mpirun's pipe)."""

    def __init__(self, n_steps: int, first_step: int) -> None:
        self._console = Console()
        self._n_steps = n_steps
        self._bar: Progress | None = None
        if self._console.is_terminal and _is_watched():
            self._bar = Progress(
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.description}", table_column=None),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("starting", total=n_steps, completed=first_step)

    def __enter__(self) -> _Shown:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, tb: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, record: StepRecord) -> None:
        text = describe(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, description=text)
        else:
            self.say(f"step {record.step}/{self._n_steps}  {text}")

    def say(self, text: str) -> None:
        # soft_wrap: a line in a log file must stay one line, however long.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _is_watched() -> bool:
    """Open MPI gives rank 0 a terminal even where its own output goes to a file."""
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return True
    try:
        output = (Path("/proc") / str(os.getppid()) / "fd" / "1").readlink()
    except OSError:
        return False
    return str(output).startswith(("/dev/pts/", "/dev/tty"))


def describe(record: StepRecord) -> str:
    """The progress line of one record."""
    total = sum(record.time.values()) or 1.0
    split = " ".join(f"{p} {100 * record.time.get(p, 0.0) / total:.0f}%" for p in PHASES)
    left_out = ", ".join(f"{cloud} {n} times" for cloud, n in record.excluded.items())
    return (
        f"loss {record.loss:.4f}  {record.tokens_per_s:,.0f} tok/s  "
        f"wan {format_bytes(record.wan_bytes)}  {split}"
        + (f"  left out: {left_out}" if left_out else "")
    )


def format_bytes(n_bytes: float) -> str:
    """Decimal units: 1 MB is 10^6 bytes, as links and bills count."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def require_tensorboard() -> None:
    """Raises ConfigError if event files cannot be written here."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "log.tensorboard is true, but tensorboard is not installed: pip install "
            "pyfedcomm[train], or set log.tensorboard = false"
        ) from error


def _event_writer(directory: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=first_step + 1 if first_step else None)


def _cut(path: Path, step: int) -> None:
    """Keeps what an earlier part of the run logged up to ``step``; drops a line cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("event") not in ("start", "end") and record.get("step", 0) <= step:
            kept.append(line)
    shorter = path.with_name(path.name + ".new")
    shorter.write_text("".join(kept), encoding="utf-8")
    shorter.replace(path)


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
