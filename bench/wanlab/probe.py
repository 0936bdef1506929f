"""What a measurement runs inside a cloud: a program of its own, with the standard library only.

    rtt ADDRESS COUNT INTERVAL_S                ICMP echoes, which the other kernel answers
    udp ADDRESS PORT PAYLOAD MBIT SECONDS       a steady stream of datagrams
    count ADDRESS PORT                          receives it: samples of the kernel's counters
    transfer ADDRESS PORT ROLE STREAMS BUFFER CONGESTION
                                                TCP in both directions; ROLE is listen or connect

Each prints JSON lines. ``count`` and ``transfer`` obey lines on standard input and end with it.
What the numbers mean is decided in ``measure.py``.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0
"""Without any progress for so long a measurement gives up."""

SO_TIMESTAMPNS, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 35, 32, 33
UDP_SEGMENT, MAX_UDP_SEGMENTS = 103, 64
PIECE = 1 << 18


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def rtt(address: str, count: str, interval_s: str) -> None:
    family = family_of(address)
    v6 = family == socket.AF_INET6
    icmp = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    echo = socket.socket(family, socket.SOCK_RAW, icmp)
    echo.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    mine = os.getpid() & 0xFFFF
    sent: dict[int, float] = {}
    rtts: dict[int, float] = {}
    n, interval = int(count), float(interval_s)
    begin = time.monotonic()
    while len(rtts) < n:
        now = time.monotonic()
        if len(sent) < n and now >= begin + len(sent) * interval:
            sequence = len(sent)
            packet = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, mine, sequence) + bytes(24)
            if not v6:  # there the kernel does it
                packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
            sent[sequence] = time.clock_gettime(time.CLOCK_REALTIME)
            echo.sendto(packet, (address, 0))
        # The kernel's time of arrival counts, so it does not matter when this process wakes up.
        echo.settimeout(max(1e-4, begin + len(sent) * interval - now) if len(sent) < n else 2.0)
        try:
            data, notes, _, _ = echo.recvmsg(256, 64)
        except TimeoutError:
            if len(sent) == n:
                break  # the rest is lost
            continue
        if not v6:
            data = data[(data[0] & 15) * 4 :]
        kind, _, _, who, sequence = struct.unpack_from("!BBHHH", data)
        if kind == (129 if v6 else 0) and who == mine and sequence in sent:
            seconds, nanoseconds = struct.unpack("qq", notes[0][2][:16])
            rtts[sequence] = seconds + 1e-9 * nanoseconds - sent[sequence]
    say(sent=len(sent), rtts_ms=[seconds * 1e3 for seconds in rtts.values()])


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(address: str, port: str, payload: str, mbit: str, seconds: str) -> None:
    """Rate in 10^6 bits a second of IP packets. Bursts are no longer than a millisecond."""
    size = int(payload)
    packet_bytes = size + (48 if ":" in address else 28)
    packets_per_s = float(mbit) * 1e6 / 8 / packet_bytes
    burst = int(max(1, min(MAX_UDP_SEGMENTS, 65000 // size, packets_per_s * 1e-3)))
    sender = socket.socket(family_of(address), socket.SOCK_DGRAM)
    if burst > 1:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    sender.connect((address, int(port)))
    data = bytes(size * burst)
    total = round(packets_per_s * float(seconds))
    first = begin = time.monotonic()
    n = 0
    while n < total:
        wait = begin + n / packets_per_s - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        elif wait < -2e-3:  # after a pause it goes on, and does not make up for it with a burst
            begin -= wait
        with suppress(ConnectionRefusedError):
            sender.send(data)
            n += burst
    say(packets=n, seconds=time.monotonic() - first)


def count(address: str, port: str) -> None:
    """Counts what arrives at a socket, most of which has no room in it."""
    receiver = socket.socket(family_of(address), socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # as small as can be
    receiver.setblocking(False)
    receiver.bind((address, int(port)))
    say(ready=True)
    samples: list[tuple[float, int]] = []
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            stop = selector.select(0.005)
            with suppress(
                BlockingIOError
            ):  # the kernel counts those that were read, and the others
                while True:
                    receiver.recv(1)
            samples.append((time.monotonic(), datagrams()))
            if stop:
                break
    say(samples=samples)


def datagrams() -> int:
    """All that have arrived in this network, whether there was room for them or not."""
    names, values = (
        line.split()
        for line in Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Udp:")
    )
    counters = dict(zip(names, values, strict=True))
    return int(counters["InDatagrams"]) + int(counters["InErrors"])


def transfer(
    address: str, port: str, role: str, n_streams: str, buffer: str, congestion: str
) -> None:
    tuning = (int(buffer), congestion.encode())
    streams = connect(address, int(port), role, int(n_streams), tuning)
    say(ready=True, congestion=congestion_of(streams[0]))
    for line in sys.stdin:  # one transfer a line
        order = json.loads(line)
        received_at: list[float] = []
        receiver = threading.Thread(
            target=lambda n=order["receive"], out=received_at: out.append(receive(streams, n)),
            daemon=True,
        )
        receiver.start()
        time.sleep(max(0.0, order["at"] - time.monotonic()))
        send(streams, order["send"])
        receiver.join(DEADLINE_S)
        say(received_at=received_at[0] if received_at else None)


def connect(
    address: str, port: int, role: str, n_streams: int, tuning: tuple[int, bytes]
) -> list[socket.socket]:
    """Streams tuned as well as the kernel lets us: what they reach is what the link can carry."""
    deadline = time.monotonic() + DEADLINE_S
    streams = []
    if role == "listen":
        listener = socket.create_server(
            (address, port), family=family_of(address), backlog=n_streams
        )
        tune(listener, tuning)
        say(listening=True)
        listener.settimeout(DEADLINE_S)
        for _ in range(n_streams):
            stream, _ = listener.accept()
            streams.append(stream)
    else:
        for _ in range(n_streams):
            stream = socket.socket(family_of(address))
            tune(stream, tuning)
            stream.settimeout(deadline - time.monotonic())
            stream.connect((address, port))
            streams.append(stream)
    for stream in streams:
        tune(stream, tuning)
        stream.setblocking(False)
    return streams


def tune(stream: socket.socket, tuning: tuple[int, bytes]) -> None:
    buffer, congestion = tuning
    with suppress(FileNotFoundError):  # this kernel does not have it: its default is used
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        stream.setsockopt(socket.SOL_SOCKET, option, buffer)


def congestion_of(stream: socket.socket) -> str:
    name = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.partition(b"\0")[0].decode()


def send(streams: list[socket.socket], n_bytes: int) -> None:
    """A piece goes to whichever stream has room, so the slowest does not hold the rest."""
    piece = memoryview(bytes(PIECE))
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_WRITE)
        while n_bytes > 0:
            ready = selector.select(DEADLINE_S)
            if not ready:
                return
            for key, _ in ready:
                with suppress(BlockingIOError):
                    n_bytes -= key.fileobj.send(piece[: min(PIECE, n_bytes)])  # type: ignore[union-attr]
                if n_bytes == 0:
                    return


def receive(streams: list[socket.socket], n_bytes: int) -> float:
    """The time at which the last byte was there."""
    buffer = bytearray(1 << 20)
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while n_bytes > 0:
            ready = selector.select(DEADLINE_S)
            if not ready:
                raise TimeoutError(f"{n_bytes} bytes have not arrived")
            for key, _ in ready:
                with suppress(BlockingIOError):
                    n = key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
                    if n == 0:
                        raise ConnectionError(f"closed with {n_bytes} bytes to come")
                    n_bytes -= n
    return time.monotonic()


def main() -> None:
    job, *arguments = sys.argv[1:]
    jobs: dict[str, Callable[..., None]]
    jobs = {"rtt": rtt, "udp": udp, "count": count, "transfer": transfer}
    if job != "transfer":  # a stream that stops and starts would measure this machine's scheduler
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        jobs[job](*arguments)
    except OSError as error:
        raise SystemExit(f"wanlab probe: {job}: {error}") from None


if __name__ == "__main__":
    main()
