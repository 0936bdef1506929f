"""The TCP transport from Python: meeting, options, faults. What a hostile or broken peer can do to
a stream is in tests/cpp/test_tcp.cpp; what all transports promise in test_group.py, test_mpi.py.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from ranks import bits, integers, run_ranks
from tcp_ranks import LOOPBACK, free_port, start, tcp_fabrics, tcp_groups, together

import pyfedcomm as fc
from pyfedcomm import _core
from pyfedcomm.rendezvous import Rendezvous
from pyfedcomm.tcp import open_fabric


def meet(port: int, rank: int, size: int, host: str = LOOPBACK, **options: Any) -> fc.Group:
    options.setdefault("meet_timeout", 20.0)
    return fc.Group.connect(f"{host}:{port}", rank=rank, size=size, **options)


def meeting(port: int, rank: int, size: int, key: str = "", timeout: float = 10.0) -> Any:
    return Rendezvous(f"{LOOPBACK}:{port}", rank, size, key, timeout).exchange({"rank": rank})


# --- meeting --------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [LOOPBACK, "[::1]", "localhost"])
def test_ranks_meet_and_reduce(host: str) -> None:
    if host == "[::1]":
        try:
            port = free_port("::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
    else:
        port = free_port()

    def rank(r: int) -> tuple[bytes, fc.LinkStats]:
        with meet(port, r, 3, host, key="secret") as group:
            x = integers(r, 100_000)
            group.all_reduce(x)
            assert group.transport == "tcp"
            stats = group.link_stats((r + 1) % 3)
            return bits(x), stats

    told = together(*(lambda r=r: rank(r) for r in (2, 0, 1)))
    for each in told:
        assert isinstance(each, tuple), each
        assert each[0] == bits(np.sum([integers(r, 100_000) for r in range(3)], axis=0))
        assert each[1].streams == 1
        assert each[1].frame_bytes_sent > 0


def test_a_rank_that_does_not_come_is_named_on_every_rank() -> None:
    port = free_port()
    told = together(*(lambda r=r: meeting(port, r, 4, timeout=1.5) for r in (0, 1, 3)))
    for error in told:
        assert isinstance(error, fc.Timeout), error
        assert f"rendezvous {LOOPBACK}:{port}: rank 2 did not come within 1.5 s" in str(error)


def test_without_rank_0_nobody_meets() -> None:
    began = time.monotonic()
    with pytest.raises(fc.Timeout, match=r"rank 1 did not reach rank 0 within 1 s \(.*refused"):
        meeting(free_port(), 1, 2, timeout=1.0)
    assert time.monotonic() - began < 5


def test_a_wrong_key_is_told_to_both_ends() -> None:
    port = free_port()
    told = together(
        lambda: meeting(port, 0, 2, "right", 2.0), lambda: meeting(port, 1, 2, "wrong", 2.0)
    )
    assert isinstance(told[1], fc.AuthenticationError)
    assert "the key differs from that of rank 0" in str(told[1])
    assert isinstance(told[0], fc.Timeout)
    assert "rank 1 did not come" in str(told[0])
    assert f"turned away: {LOOPBACK} (the key differs" in str(told[0])


def test_a_host_that_does_not_know_the_key_is_refused() -> None:
    """It lets every visitor in, and cannot prove anything to it."""
    with socket.create_server((LOOPBACK, 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b'{"pyfedcomm": 1, "nonce": "00"}\n')
                connection.recv(65536)
                connection.sendall(b'{"body": "[{}, {}]", "proof": "11"}\n')

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(fc.AuthenticationError, match=r"does not know the key"):
            meeting(server.getsockname()[1], 1, 2, "secret")
        thread.join(10)


def test_two_ranks_with_the_same_number_are_an_error_on_all() -> None:
    port = free_port()
    told = together(*(lambda r=r: meeting(port, r, 4) for r in (0, 1, 2, 2)))
    for error in told:
        assert isinstance(error, fc.ConfigError), error
        assert "two processes say that they are rank 2" in str(error)
        assert "give each rank a number of its own" in str(error)


def test_a_rank_that_was_started_again_may_come_again() -> None:
    port = free_port()

    def restarted() -> Any:
        visitor = start(
            "import sys, test_tcp; test_tcp.meeting(int(sys.argv[1]), 1, 3, timeout=60)", str(port)
        )
        time.sleep(4)
        visitor.kill()
        visitor.communicate()
        return meeting(port, 1, 3)

    def late() -> Any:
        time.sleep(6)
        return meeting(port, 2, 3)

    told = together(lambda: meeting(port, 0, 3, timeout=30), restarted, late)
    assert told == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


@pytest.mark.parametrize(("size", "rank"), [(3, 1), (2, 5)])
def test_another_number_of_ranks(size: int, rank: int) -> None:
    port = free_port()
    if rank >= size:
        with pytest.raises(fc.ConfigError, match=r"rank 5 is not one of 2"):
            meeting(port, rank, size)
        return
    told = together(lambda: meeting(port, 0, 2, timeout=1.0), lambda: meeting(port, rank, size))
    assert isinstance(told[1], fc.ConfigError)
    assert "rank 0 expects 2 ranks, not 3" in str(told[1])


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b'{"pyfedcomm": 9}\n',
        b'{"pyfedcomm": 1}\n',
        b'{"pyfedcomm": 1, "nonce": "0", "body": "{", "proof": 0}\n',
        b"[" * 100_000 + b"\n",
        os.urandom(5000) + b"\n",
    ],
)
def test_strangers_do_not_disturb_a_meeting(words: bytes) -> None:
    port = free_port()

    def stranger() -> None:
        for _ in range(100):
            try:
                with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
                    connection.sendall(words)
                    return
            except OSError:
                time.sleep(0.02)

    def late() -> Any:
        time.sleep(0.5)
        return meeting(port, 1, 2, "secret")

    told = together(lambda: meeting(port, 0, 2, "secret"), late, stranger)
    assert told[:2] == [[{"rank": 0}, {"rank": 1}]] * 2


def test_what_answers_is_not_pyfedcomm() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(fc.CorruptFrame, match=r"is not pyfedcomm"):
            meeting(server.getsockname()[1], 1, 2)
        thread.join(10)


def test_a_port_in_use() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(fc.ConfigError, match=rf"{port}: rank 0 cannot listen there: .*in use"):
            meeting(port, 0, 2)
        # The port of one rank's sockets: every rank hears of it.
        place = free_port()
        taken = fc.TcpOptions(interface=LOOPBACK, port=port)
        told = together(
            lambda: meet(place, 0, 2), lambda: meet(place, 1, 2, tcp=taken, timeout=5.0)
        )
        for error in told:
            assert isinstance(error, fc.ConfigError), error
            assert f"cannot listen on port {port} of {LOOPBACK}" in str(error)
        assert "rank 1: " in str(told[0])


def test_a_full_listen_queue_is_waited_for() -> None:
    """Nobody accepts for a while, and more knock than the queue holds: later they come in."""
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen(1)
    port = listener.getsockname()[1]
    knocks = []
    for _ in range(4):
        knock = socket.socket()
        knock.setblocking(False)
        knock.connect_ex((LOOPBACK, port))
        knocks.append(knock)

    def visit() -> Any:
        return meeting(port, 1, 2, timeout=30)

    def open_up() -> Any:
        time.sleep(1.0)
        listener.close()
        for knock in knocks:
            knock.close()
        return meeting(port, 0, 2, timeout=30)

    assert together(open_up, visit) == [[{"rank": 0}, {"rank": 1}]] * 2


@pytest.mark.parametrize("bad", ["", "host", ":5", "host:", "host:x", "host:0", "host:70000"])
def test_a_rendezvous_that_is_no_address(bad: str) -> None:
    with pytest.raises(fc.ConfigError, match=r"must be host:port"):
        fc.Group.connect(bad, rank=0, size=2)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"addresses": 5, "session": 1, "token": "00" * 16},
        {"addresses": [], "session": "x", "token": "00" * 16},
        {"addresses": [], "session": 1 << 80, "token": "00" * 16},
        {"addresses": [], "session": 1, "token": "no"},
        7,
    ],
)
def test_nonsense_told_at_a_meeting(told: Any) -> None:
    with pytest.raises(fc.CorruptFrame, match=r"make no sense"):
        open_fabric(1, lambda mine: [told, mine], None)


def test_addresses_that_are_none() -> None:
    row = {"addresses": ["name.example:5"], "session": 1, "token": "00" * 16}
    with pytest.raises(fc.InvalidArgument, match=r"no address of the form"):
        open_fabric(1, lambda mine: [row, mine], None)


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"streams": -1},
        {"streams": 65},
        {"port": -1},
        {"port": 65000, "n_ports": 1000},
        {"socket_bytes": -1},
    ],
)
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(fc.ConfigError, match=rf"tcp.{next(iter(options))} is"):
        fc.TcpOptions(**options)  # type: ignore[arg-type]


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(fc.ConfigError, match=r"no interface or address no-such.*there are lo"):
        open_fabric(0, lambda mine: [mine], fc.TcpOptions(interface="no-such"))


def test_an_interface_by_name() -> None:
    listener = _core.TcpListener({"interface": "lo"})
    assert all(a.startswith(("127.", "[::1]")) for a in listener.addresses())


def test_a_transport_that_is_none() -> None:
    with pytest.raises(fc.InvalidArgument, match=r"transport is 'rdma'"):
        fc.Group.world(transport="rdma")


def test_link_stats_are_of_members() -> None:
    def rank(group: fc.Group) -> None:
        group.barrier()
        for member in (-1, group.rank, 2):
            with pytest.raises(fc.InvalidArgument, match=r"no link to member"):
                group.link_stats(member)
        stats = group.link_stats(1 - group.rank)
        assert stats.streams is not None
        assert 1 <= stats.streams <= 3
        assert stats.wire_bytes_sent is not None
        assert stats.wire_bytes_sent >= stats.frame_bytes_sent > 0
        assert stats.sent_segments is not None
        assert stats.sent_segments > 0

    run_ranks(2, rank, transport="tcp")


# --- faults ---------------------------------------------------------------------------------


def all_reduce_on(groups: list[fc.Group], n: int) -> list[Any]:
    def reduce(group: fc.Group) -> bytes:
        x = integers(group.rank, n)
        group.all_reduce(x)
        return bits(x)

    return together(*(lambda g=g: reduce(g) for g in groups))


@pytest.mark.parametrize("fault", ["cut", "slow"])
def test_streams_that_fail_do_not_change_a_result(fault: str) -> None:
    """A stream reset in the middle of an operation; one that is many times slower than the rest."""
    n = 2_000_000
    options = fc.TcpOptions(interface=LOOPBACK, streams=4)
    fabrics = tcp_fabrics(2, options)
    opened = together(*(lambda f=f: fc.Group(_core.Group.open(f, 20.0)) for f in fabrics))
    groups = [g for g in opened if isinstance(g, fc.Group)]
    truth = bits(integers(0, n) + integers(1, n))
    assert all_reduce_on(groups, n) == [truth] * 2
    for stream in (1, 3):
        fabrics[0].inject(fault, 1, stream, 100_000 if fault == "cut" else 100)
    assert all_reduce_on(groups, n) == [truth] * 2
    assert all_reduce_on(groups, 1000) == [bits(integers(0, 1000) + integers(1, 1000))] * 2
    if fault == "cut":
        both = [g.link_stats(1 - g.rank) for g in groups]
        assert sum(s.reconnects or 0 for s in both) >= 2
        assert sum(s.resent_bytes or 0 for s in both) > 0
    for group in groups:
        group.close()


STOPPED = """
import sys, numpy as np, pyfedcomm as fc
group = fc.Group.connect(sys.argv[1], rank=int(sys.argv[2]), size=2, timeout=2.0)
for i in range(10**6):
    group.all_reduce(np.ones(300_000, np.float32))
    if i == 3:
        print("running", flush=True)
