"""Where ranks that share no ``mpirun`` meet: an address that rank 0 serves until all have come.

Every rank tells rank 0 something (its addresses), and gets what all have told. With a key, both
ends prove that they know it (HMAC-SHA256 over fresh random numbers), and nobody else learns what
was told. Nothing is encrypted. A stranger costs a meeting no more than a thread for 5 seconds.

It ends for all ranks alike, with the reason on each: who did not come, or who came twice.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyfedcomm.errors import AuthenticationError, ConfigError, CorruptFrame, Error, Timeout

VERSION = 1
_MAX_LINE = 1 << 22
_HELLO_S = 5.0
_MOST_VISITORS = 256
_KINDS: dict[str, type[Error]] = {
    "config": ConfigError,
    "key": AuthenticationError,
    "timeout": Timeout,
}


@dataclass(frozen=True)
class Rendezvous:
    """One rank's way to the meeting of ``size`` ranks."""

    address: str
    """``host:port``; rank 0 listens there, on that address if it is its own, else on all."""
    rank: int
    size: int
    key: str = ""
    timeout: float = 120.0
    """Seconds until all must have come."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"[tcp] rank {self.rank} is not one of {self.size}")
        host, colon, port = self.address.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"[tcp] rendezvous is {self.address!r}; it must be host:port, as in 10.0.0.7:5000"
            )

    @property
    def host(self) -> str:
        """Name or address."""
        return self.address.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        """Of rank 0."""
        return int(self.address.rpartition(":")[2])

    def exchange(self, mine: dict[str, Any]) -> list[Any]:
        """What all ranks told, by rank. Collective; at most ``timeout`` and some seconds.

        Raises Timeout naming who did not come, AuthenticationError where keys differ, ConfigError.
        """
        if self.size == 1:
            return [mine]
        return _Host(self).gather(mine) if self.rank == 0 else _Visitor(self).visit(mine)

    def error(self, kind: str, text: str) -> Error:
        """As it is raised, on whichever rank."""
        return _KINDS.get(kind, ConfigError)(f"[tcp] rendezvous {self.address}: {text}")

    def proof(self, role: str, nonce: str, body: str) -> str:
        """That the sender of ``body`` knows the key, now."""
        text = f"{role}:{nonce}:{body}".encode()
        return hmac.new(self.key.encode(), text, hashlib.sha256).hexdigest()

    def proves(self, proof: object, role: str, nonce: str, body: str) -> bool:
        """Whether ``proof`` is that."""
        return hmac.compare_digest(self.proof(role, nonce, body).encode(), str(proof).encode())


class _Refused(Exception):
    """A visitor is sent away, with the reason."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass
class _Guest:
    """A rank that has come, and waits for the others."""

    connection: socket.socket
    nonce: str
    who: str
    """Drawn by the process: a rank that connects again is not a second one."""
    told: Any

    def is_waiting(self) -> bool:
        """Whether it has neither hung up nor, which none does, said more."""
        stirs = select.poll()
        stirs.register(self.connection, select.POLLIN)
        return not stirs.poll(0)


class _Host:
    """Rank 0: waits for all others, then tells each what all have told."""

    def __init__(self, meeting: Rendezvous) -> None:
        self.meeting = meeting
        self.lock = threading.Lock()
        self.guests: dict[int, _Guest] = {}
        self.conflict = ""
        self.refused = ""
        self.visitors = threading.Semaphore(_MOST_VISITORS)
        try:
            self.server = _listen(meeting.host, meeting.port)
        except OSError as error:
            raise meeting.error("config", f"rank 0 cannot listen there: {error}") from error

    def gather(self, mine: dict[str, Any]) -> list[Any]:
        try:
            self._wait_for_all()
        except Error as error:
            kind = next(name for name, each in _KINDS.items() if isinstance(error, each))
            text = str(error).partition(f"{self.meeting.address}: ")[2]
            self._tell_all(lambda _: {"error": kind, "text": text})
            raise
        else:
            told = [mine] + [self.guests[rank].told for rank in range(1, self.meeting.size)]
            body = json.dumps(told)
            self._tell_all(
                lambda guest: {
                    "body": body,
                    "proof": self.meeting.proof("host", guest.nonce, body),
                }
            )
            return told
        finally:
            self.server.close()
            for guest in self.guests.values():
                guest.connection.close()

    def _wait_for_all(self) -> None:
        deadline = time.monotonic() + self.meeting.timeout
        self.server.settimeout(0.05)
        while True:
            with self.lock:
                if self.conflict:
                    raise self.meeting.error("config", self.conflict)
                if len(self.guests) == self.meeting.size - 1:
                    return
            if time.monotonic() > deadline:
                raise self.meeting.error("timeout", self._who_is_missing())
            with contextlib.suppress(TimeoutError):
                connection, _ = self.server.accept()
                if self.visitors.acquire(blocking=False):
                    threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()
                else:
                    connection.close()

    def _who_is_missing(self) -> str:
        missing = [str(r) for r in range(1, self.meeting.size) if r not in self.guests]
        text = f"rank {', '.join(missing)} did not come within {self.meeting.timeout:g} s"
        return text + (f"; turned away: {self.refused}" if self.refused else "")

    def _tell_all(self, message: Callable[[_Guest], dict[str, Any]]) -> None:
        for guest in self.guests.values():
            with contextlib.suppress(OSError):  # it will be missed in the first operation
                guest.connection.settimeout(_HELLO_S)
                _say(guest.connection, message(guest))

    def _welcome(self, connection: socket.socket) -> None:
        """One visitor; whatever it says wrong costs its own connection only."""
        try:
            connection.settimeout(_HELLO_S)
            nonce = secrets.token_hex(16)
            _say(connection, {"pyfedcomm": VERSION, "nonce": nonce})
            said = _hear(connection, time.monotonic() + _HELLO_S)
            self._admit(connection, said, nonce)
        except _Refused as refusal:
            with contextlib.suppress(OSError):
                self.refused = f"{connection.getpeername()[0]} ({refusal})"
                _say(connection, {"error": refusal.kind, "text": str(refusal)})
            connection.close()
        except (OSError, Error, ValueError, KeyError, TypeError, IndexError, AttributeError):
            connection.close()
        finally:
            self.visitors.release()

    def _admit(self, connection: socket.socket, said: dict[str, Any], nonce: str) -> None:
        if said.get("pyfedcomm") != VERSION:
            raise _Refused("config", f"rank 0 speaks version {VERSION} of the rendezvous")
        if not self.meeting.proves(said["proof"], "visitor", nonce, str(said["body"])):
            raise _Refused("key", "the key differs from that of rank 0; give all ranks the same")
        body = json.loads(said["body"])
        rank, size = body["rank"], body["size"]
        if size != self.meeting.size:
            raise _Refused("config", f"rank 0 expects {self.meeting.size} ranks, not {size}")
        if not isinstance(rank, int) or not 0 < rank < size:
            raise _Refused(
                "config", f"a visitor says that it is rank {rank}; those are 1 to {size - 1}"
            )
        seen = connection.getpeername()[0]
        _also_at(seen, body["told"])
        guest = _Guest(connection, str(said["nonce"]), str(body["who"]), body["told"])
        with self.lock:
            before = self.guests.get(rank)
            if before and before.who != guest.who and before.is_waiting():
                other = before.connection.getpeername()[0]
                self.conflict = (
                    f"two processes say that they are rank {rank}, at {other} and {seen}; "
                    "give each rank a number of its own"
                )
                raise _Refused("config", self.conflict)
            self.guests[rank] = guest
        if before:
            before.connection.close()


