"""``pyfedcomm demo``: two clouds train one small model on this machine, and one sees that it pays.

Two runs of ``pyfedcomm train`` with two ranks in each cloud: one in which the clouds exchange their
changes, one in which they never do. Then a table and ``report.html``. Nothing here trains or
measures; the numbers are those that the runs wrote.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyfedcomm.errors import Error, InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from pyfedcomm.report.data import Run

N_CLOUDS = 2
RANKS_PER_CLOUD = 2
LOCAL_STEPS = 20
STEPS = 300
DEADLINE_S = 1800.0
"""For one run. A run takes one or two minutes on two cores; this is for a machine that hangs."""

EXCHANGE, ISOLATED = "with exchange", "isolated clouds"

_CONFIG = """\
[run]
out = {out}
device = "cpu"

[model]
type = "llama"
hidden_size = 128
intermediate_size = 352
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 4
tie_word_embeddings = true

[data]  # the source text of Python's standard library, other packages in each cloud
source = "stdlib"
tokenizer = "bytes"
seq_len = 128

[train]
steps = {steps}
micro_batch = 4
lr = 3e-3
min_lr = 3e-4
warmup_steps = {warmup_steps}

[sync]
rule = "{rule}"
local_steps = {local_steps}
outer_lr = 1.0  # with few rounds there is no time for the usual momentum of 0.9 to settle
outer_momentum = 0.0
codec = "int8"

[eval]
every = {eval_every}
sequences = 64
across = true

[checkpoint]
enabled = false

