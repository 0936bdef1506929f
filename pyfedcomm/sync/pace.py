"""How many steps each cloud takes in a round, so that fast and slow ones finish it together.

Each cloud tells with what it sends how long a step of it takes; everybody then deals out the next
round's steps from the same numbers, by the same arithmetic. It measures and counts: what a round
is, and when it is over, is ``local``'s.
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_WINDOW = 32
"""Steps that the median is taken of. A pause (an evaluation, a checkpoint) is one of them."""


class Pace:
    """This cloud's steps of the round under way.

    steps: of this cloud in this round. Equal in all clouds until they have told how fast they are,
        and always where the rule does not adapt.
    """

    def __init__(
        self, local_steps: int, *, adaptive: bool, cloud: int, least: int, most: int
    ) -> None:
        """least, most: bounds of a cloud's steps in a round, around ``local_steps``."""
        self.clock: Callable[[], float] = time.perf_counter
        self.steps = local_steps
        self._local_steps, self._adaptive = local_steps, adaptive
        self._cloud, self._least, self._most = cloud, least, most
        self._next = local_steps
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._begun: float | None = None

    @property
    def share(self) -> float:
        """What a step of this cloud is of a step of the run, whose rounds have ``local_steps``."""
        return self._local_steps / self.steps

    def begin(self) -> None:
        """A step begins: what belongs to the exchange is over."""
        self._begun = self.clock()

    def end(self, position: int) -> None:
        """The step ends, the ``position``-th of its round; what belongs to the exchange is next.

        The first step of a round counts only where there is no other: between rounds ranks may
        have waited for each other for reasons of their own.
        """
        counts = self._adaptive and (position > 1 or self.steps == 1)
        if self._begun is not None and counts:
            self._seconds.append(self.clock() - self._begun)
        self._begun = None

    @property
    def seconds(self) -> float:
        """A step's, as it is told to the others: the median of the last ones; 0 if not known."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    def agree(self, seconds: Sequence[float]) -> None:
        """What all clouds told decides the steps of the next round that begins."""
        if self._adaptive and seconds and all(s > 0 for s in seconds):
            dealt = deal(self._local_steps * len(seconds), seconds, self._least, self._most)
            self._next = dealt[self._cloud]

    def next_round(self) -> None:
        """The round is over."""
        self.steps = self._next

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"steps": self.steps, "next": self._next, "seconds": list(self._seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.steps, self._next = int(state["steps"]), int(state["next"])
        self._seconds = deque(map(float, state["seconds"]), maxlen=_WINDOW)


def deal(n_steps: int, seconds: Sequence[float], least: int, most: int) -> list[int]:
    """Deals steps to clouds whose steps take ``seconds`` so that the last one ends soonest.

    Each step goes to the cloud that would be done with it first, the lowest at a tie: no other
    deal ends earlier. Every cloud has ``least`` to ``most``; ``n_steps`` lies between what that
    allows.
    """
    steps = [least] * len(seconds)
    queue = [((least + 1) * s, cloud) for cloud, s in enumerate(seconds) if least < most]
    heapq.heapify(queue)
    for _ in range(n_steps - least * len(seconds)):
        _, cloud = heapq.heappop(queue)
        steps[cloud] += 1
        if steps[cloud] < most:
            heapq.heappush(queue, ((steps[cloud] + 1) * seconds[cloud], cloud))
    return steps