class _Visitor:
    """Any other rank: tries until rank 0 is there, then waits with it."""

    def __init__(self, meeting: Rendezvous) -> None:
        self.meeting = meeting
        self.who = secrets.token_hex(8)
        self.deadline = time.monotonic() + meeting.timeout

    def visit(self, mine: dict[str, Any]) -> list[Any]:
        pause, trouble = 0.05, "no attempt was made"
        meeting = self.meeting
        while time.monotonic() < self.deadline:
            try:
                place = (meeting.host, meeting.port)
                with socket.create_connection(place, timeout=_HELLO_S) as connection:
                    return self._ask(connection, mine)
            except Error:  # before OSError: our Timeout is one as well
                raise
            except OSError as error:
                trouble = str(error)
            time.sleep(min(pause, max(0.0, self.deadline - time.monotonic())))
            pause = min(1.0, 2 * pause)
        raise meeting.error(
            "timeout",
            f"rank {meeting.rank} did not reach rank 0 within {meeting.timeout:g} s ({trouble}); "
            "is rank 0 started, and the port open?",
        )

    def _ask(self, connection: socket.socket, mine: dict[str, Any]) -> list[Any]:
        meeting = self.meeting
        hello = _hear(connection, time.monotonic() + _HELLO_S)
        if hello.get("pyfedcomm") != VERSION:
            raise meeting.error("config", "something else than this version's rank 0 answers there")
        nonce = secrets.token_hex(16)
        body = json.dumps(
            {"rank": meeting.rank, "size": meeting.size, "who": self.who, "told": mine}
        )
        proof = meeting.proof("visitor", str(hello.get("nonce")), body)
        _say(connection, {"pyfedcomm": VERSION, "nonce": nonce, "body": body, "proof": proof})
        # Rank 0 may have begun to wait later, and says best who is missing.
        answer = _hear(connection, max(self.deadline, time.monotonic()) + _HELLO_S)
        if "error" in answer:
            raise meeting.error(str(answer["error"]), str(answer.get("text")))
        if not meeting.proves(answer.get("proof"), "host", nonce, str(answer.get("body"))):
            raise meeting.error("key", "what answers there does not know the key")
        told = json.loads(answer["body"])
        if not isinstance(told, list) or len(told) != meeting.size:
            raise CorruptFrame(f"[tcp] rendezvous {meeting.address}: not one answer for each rank")
        _also_at(connection.getpeername()[0], told[0])
        return told


def _also_at(host: str, told: Any) -> None:
    """Adds the address at which a rank was seen: its own idea of it may not hold from outside."""
    if "addresses" in told:
        port = int(str(told["addresses"][0]).rpartition(":")[2])
        told["addresses"].append(_join(host, port))


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    # An address that others know this host by, and that a router in between translates.
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=512)


def _say(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """One line of JSON. Raises OSError where the connection ends, or the time; CorruptFrame."""
    line = bytearray()
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer")
        connection.settimeout(left)
        part = connection.recv(65536)
        if not part:
            raise ConnectionResetError("it closed the connection")
        line += part
        if len(line) > _MAX_LINE:
            raise CorruptFrame("[tcp] a message at the rendezvous is too long")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptFrame("[tcp] what answers at the rendezvous is not pyfedcomm") from error
    if not isinstance(message, dict):
        raise CorruptFrame("[tcp] what answers at the rendezvous is not pyfedcomm")
    return message


def _join(host: str, port: int) -> str:
    host = host.removeprefix("::ffff:").partition("%")[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