"""


def test_a_stopped_process_is_named_at_the_deadline() -> None:
    place = f"{LOOPBACK}:{free_port()}"
    ranks = [start(STOPPED, place, str(rank)) for rank in range(2)]
    try:
        assert ranks[1].stdout is not None
        assert ranks[1].stdout.readline() == "running\n"
        os.kill(ranks[1].pid, signal.SIGSTOP)
        output, _ = ranks[0].communicate(timeout=60)
        assert "Timeout: [tcp] rank 1: no progress for 2 s" in output, output
    finally:
        for each in ranks:
            each.kill()
            each.communicate()


def test_a_killed_process_is_named() -> None:
    place = f"{LOOPBACK}:{free_port()}"
    ranks = [start(STOPPED, place, str(rank)) for rank in range(2)]
    try:
        assert ranks[1].stdout is not None
        assert ranks[1].stdout.readline() == "running\n"
        ranks[1].kill()
        output, _ = ranks[0].communicate(timeout=60)
        assert "PeerLost: [tcp] rank 1: " in output, output
    finally:
        for each in ranks:
            each.kill()
            each.communicate()


def test_a_group_dropped_without_close_ends() -> None:
    groups = tcp_groups(2)
    assert all(isinstance(each, bytes) for each in all_reduce_on(groups, 1000))
    began = time.monotonic()
    groups.clear()
    assert time.monotonic() - began < 10