[log]
every = {log_every}
tensorboard = false
"""


@dataclass(frozen=True)
class DemoResult:
    """What ``--json`` prints."""

    eval_loss_start: float
    """Held-out loss before training: nats a token, mean over the clouds' held-out texts."""
    eval_loss: float
    """After training with exchange."""
    eval_loss_isolated: float
    """After the same training without: each cloud's own model on all clouds' held-out texts."""
    wan_bytes: int
    """Sent between clouds: frames, all ranks together."""
    wan_bytes_data_parallel: int
    """What data-parallel training in fp32 would have sent (computed)."""
    seconds: float
    """Wall time of the whole demo, both runs."""
    bit_identical: bool
    """All ranks of both clouds ended the run with exchange with the same parameters."""
    ratio: float
    """``wan_bytes_data_parallel / wan_bytes``."""
    n_params: int
    steps: int
    tokens: int
    """Trained on in one run, all ranks together."""
    time: dict[str, float]
    """Seconds of an average rank of the run with exchange: compute, encode, wire, wait."""
    report: str
    """Path of the report."""


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Directory of the report and of what the runs log.")
    ] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = STEPS,
) -> None:
    """Train a small model in two clouds on this machine; starts mpirun itself."""
    from rich.console import Console

    try:
        result, runs = run_demo(out, steps, Console(stderr=True))
    except (Error, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        _print_table(result, runs, Console())
    if not result.bit_identical:
        typer.echo("error: the ranks ended with different parameters", err=True)
        raise typer.Exit(1)


def run_demo(out: Path, steps: int, progress: Console) -> tuple[DemoResult, tuple[Run, Run]]:
    """Both runs and the report, below ``out``; returns the numbers, and the runs as logged.

    progress: the console for a line on what goes on.
    Raises ConfigError where there is no ``mpirun``, Timeout, Error if a run fails.
    """
    from pyfedcomm.report import write_report

    if steps < 1:
        raise InvalidArgument(f"steps is {steps}; it must be at least 1")
    begin = time.perf_counter()
    exchange = _train(out / "exchange", "diloco", EXCHANGE, steps, progress)
    isolated = _train(out / "isolated", "isolated", ISOLATED, steps, progress)
    report = out / "report.html"
    write_report(report, [exchange, isolated], title="Two clouds, one model", lead=_lead(exchange))
    end = exchange.end
    result = DemoResult(
        eval_loss_start=end["eval_loss_start"],
        eval_loss=end["eval_loss"],
        eval_loss_isolated=isolated.end["eval_loss"],
        wan_bytes=end["wan_bytes"],
        wan_bytes_data_parallel=end["wan_bytes_data_parallel"],
        seconds=round(time.perf_counter() - begin, 3),
        bit_identical=end["bit_identical"],
        ratio=end["wan_bytes_data_parallel"] / end["wan_bytes"],
        n_params=end["n_params"],
        steps=end["steps"],
        tokens=end["tokens"],
        time=end["time"],
        report=str(report),
    )
    return result, (exchange, isolated)


def _train(directory: Path, rule: str, name: str, steps: int, progress: Console) -> Run:
    from pyfedcomm import launch
    from pyfedcomm.report import read_run

    directory.mkdir(parents=True, exist_ok=True)
    # An earlier demo's numbers must not be taken for this one's.
    (directory / "metrics.jsonl").unlink(missing_ok=True)
    config, log = directory / "run.toml", directory / "log.txt"
    config.write_text(
        _CONFIG.format(
            out=json.dumps(str(directory)),
            steps=steps,
            warmup_steps=min(20, steps),
            rule=rule,
            local_steps=LOCAL_STEPS,
            eval_every=3 * LOCAL_STEPS,
            log_every=5,
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pyfedcomm", "train", str(config)]
    with _progress(name, directory, steps, progress) as poll:
        status = launch.run(
            N_CLOUDS * RANKS_PER_CLOUD,
            [*command, "--clouds", str(N_CLOUDS)],
            timeout_s=DEADLINE_S,
            log=log,
            poll=poll,
        )
    run = read_run(directory, name)
    if status != 0 or not run.finished:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise Error(
            f"the run {name!r} failed (exit status {status}); all it printed is in {log}, "
            f"and last:\n{tail}"
        )
    return run


@contextmanager
def _progress(
    name: str, directory: Path, steps: int, console: Console
) -> Iterator[Callable[[], None]]:
    """A bar that follows the run's ``metrics.jsonl``; only a line where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pyfedcomm.report import read_run

    console.print(f"{name}: {N_CLOUDS} clouds of {RANKS_PER_CLOUD} ranks, {steps} steps")
    bar = Progress(
        TextColumn("  "),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting", total=steps)
    seen = -1

    def poll() -> None:
        nonlocal seen
        run = read_run(directory, name)
        if run.steps and run.steps[-1].step != seen:
            seen = run.steps[-1].step
            bar.update(task, completed=seen, description=f"loss {run.steps[-1].loss:.3f}")

    with bar:
        yield poll


def _lead(run: Run) -> str:
    from pyfedcomm.report.units import count_text

    return (
        f"{N_CLOUDS} clouds of {RANKS_PER_CLOUD} ranks each trained a Llama-style model of "
        f"{count_text(run.end['n_params'])} parameters on the source text of Python's standard "
        "library. Each cloud holds other packages, and the text stayed where it was: every "
        f"{LOCAL_STEPS} steps the clouds exchanged what their models had learned, coded as int8. "
        "The isolated clouds did the same and exchanged nothing."
    )


def _print_table(result: DemoResult, runs: tuple[Run, Run], console: Console) -> None:
    from rich.table import Table

    from pyfedcomm.report.units import bytes_text, count_text, seconds_text

    table = Table(title="Two clouds, one model", title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    exchange, isolated = (run.end for run in runs)

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values, *[""] * (len(runs) - len(values)))

    row("held-out loss before", *(f"{end['eval_loss_start']:.4f}" for end in (exchange, isolated)))
    row("held-out loss after", *(f"{end['eval_loss']:.4f}" for end in (exchange, isolated)))
    row("bytes between clouds", *(bytes_text(end["wan_bytes"]) for end in (exchange, isolated)))
    row("  data-parallel fp32", bytes_text(result.wan_bytes_data_parallel))
    row("  fewer by", f"{result.ratio:.1f} times")
    row("training time", *(seconds_text(end["seconds"]) for end in (exchange, isolated)))
    for phase in result.time:
        shares = (
            100 * end["time"][phase] / sum(end["time"].values()) for end in (exchange, isolated)
        )
        row(f"  {phase}", *(f"{max(0.0, share):.1f} %" for share in shares))
    row("all ranks bit-identical", "yes" if result.bit_identical else "NO", "not expected")
    console.print(table)
    console.print(
        f"{count_text(result.n_params)} parameters, {count_text(result.tokens)} tokens a run, "
        f"{seconds_text(result.seconds)} in all.\nCurves and configuration: {result.report}",
        highlight=False,
        soft_wrap=True,
    )
