"""The processes that hold a laboratory together: run as a program, with the standard library only.

    keep                       reads a JSON object, makes the namespaces, holds them until its
                               standard input ends
    enter PID NAMES COMMAND    runs a command in namespaces (pid,net,uts,mnt) of process PID
    alone COMMAND              runs a command in an empty network
    agent HOST COMMAND         what ``mpirun`` calls instead of ``ssh``, inside a laboratory

A laboratory is one PID namespace, and in it a network, UTS and mount namespace for each cloud.
Nothing of it has a name or a file outside: when the keeper ends, however it does, the kernel kills
whatever runs inside, and devices, addresses and mounts go with it. The keeper ends when the pipe to
its maker closes, which also happens when that one is killed. So nobody has to look for leftovers.

What to run and with which addresses is not decided here but in ``lab.py``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

NEW_MOUNTS, NEW_UTS, NEW_PID, NEW_NET = 0x00020000, 0x04000000, 0x20000000, 0x40000000
MOUNT_BIND, MOUNT_REC, MOUNT_PRIVATE = 0x1000, 0x4000, 0x40000
PARENT_DEATH_SIGNAL = 1

PRIVATE = Path("/dev/shm/wanlab")
"""A cloud's own folder, in its own tmpfs."""
HOSTS_VARIABLE = "WANLAB_HOSTS"
"""Where ``agent`` finds clouds: ``cloud0=PID cloud1=PID``, process ids as seen inside."""


def kernel(name: str, *arguments: Any) -> None:
    """A call of the C library that Python 3.10 has no function for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    try:
        kernel("mount", source.encode(), target.encode(), kind.encode(), flags, None)
    except OSError as error:
        raise OSError(
            error.errno, f"mount {kind or source} on {target}: {error.strerror}"
        ) from None


# --- keep -----------------------------------------------------------------------------------------


def keep() -> None:
    spec = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for one by one
    kernel("unshare", NEW_PID | NEW_MOUNTS)
    mount("none", "/", "", MOUNT_REC | MOUNT_PRIVATE)
    # The first child is process 1 inside. Whatever it is the ancestor of dies with it.
    init, _ = child(lambda: mount("proc", "/proc", "proc"))
    hosts = [child(lambda host=host: become(host)) for host in spec["hosts"]]  # type: ignore[misc]
    print(json.dumps({"init": init, "hosts": hosts}), flush=True)
    sys.stdin.read()
    os.kill(init, signal.SIGKILL)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass  # all have ended


def child(prepare: Callable[[], None]) -> tuple[int, int]:
    """A child that prepares itself and then waits to be killed: its id outside, and inside."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel("prctl", PARENT_DEATH_SIGNAL, signal.SIGKILL)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            prepare()
            os.write(writer, str(os.getpid()).encode())
        except BaseException as error:
            os.write(writer, f"error: {error}".encode())
            os._exit(1)
        os.close(writer)
        while True:
            signal.pause()
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    if not said.isdigit():
        raise SystemExit(said or "error: a process of the laboratory was killed at its start")
    return pid, int(said)


def become(host: dict[str, Any]) -> None:
    """Makes this process a host: its own network, name, /dev/shm, /sys and /etc/hosts."""
    kernel("unshare", NEW_NET | NEW_UTS | NEW_MOUNTS)
    socket.sethostname(host["name"])
    mount("tmpfs", "/dev/shm", "tmpfs")  # two hosts share no memory
    mount("sysfs", "/sys", "sysfs")  # where programs look up network devices
    PRIVATE.mkdir()
    for name, text in host["files"].items():
        path = PRIVATE / name
        path.write_text(text)
        path.chmod(0o755)
    if "hosts" in host["files"]:
        mount(str(PRIVATE / "hosts"), "/etc/hosts", "", MOUNT_BIND)
    for name, value in host["sysctls"].items():
        try:
            Path("/proc/sys", *name.split(".")).write_text(value)
        except OSError as error:
            raise OSError(f"sysctl {name}={value} in a network namespace: {error}") from None


# --- enter, agent ---------------------------------------------------------------------------------


def join(pid: str, names: list[str]) -> None:
    folder = Path.cwd()
    fds = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in names]
    for fd in fds:
        kernel("setns", fd, 0)
        os.close(fd)
    os.chdir(folder)  # a new mount namespace starts at its root


def execute(command: list[str]) -> NoReturn:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"wanlab: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


def enter(pid: str, names: str, *command: str) -> NoReturn:
    join(pid, names.split(","))
    forwarded = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    inner = os.fork()  # only children are members of another PID namespace
    if inner == 0:
        kernel("prctl", PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != 0:  # 0 is somebody outside; he was killed before he could be watched
            os._exit(1)
        os.setsid()  # its process group is to have a number inside
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        execute(list(command))

    def forward(signum: int, frame: object) -> None:
        try:
            os.killpg(inner, signum)
        except ProcessLookupError:  # no group of its own yet
            os.kill(inner, signum)

    for each in forwarded:
        signal.signal(each, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    _, status = os.waitpid(inner, 0)
    if os.WIFSIGNALED(status):  # end the same way
        signum = os.WTERMSIG(status)
        if signum != signal.SIGKILL:
            signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    os._exit(os.waitstatus_to_exitcode(status))


def alone(*command: str) -> NoReturn:
    kernel("unshare", NEW_NET)
    execute(list(command))


def agent(*arguments: str) -> NoReturn:
    words = list(arguments)
    while words and words[0].startswith("-"):  # options meant for ssh
        words.pop(0)
    host, *command = words
    hosts = dict(pair.split("=") for pair in os.environ.get(HOSTS_VARIABLE, "").split())
    if host not in hosts:
        raise SystemExit(f"wanlab: there is no host {host}; there are: {' '.join(hosts) or 'none'}")
    join(hosts[host], ["net", "uts", "mnt"])
    execute(["/bin/sh", "-c", " ".join(command)])  # like ssh


def main() -> None:
    job, *arguments = sys.argv[1:]
    jobs: dict[str, Callable[..., None]]
    jobs = {"keep": keep, "enter": enter, "alone": alone, "agent": agent}
    try:
        jobs[job](*arguments)
    except OSError as error:
        raise SystemExit(f"wanlab: {job}: {error.strerror or error}") from None


if __name__ == "__main__":
    main()
