"""Makes the next items in a thread while the ones before are used."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

from pyfedcomm.errors import Error, Timeout

T = TypeVar("T")

_JOIN_S = 10.0


class Prefetch(Generic[T]):
    """The items of an endless iterator, at most ``depth`` of them ahead."""

    def __init__(self, items: Iterator[T], depth: int, timeout: float) -> None:
        """Starts the thread, which alone uses ``items`` from now on.

        timeout: seconds that `next` waits for an item.
        """
        self._items, self._timeout = items, timeout
        self._ready: queue.Queue[T | BaseException] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> T:
        """The next item. Raises Error if it could not be made, this time and each time after;
        Timeout if it does not come.
        """
        if self._failed is None:
            try:
                item = self._ready.get(timeout=self._timeout)
            except queue.Empty:
                raise Timeout(
                    f"[data] no batch for {self._timeout:g} s: the disk that holds the tokens "
                    "(data.cache) does not answer"
                ) from None
            if not isinstance(item, BaseException):
                return item
            self._failed = item
        error = self._failed
        raise Error(
            f"[data] the next batch could not be made: {type(error).__name__}: {error}"
        ) from error

    def close(self) -> None:
        """Ends the thread, and drops what is ready. Idempotent."""
        self._stopped.set()
        # What it is about to put finds room, and then it sees that it has to stop.
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join(_JOIN_S)  # a disk that does not answer must not hold up the end

    def _work(self) -> None:
        try:
            for item in self._items:
                if self._stopped.is_set():
                    return
                self._ready.put(item)
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._ready.put(error)
