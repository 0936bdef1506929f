"""The host of `async`: serves every cloud's pushes beside the training of its own cloud.

A thread for each other cloud receives, applies and answers; a lock makes of the pushes one order,
that of their arrival. What a push does to the model is ``server``'s. If a cloud fails, everybody
is told, and the next call of the host's own cloud raises it.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from pyfedcomm.codecs import Codec
from pyfedcomm.errors import PeerLost
from pyfedcomm.group import Group
from pyfedcomm.sync.config import SyncConfig
from pyfedcomm.sync.line import Line, Push, Reply
from pyfedcomm.sync.server import Server

NOWHERE = -1
"""No step of the run to meet at."""


class Host:
    """Cloud 0's; the others have a `Line` to it."""

    server: Server

    def __init__(
        self,
        start: torch.Tensor,
        n_clouds: int,
        lines: dict[int, Line],
        pairs: dict[int, Group],
        codec: Codec,
        config: SyncConfig,
    ) -> None:
        """lines, pairs: by cloud. Serves nobody before `serve`."""
        self.server = Server(start, n_clouds, config)
        self.excluded = [0] * n_clouds
        self._lines, self._pairs, self._codec = lines, pairs, codec
        self._changed = threading.Condition()  # guards all that is below, and the server
        self._meet_at = NOWHERE
        self._finals: dict[int, tuple[Push, torch.Tensor]] = {}
        self._failed: Exception | None = None
        self._threads: dict[int, threading.Thread] = {}

    def serve(self) -> None:
        """Serves all clouds from now on, until each has made its final push."""
        for cloud in self._lines:
            if cloud not in self._threads:
                name = f"host of cloud {cloud}"
                # A daemon: what it waits for has deadlines, or ends with the process.
                thread = threading.Thread(target=self._serve, args=(cloud,), name=name, daemon=True)
                self._threads[cloud] = thread
                thread.start()

    def meet(self, step: int) -> None:
        """Each cloud that pushes once the run is at ``step`` is told; those that were go on."""
        with self._changed:
            self._meet_at = step
            self._changed.notify_all()

    def push(
        self, push: Push, delta: torch.Tensor, start: torch.Tensor
    ) -> tuple[Reply, list[float]]:
        """The own cloud's, uncoded; ``start`` becomes the model. Takes ``delta``'s memory."""
        if push.final:
            return self._finish(push, delta, start)
        with self._changed:
            if self._failed is not None:
                raise self._failed
            self._apply(0, push, delta)
            self.server.sent(0)
            start.copy_(self.server.model)
            return self._reply(), [float(n) for n in self.excluded]

    def state_dict(self) -> dict[str, Any]:
        """The server's, while no cloud pushes."""
        with self._changed:
            return {**self.server.state_dict(), "server.excluded": list(self.excluded)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Server.load_state_dict`."""
        with self._changed:
            self.server.load_state_dict(state)
            self.excluded = [int(n) for n in state["server.excluded"]]

    # --- inside ----------------------------------------------------------------------------------

    def _serve(self, cloud: int) -> None:
        try:
            while self._answer(cloud):
                pass
        except Exception as error:
            if isinstance(error, PeerLost):
                error.cloud = cloud
            with self._changed:
                self._failed = self._failed or error
            for pair in self._pairs.values():
                pair.abort(f"the host of async: {error}")

    def _answer(self, cloud: int) -> bool:
        """One push; False if it was the final one, which all clouds wait with for each other."""
        line = self._lines[cloud]
        push, data = line.receive_push()
        delta = torch.from_numpy(line.decode(data)) if len(data) else torch.empty(0)
        with self._changed:
            if push.final:
                self._finals[cloud] = push, delta
                return False
            self._apply(cloud, push, delta)
            difference = self._codec.encode(
                self.server.difference(cloud).numpy(), round=self.server.pushes, member=cloud
            )
            self.server.sent(cloud, torch.from_numpy(line.decode(difference)))
            reply, excluded = self._reply(), [float(n) for n in self.excluded]
        line.send(reply, excluded, difference)
        with self._changed:
            # While clouds are together none pushes, however long that is.
            self._changed.wait_for(lambda: reply.meet == NOWHERE or self._meet_at != reply.meet)
        return True

    def _apply(self, cloud: int, push: Push, delta: torch.Tensor) -> None:
        self.excluded[cloud] += int(push.left_out)
        self.server.push(cloud, delta, push.weight, int(push.steps))

    def _reply(self) -> Reply:
        steps, version = self.server.steps, self.server.version
        there = self._meet_at != NOWHERE and steps >= self._meet_at
        return Reply(steps, version, self._meet_at if there else NOWHERE)

    def _finish(
        self, push: Push, delta: torch.Tensor, start: torch.Tensor
    ) -> tuple[Reply, list[float]]:
        """When all clouds have pushed: the same model to all, and nobody is served any more."""
        self.meet(NOWHERE)
        for thread in self._threads.values():
            thread.join()
        self._threads.clear()
        if self._failed is not None:
            raise self._failed
        finals, self._finals = {0: (push, delta), **self._finals}, {}
        for cloud in sorted(finals):
            self._apply(cloud, *finals[cloud])
        self.server.flush()
        for cloud in range(len(self.excluded)):
            self.server.sent(cloud)
        start.copy_(self.server.model)
        reply, excluded = self._reply(), [float(n) for n in self.excluded]
        for line in self._lines.values():
            line.send(reply, excluded)
            line.send_model(start.numpy())
        return reply, excluded
