"""The laboratory: clouds, addresses, links, and commands that run there."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pyfedcomm import launch
from pyfedcomm.errors import ConfigError, Timeout

from . import delay_line, namespaces, netem
from .backend import COMMAND_S, PROGRAM, Backend, Hosts, LabError, Unavailable, has_ipv6
from .links import MAX_CLOUDS, Link, Links

DEVICE = "wan0"
GRACE_S = 5.0
"""Seconds that a command has to end itself before it is killed."""

BackendName = Literal["auto", "netem", "line"]

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def missing(backend: BackendName = "auto") -> str | None:
    """Why this machine, or this user, cannot have a laboratory; None if it can."""
    if not sys.platform.startswith("linux"):
        return "a laboratory needs Linux (network namespaces)"
    if shutil.which("ip") is None:
        return "a laboratory needs the program `ip`: install iproute2"
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if "CapEff" in line).split()[1], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        return (
            f"a laboratory needs {' and '.join(lacking)}: run as root (a container: --privileged)"
        )
    try:
        _choose(backend)
    except Unavailable as error:
        return str(error)
    return None


def _choose(backend: BackendName) -> Literal["netem", "line"]:
    if backend == "netem" or (backend == "auto" and netem.missing() is None):
        reason = netem.missing()
        if reason is not None:
            raise Unavailable(reason)
        return "netem"
    try:
        with Path("/dev/net/tun").open("rb"):
            pass
    except OSError as error:
        raise Unavailable(f"the delay line needs /dev/net/tun: {error.strerror}") from None
    delay_line.find_program()
    return "line"


class Lab:
    """Clouds on this machine, with links between them; a context manager.

    with Lab(clouds=2, links=Links(rate_mbit=1000, rtt_ms=50)) as lab:
        lab.run(["python", "server.py"], cloud=0)
        lab.run(lab.mpirun(["fedcomm-bench-allreduce"]))

    Cloud i is called ``cloud<i>``, and known by that name in every cloud. It has a network of its
    own with one device (``wan0``), its own /dev/shm and /sys; files, cores and GPUs are shared with
    this machine. All that runs in a laboratory is killed when it is closed, or when its maker ends.

    clouds: how many, 1 to 64.
    mtu: bytes of the largest IP packet.
    seed: of what is random (loss, jitter).
    sysctls: set in every cloud, e.g. ``{"net.ipv4.tcp_wmem": "4096 16384 67108864"}``.
    backend: ``"netem"``, ``"line"`` (fedcomm-delay-line), or ``"auto"``, the first that is there.

    Raises `ConfigError` for impossible settings, `Unavailable` where `missing` tells a reason,
    `LabError` if it could not be set up; nothing remains of it then.
    """

    def __init__(
        self,
        clouds: int = 2,
        links: Links | None = None,
        *,
        mtu: int = 1500,
        seed: int = 1,
        sysctls: Mapping[str, str] | None = None,
        backend: BackendName = "auto",
    ) -> None:
        if not 1 <= clouds <= MAX_CLOUDS:
            raise ConfigError(f"clouds is {clouds}; it must be from 1 to {MAX_CLOUDS}")
        if not 1280 <= mtu <= 65535:
            raise ConfigError(f"mtu is {mtu}; it must be from 1280 (IPv6 asks for that) to 65535")
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
        self.links = links or Links()
        self.links.check_clouds(clouds)
        self.n_clouds = clouds
        self.mtu = mtu
        self._seed = seed
        self._sysctls = dict(sysctls or {})
        self._wanted = backend
        self._links = {
            (a, b): self.links.link(a, b) for a in range(clouds) for b in range(clouds) if a != b
        }
        self._keeper: subprocess.Popen[str] | None = None
        self._hosts: Hosts | None = None
        self._backend: Backend | None = None
        self._timers: list[threading.Timer] = []

    # --- start and end ----------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        reason = missing(self._wanted)
        if reason is not None:
            raise Unavailable(reason)
        if self._keeper is not None:
            raise LabError("this laboratory is open already")
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        chosen = _choose(self._wanted)
        self._keeper = subprocess.Popen(
            [*PROGRAM, "keep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for its maker
            text=True,
        )
        spec = [
            {"name": name, "files": self._files(), "sysctls": self._sysctls} for name in self.names
        ]
        if chosen == "netem":
            spec.append(netem.core_host())
        pids = self._keeper_says(json.dumps({"hosts": spec}))
        outside = [pair[0] for pair in pids["hosts"]]
        inner = [pair[1] for pair in pids["hosts"]]
        core = outside.pop() if chosen == "netem" else None
        hosts = self._hosts = Hosts(pids["init"], outside, inner[: self.n_clouds], core)
        make = netem.Netem if chosen == "netem" else delay_line.DelayLine
        self._backend = make(hosts, self.links, device=DEVICE, mtu=self.mtu, seed=self._seed)
        for cloud, pid in enumerate(hosts.pids):
            hosts.ip(
                pid,
                ["ip"],
                [
                    "link set lo up",
                    f"link set {DEVICE} mtu {self.mtu} txqueuelen 10000 up",
                    f"addr add {self.address(cloud)}/16 dev {DEVICE}",
                    *([f"addr add {self.address(cloud, 6)}/64 dev {DEVICE} nodad"] * has_ipv6()),
                ],
            )

    def _keeper_says(self, spec: str) -> dict[str, Any]:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        assert self._keeper.stderr is not None
        with suppress(BrokenPipeError):
            self._keeper.stdin.write(spec + "\n")
            self._keeper.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._keeper.stdout, selectors.EVENT_READ)
            line = self._keeper.stdout.readline() if selector.select(COMMAND_S) else ""
        if not line:
            self._keeper.kill()
            raise LabError(f"no namespaces: {self._keeper.stderr.read().strip() or 'no answer'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends everything that runs inside, and the namespaces. May be called twice."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
        self._hosts = None
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        with suppress(BrokenPipeError):
            keeper.stdin.close()
        try:
            keeper.wait(COMMAND_S)
        except subprocess.TimeoutExpired:
            keeper.kill()  # what it holds dies with it
            keeper.wait()
        for pipe in (keeper.stdout, keeper.stderr):
            if pipe is not None:
                pipe.close()

    # --- what is where ----------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Host names of the clouds."""
        return [f"cloud{i}" for i in range(self.n_clouds)]

    @property
    def backend(self) -> str:
        """What makes the links: ``"netem"`` or ``"delay line"``."""
        return self._running()[1].name

    def address(self, cloud: int, family: Literal[4, 6] = 4) -> str:
        """Of a cloud. The delay line knows it by its last 16 bits."""
        self._check(cloud)
        return f"10.77.0.{cloud + 1}" if family == 4 else f"fd77::{cloud + 1:x}"

    def link(self, a: int, b: int) -> Link:
        """The link from ``a`` to ``b`` as it is now."""
        return self._links[self._pair(a, b)]

    def capacity_mbit(self, a: int, b: int) -> float:
        """What a link carries alone: the least of rate, uplink and downlink; 0: no limit."""
        uplink, downlink = self.links.site(a).uplink_mbit, self.links.site(b).downlink_mbit
        rates = (self.link(a, b).rate_mbit, uplink, downlink)
        return min((rate for rate in rates if rate > 0), default=0.0)

    def counters(self) -> dict[str, Any]:
        """Packets of each direction, under ``pairs``; the delay line tells its CPU time, too."""
        return self._running()[1].counters()

    # --- commands ---------------------------------------------------------------------------------

    def popen(
        self,
        argv: Sequence[str],
        *,
        cloud: int = 0,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Starts a command in a cloud. It is killed when the laboratory ends.

        env: added to this process's environment. options: of `subprocess.Popen`. The process is a
        small parent of the command: it hands on SIGTERM, SIGINT and SIGHUP, and ends as it does.
        """
        self._check(cloud)
        hosts, _ = self._running()
        return hosts.popen(hosts.pids[cloud], argv, env=self._environment(env), **options)

    def run(
        self,
        argv: Sequence[str],
        *,
        cloud: int = 0,
        timeout_s: float | None = 600.0,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a command in a cloud until it ends; options of `popen`. Raises `Timeout`."""
        process = self.popen(argv, cloud=cloud, **options)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Timeout(
                f"[wanlab] {shlex.join(argv)} had not ended after {timeout_s:g} s and was stopped"
            ) from None
        finally:
            stop(process)
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def mpirun(
        self, argv: Sequence[str], *, ranks: int = 1, launcher: Path | None = None
    ) -> list[str]:
        """The command that starts ``argv`` with ``ranks`` ranks in each cloud, in cloud order.

        launcher: an ``mpirun`` of Open MPI or MPICH; default: that of pyfedcomm's MPI.
        Raises `ConfigError` if there is none.
        """
        if ranks < 1:
            raise ConfigError(f"ranks is {ranks}; it must be at least 1")
        found = launch.find_mpirun() if launcher is None else launch.identify(launcher)
        total = ranks * self.n_clouds
        hosts = ",".join(f"{name}:{ranks}" for name in self.names)
        if found.vendor == "openmpi":
            options = ["--host", hosts, "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
            if total > (os.cpu_count() or 1):  # each host believes that all cores are its own
                options += ["--mca", "mpi_yield_when_idle", "1"]
        elif found.vendor == "mpich":
            options = ["-hosts", hosts, "-bind-to", "none"]
        else:
            raise ConfigError(f"{found.path} is no mpirun of Open MPI or MPICH: {found.version}")
        return [str(found.path), "-n", str(total), *options, *argv]

    # --- events -----------------------------------------------------------------------------------

    def set_link(self, a: int, b: int, **changes: float) -> None:
        """Changes fields of the link from ``a`` to ``b`` (that direction only), from now on."""
        pair = self._pair(a, b)
        try:
            link = replace(self._links[pair], **changes)
        except TypeError:
            raise ConfigError(f"links: {', '.join(changes)}: not all are fields of Link") from None
        self._running()[1].set_link(a, b, link)
        self._links[pair] = link

    def cut(self, a: int, b: int, seconds: float | None = None) -> None:
        """Cuts both directions between two clouds, for some time or until `mend`."""
        self._pair(a, b)
        for pair in ((a, b), (b, a)):
            self._running()[1].set_cut(*pair, True)
        if seconds is not None:
            timer = threading.Timer(seconds, self._mend_late, (a, b))
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def mend(self, a: int, b: int) -> None:
        """Undoes `cut`."""
        self._pair(a, b)
        for pair in ((a, b), (b, a)):
            self._running()[1].set_cut(*pair, False)

    def _mend_late(self, a: int, b: int) -> None:
        with suppress(LabError):  # closed meanwhile
            self.mend(a, b)

    # --- inside -----------------------------------------------------------------------------------

    def _running(self) -> tuple[Hosts, Backend]:
        if self._hosts is None or self._backend is None:
            raise LabError("this laboratory is not open: use it in a `with` statement")
        return self._hosts, self._backend

    def _check(self, cloud: int) -> None:
        if not 0 <= cloud < self.n_clouds:
            raise ConfigError(f"there is no cloud {cloud}; clouds are 0 to {self.n_clouds - 1}")

    def _pair(self, a: int, b: int) -> tuple[int, int]:
        self._check(a)
        self._check(b)
        if a == b:
            raise ConfigError(f"a link joins two clouds, not cloud {a} and itself")
        return a, b

    def _files(self) -> dict[str, str]:
        """What lies in ``namespaces.PRIVATE`` of every cloud."""
        hosts = ["127.0.0.1 localhost", "::1 localhost"]
        for cloud, name in enumerate(self.names):
            hosts += [f"{self.address(cloud)} {name}", f"{self.address(cloud, 6)} {name}"]
        agent = f'#!/bin/sh\nexec {shlex.join(PROGRAM)} agent "$@"\n'
        return {"hosts": "\n".join(hosts) + "\n", "agent": agent}

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """With it, an ``mpirun`` inside reaches the other clouds without ssh."""
        agent = str(namespaces.PRIVATE / "agent")
        inner = zip(self.names, self._running()[0].inner, strict=True)
        env = {
            **os.environ,
            namespaces.HOSTS_VARIABLE: " ".join(f"{name}={pid}" for name, pid in inner),
            "PRTE_MCA_plm_ssh_agent": agent,
            # Hosts and processes of two laboratories have the same names: keep them out of /tmp.
            "PRTE_MCA_prte_tmpdir_base": str(namespaces.PRIVATE),
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": agent,
        }
        if os.geteuid() == 0:
            for prefix in ("OMPI", "PRTE"):
                env[f"{prefix}_ALLOW_RUN_AS_ROOT"] = "1"
                env[f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        return env | dict(more or {})


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a command that was started with `Lab.popen`: by SIGTERM, then by SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
