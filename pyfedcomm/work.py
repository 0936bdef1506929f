"""The handle of an asynchronous operation. What operations there are is in ``group``."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pyfedcomm import _core

T = TypeVar("T")


class Work(Generic[T]):
    """Handle of an asynchronous operation."""

    def __init__(self, handle: _core.Work, finish: Any, keep: object) -> None:
        self._handle = handle
        self._finish = finish
        self._keep = keep  # the buffers that C++ writes to
        self._result: T | None = None
        self._finished = False

    def wait(self, timeout: float | None = None) -> T:
        """Blocks, with the GIL released, until the result is there; returns it.

        ``timeout`` in seconds bounds this wait only: when it expires ``Timeout`` is raised and
        the operation goes on. Without it the operation's own no-progress deadline ends the wait.
        """
        self._handle.wait(timeout)
        if not self._finished:
            self._result = self._finish()
            self._finished, self._keep = True, None
        return self._result  # type: ignore[return-value]  # set by the lines above

    def done(self) -> bool:
        """True once the operation has ended, well or badly. Never blocks."""
        return self._handle.done()

    def exception(self) -> Exception | None:
        """The error the operation ended with; None while it runs and after success."""
        return self._handle.exception()
