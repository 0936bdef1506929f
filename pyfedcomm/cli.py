"""The command ``pyfedcomm``: arguments in, exit status out.

An error is one line, ``error: ...``, on every rank; ``--debug`` shows where it came from. No rank
is left behind: whatever ends one rank ends the run. What the commands do is in ``train`` and
``demo``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional

from pyfedcomm.errors import Error

if TYPE_CHECKING:
    from pyfedcomm.group import Group

try:
    import typer
except ImportError:
    raise SystemExit(
        "error: the command needs the training dependencies: pip install pyfedcomm[train]"
    ) from None

GRACE_S = 2.0
"""Seconds that the other ranks have to say what they know before MPI ends them."""

LEAVE_S = 20.0
"""Seconds for all ranks to leave in order after an error that all of them have."""

INTERRUPTED = 130

app = typer.Typer(
    help="Train one language model across several clouds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Makes typer keep ``train`` a subcommand when it is the only one."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The run's TOML file; see examples/run.toml.")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates it, and Python 3.10 is supported
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    clouds: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Number of clouds (2), or ranks of each (1,3); else FEDCOMM_CLOUD."),
    ] = None,
    resume: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="'auto', a run's directory, or a checkpoint ({cloud}: its cloud)."),
    ] = None,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="Resume with other clouds, or other ranks in them.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is known of links, and chosen by it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train a model; start it under mpirun: mpirun -n 4 pyfedcomm train run.toml --clouds 2."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    world: Group | None = None
    try:
        from pyfedcomm.topology import Topology
        from pyfedcomm.train import agree
        from pyfedcomm.train import config as config_module
        from pyfedcomm.train.inter import InterConfig, open_world
        from pyfedcomm.train.loop import train as train_run

        chosen = [*(overrides or [])]
        if resume is not None:
            chosen.append(f"checkpoint.resume={json.dumps(resume)}")
        if elastic:
            chosen.append("checkpoint.elastic=true")
        # Read before the group is opened, which is told the deadline in it; a rank that cannot
        # read its own still opens the group, to tell the others.
        failure: Error | None = None
        run, inter = config_module.RunConfig(), InterConfig()
        try:
            loaded = config_module.load(config, chosen)
            run, inter = loaded.run, loaded.inter
        except Error as error:
            failure = error
        world = open_world(inter, timeout=run.timeout_s)
        agree.agree(world, f"rank {world.rank}", lambda: _raise(failure))
        topology = Topology.discover(world, clouds=clouds, hosts=loaded.clouds.hosts or None)
        say = print if verbose and world.rank == 0 else None
        result = train_run(loaded, world, topology, say=say)
        if world.rank == 0:
            print(
                f"held-out loss {result.eval_loss_start:.4f} -> {result.eval_loss:.4f} after "
                f"{result.steps} steps; {result.wan_bytes:,} bytes between clouds "
                f"(data-parallel: {result.wan_bytes_data_parallel:,}); "
                f"ranks {'are' if result.bit_identical else 'are NOT'} bit-identical; "
                f"computing {', '.join(f'{c} {u:.1%}' for c, u in result.utilisation.items())} "
                "of the time"
            )
        world.close()
    except (KeyboardInterrupt, Exception) as error:
        _fail(error, world, debug=debug)


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A run's directory, a cloud's checkpoints, or one checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(help="The directory to make; it must not exist yet.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32, bf16 or fp16.")] = "fp32",
    step: Annotated[
        Optional[int],  # noqa: UP045 - as above
        typer.Option(help="Which checkpoint; default the newest."),
    ] = None,
    cloud: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Whose model, where the clouds' models differ."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Make a Hugging Face directory of a checkpoint: weights, configuration, tokenizer."""
    try:
        from pyfedcomm.train import export as exporting

        print(exporting.export(source, out, dtype=dtype, step=step, cloud=cloud))
    except (KeyboardInterrupt, Exception) as error:
        _fail(error, None, debug=debug)


def main() -> None:
    """Entry point of the ``pyfedcomm`` command."""
    from pyfedcomm.demo import demo

    app.command()(demo)
    app()


def _raise(failure: Error | None) -> None:
    if failure is not None:
        raise failure


def _as_interrupt(signum: int, frame: object) -> None:
    """Schedulers and mpirun end ranks with SIGTERM: the same as Ctrl-C."""
    raise KeyboardInterrupt


def _fail(error: BaseException, world: Group | None, *, debug: bool) -> NoReturn:
    """Says what went wrong, tells the other ranks, and ends the process, whatever they do."""
    from pyfedcomm.train.agree import is_everywhere

    interrupted = isinstance(error, KeyboardInterrupt)
    status = INTERRUPTED if interrupted else 1
    if debug:
        traceback.print_exception(error)
    if interrupted:
        text = "interrupted"
    elif isinstance(error, Error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (--debug shows where)"
    alone = world is None or world.size == 1
    # What every rank raises says by itself which ranks are at fault.
    where = "" if world is None or alone or is_everywhere(error) else f"rank {world.rank}: "
    sys.stderr.write(f"error: {where}{' '.join(text.split())}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    if world is None or alone:
        raise SystemExit(status)
    # From here on no further signal may keep this rank from ending the others.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = functools.partial(_end_all, world.transport, status)
    if is_everywhere(error):
        # All ranks leave in order; the timer is for the one that turns out not to.
        timer = threading.Timer(LEAVE_S, end)
        timer.daemon = True
        timer.start()
        with contextlib.suppress(Error):
            world.close()
        raise SystemExit(status)
    with contextlib.suppress(Error):
        world.abort(text)
    time.sleep(GRACE_S)
    end()


def _end_all(transport: str, status: int) -> NoReturn:
    """Ends every rank of this mpirun, this one at the latest."""
    if transport == "mpi":
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(status)
    os._exit(status)
