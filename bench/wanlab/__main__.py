"""``python -m bench.wanlab``: run, exec, check and floor. ``-h`` explains each."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pyfedcomm.errors import ConfigError, Error

from . import measure
from .arguments import add_laboratory, laboratory, n_bytes_of
from .lab import Lab

BAD_ARGUMENT, NO_LABORATORY, NOT_AS_ASKED = 2, 3, 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bench.wanlab",
        description="Clouds on this machine, with wide-area links between them.",
        epilog="Exit status: the command's; 1 if a check failed; 2 for a bad argument; "
        "3 if there can be no laboratory here.",
    )
    jobs = top.add_subparsers(dest="job", required=True)

    run = jobs.add_parser("run", help="start a command with mpirun, one host a cloud")
    run.add_argument("--ranks", type=int, default=1, help="in each cloud [1]")
    run.add_argument("--mpirun", type=Path, help="of Open MPI or MPICH [that of pyfedcomm's MPI]")
    alone = jobs.add_parser("exec", help="start a command in one cloud, without mpirun")
    alone.add_argument("--cloud", type=int, default=0, help="where [0]")
    for job in (run, alone):
        job.add_argument(
            "--check",
            type=float,
            default=0.3,
            metavar="SECONDS",
            help="measure each link before, for so long; 0: do not [0.3]",
        )
        job.add_argument("command", nargs="+", metavar="-- COMMAND", help="the command")

    check = jobs.add_parser("check", help="measure rate, round trip and loss beside the asked")
    check.add_argument("--seconds", type=float, default=2.0, help="for each measurement [2]")
    check.add_argument("--json", action="store_true", help="one object a line, no table")

    floor = jobs.add_parser("floor", help="the least time that bytes take, by raw TCP")
    floor.add_argument("--bytes", default="64M", help="each way; K, M, G are 2^10... [64M]")
    floor.add_argument("--pair", default="0,1", metavar="A,B", help="clouds [0,1]")
    floor.add_argument("--directions", choices=("both", "one"), default="both")
    floor.add_argument("--streams", type=int, default=8, help="TCP connections [8]")
    floor.add_argument("--repeats", type=int, default=5, help="the median is of so many [5]")
    floor.add_argument("--congestion", default="bbr", help="TCP's algorithm [bbr]")
    floor.add_argument("--json", action="store_true", help="one object, no sentence")

    for job in (run, alone, check, floor):
        add_laboratory(job)
    return top


def _check(lab: Lab, seconds: float, *, as_json: bool = False) -> bool:
    """Prints rows as they come; whether all is as asked."""
    good = True
    out = sys.stdout if as_json else sys.stderr
    if not as_json:
        print(f"# {lab.n_clouds} clouds; links by {lab.backend}", file=out)
    for i, row in enumerate(measure.check(lab, seconds=seconds)):
        good = good and not row.problems
        if as_json:
            print(json.dumps({**asdict(row), "backend": lab.backend}), file=out, flush=True)
        else:
            print("\n".join(measure.table([row])[i > 0 :]), file=out, flush=True)
    return good


def _pair(text: str) -> tuple[int, int]:
    a, _, b = text.partition(",")
    if not (a.isdecimal() and b.isdecimal()):
        raise ConfigError(f"--pair {text}: write two clouds, e.g. 0,1")
    return int(a), int(b)


def _command(options: argparse.Namespace) -> int:
    """run and exec: the exit status is the command's."""
    with laboratory(options) as lab:
        if options.job == "run":
            cloud, argv = (
                0,
                lab.mpirun(options.command, ranks=options.ranks, launcher=options.mpirun),
            )
        else:
            cloud, argv = options.cloud, options.command
        if options.check > 0 and not _check(lab, options.check):
            print("# the links are not as asked; the command runs all the same", file=sys.stderr)
        status = lab.run(argv, cloud=cloud, timeout_s=None).returncode
    return 128 - status if status < 0 else status


def _floor(options: argparse.Namespace) -> int:
    n_bytes, pair = n_bytes_of("--bytes", options.bytes), _pair(options.pair)
    with laboratory(options) as lab:
        found = measure.floor(
            lab,
            n_bytes,
            pair=pair,
            directions=options.directions,
            streams=options.streams,
            repeats=options.repeats,
            congestion=options.congestion,
        )
        backend = lab.backend
    if options.json:
        print(json.dumps({**asdict(found), "backend": backend}))
    else:
        print(
            f"{n_bytes} bytes, {options.directions} direction(s), {found.streams} streams "
            f"({found.congestion}): median {found.median_ms:.1f} ms, {found.min_ms:.1f} to "
            f"{found.max_ms:.1f}; bytes/rate + one way is {found.computed_ms:.1f} ms "
            f"({found.share:.0%} of it reached)"
        )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Schedulers end programs with SIGTERM: the same as Ctrl-C, so that the command is told.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        if options.job == "check":
            with laboratory(options) as lab:
                return 0 if _check(lab, options.seconds, as_json=options.json) else NOT_AS_ASKED
        return _floor(options) if options.job == "floor" else _command(options)
    except ConfigError as error:
        print(f"wanlab: {error}", file=sys.stderr)
        return BAD_ARGUMENT
    except Error as error:
        print(f"wanlab: {error}", file=sys.stderr)
        return NO_LABORATORY
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
