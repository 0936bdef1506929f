"""Links made by ``fedcomm-delay-line``, our own program: for kernels without ``netem``."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .backend import Backend, Hosts, LabError, Unavailable
from .links import Link, Links

PROGRAM = "fedcomm-delay-line"
PROGRAM_VARIABLE = "WANLAB_DELAY_LINE"
_ANSWER_S = 10.0


def find_program() -> Path:
    """``$WANLAB_DELAY_LINE``, the newest in ``build/``, or on the PATH. Raises `Unavailable`."""
    told = os.environ.get(PROGRAM_VARIABLE)
    if told:
        if os.access(told, os.X_OK):
            return Path(told)
        raise Unavailable(f"{PROGRAM_VARIABLE} is {told!r}, which is no program")
    build = Path(__file__).parents[2] / "build"
    built = [build / PROGRAM, *build.glob(f"*/{PROGRAM}")]
    found = sorted((p for p in built if p.exists()), key=lambda p: p.stat().st_mtime)
    if found:
        return found[-1]
    on_path = shutil.which(PROGRAM)
    if on_path:
        return Path(on_path)
    raise Unavailable(
        f"{PROGRAM} is not built. `make build` does it; without Python and MPI: "
        f"cmake -S . -B build -DFEDCOMM_PYTHON=OFF && cmake --build build --target {PROGRAM} "
        f"(or set {PROGRAM_VARIABLE} to where it is)"
    )


def _rate(mbit: float) -> str:
    return f"{mbit * 1e6:.0f}"


def _time(ms: float) -> str:
    return f"{ms * 1e6:.0f}"


class DelayLine(Backend):
    """Owns the process; its devices exist as long as it runs."""

    name = "delay line"

    def __init__(self, hosts: Hosts, links: Links, *, device: str, mtu: int, seed: int) -> None:
        program = find_program()
        self._links = links
        fds = [os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) for pid in hosts.pids]
        try:
            self._process = hosts.popen_inside(
                [str(program), str(seed), device, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            for fd in fds:
                os.close(fd)
        try:
            for a in range(len(hosts.pids)):
                site = links.site(a)
                queue = _time(links.queue_ms)
                self._command(f"uplink {a} {_rate(site.uplink_mbit)} {queue}")
                self._command(f"downlink {a} {_rate(site.downlink_mbit)} {queue}")
                for b in range(len(hosts.pids)):
                    if a != b:
                        self.set_link(a, b, links.link(a, b))
        except BaseException:
            self.close()
            raise

    def set_link(self, a: int, b: int, link: Link) -> None:
        self._command(
            f"link {a} {b} {_rate(link.rate_mbit)} {_time(link.queue_ms)} "
            f"{_time(link.rtt_ms / 2)} {_time(link.jitter_ms)} {link.loss!r}"
        )

    def set_cut(self, a: int, b: int, cut: bool) -> None:
        self._command(f"cut {a} {b} {int(cut)}")

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._command("counters"))
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends itself
        try:
            self._process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _command(self, text: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._lost() from None
        # One line is on its way and nothing else, so once there is a part of it, readline ends.
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_ANSWER_S):
                raise LabError(f"the delay line has not answered {text!r} for {_ANSWER_S:g} s")
        answer: str = self._process.stdout.readline().rstrip("\n")
        if not answer:
            raise self._lost()
        if answer.startswith("error"):
            raise LabError(f"delay line: {text!r}: {answer}")
        return answer

    def _lost(self) -> LabError:
        deadline = time.monotonic() + 1
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return LabError(f"the delay line has ended (status {self._process.returncode})")
