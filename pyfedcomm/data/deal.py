"""Which cloud trains on which sequences of an epoch, and in which order; and how that is changed.

The sequences of an epoch are parts, one a cloud at first, and a part has an order (see
``stream``). A cloud's queue is a list of runs, pieces of such orders; its ranks take the sequences
of the queue in turn. From time to time what is left of an epoch is dealt anew, in proportion to
what each cloud has trained on since the deal before, so that all come to its end together:

    have     a: 90   b: 90      a took 30, b 10: the rates are 3 to 1
    target   a: 135  b: 45      b gives the end of its queue, in whole shards, to a

Integers only: every rank computes the same deal from the same counts, and nothing is lost or seen
twice, because runs are cut and moved and never made, but by the next epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyfedcomm.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """Consecutive sequences of a part's order in an epoch."""

    epoch: int
    part: int
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


class Deal:
    """The queues of all clouds; equal on all ranks that make the same calls."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """lengths: sequences of each cloud's part, at least 1."""
        self._lengths = list(lengths)
        self._shares = list(lengths)
        """By which the next epochs are dealt: at first everybody keeps its part."""
        self._shard = 1
        self._next_epoch = 0
        self._queues: list[list[Run]] = [[] for _ in lengths]

    def copy(self) -> Deal:
        """One that goes on by itself."""
        other = Deal(self._lengths)
        other.load_state_dict(self.state_dict())
        return other

    def take(self, cloud: int, begin: int, end: int) -> list[Run]:
        """The runs at places ``begin`` to ``end`` of a cloud's queue, which never ends."""
        while self._length(cloud) < end:
            self._deal_next_epoch()
        taken, place = [], 0
        for run in self._queues[cloud]:
            first, last = max(begin - place, 0), min(end - place, len(run))
            if first < last:
                taken.append(Run(run.epoch, run.part, run.begin + first, run.begin + last))
            place += len(run)
        return taken

    def drop(self, taken: Sequence[int]) -> None:
        """Forgets the first sequences of each cloud's queue: so many have been trained on."""
        for cloud, n in enumerate(taken):
            while self._length(cloud) < n:
                self._deal_next_epoch()
        for cloud, n in enumerate(taken):
            left = []
            for run in self._queues[cloud]:
                gone = min(n, len(run))
                n -= gone
                if gone < len(run):
                    left.append(Run(run.epoch, run.part, run.begin + gone, run.end))
            self._queues[cloud] = left

    def redeal(self, taken: Sequence[int], shard: int = 0) -> int:
        """Deals what is left anew, and the epochs after by the same rates.

        taken: sequences that each cloud has trained on since the deal before.
        shard: sequences that move together; 0: a quarter of what the slowest cloud took, so that
            chance moves nothing.
        Returns how many sequences have changed their cloud.
        """
        self.drop(taken)
        # A cloud that stood still may have something to do again; it keeps a little.
        self._shares = [max(1, n) for n in taken]
        self._shard = shard or max(1, min([n for n in taken if n > 0], default=1) // 4)
        epochs = sorted({run.epoch for queue in self._queues for run in queue})
        moved, queues = 0, [list[Run]() for _ in self._queues]
        for epoch in epochs:
            runs = [[run for run in queue if run.epoch == epoch] for queue in self._queues]
            moved += _level(runs, self._shares, self._shard)
            for queue, own in zip(queues, runs, strict=True):
                queue += own
        self._queues = queues
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "lengths": list(self._lengths),
            "shares": list(self._shares),
            "shard": self._shard,
            "next_epoch": self._next_epoch,
            "queues": [[[r.epoch, r.part, r.begin, r.end] for r in q] for q in self._queues],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`. Raises ConfigError if that was of other data or clouds."""
        if state["lengths"] != self._lengths:
            raise ConfigError(
                f"the checkpoint's data are parts of {state['lengths']} sequences, here they are "
                f"{self._lengths}; resume with the data, data.seq_len and clouds it was written "
                "with"
            )
        self._shares, self._shard = list(state["shares"]), int(state["shard"])
        self._next_epoch = int(state["next_epoch"])
        self._queues = [[Run(*run) for run in queue] for queue in state["queues"]]

    # --- inside ----------------------------------------------------------------------------------

    def _length(self, cloud: int) -> int:
        return sum(map(len, self._queues[cloud]))

    def _deal_next_epoch(self) -> None:
        runs = [[Run(self._next_epoch, part, 0, n)] for part, n in enumerate(self._lengths)]
        _level(runs, self._shares, self._shard)
        for queue, own in zip(self._queues, runs, strict=True):
            queue += own
        self._next_epoch += 1


def targets(total: int, shares: Sequence[int]) -> list[int]:
    """``total`` divided in proportion to ``shares``, all positive: floors, and then one each to the
    largest remainders, the first of equals. Who would have nothing gets one, if there are enough.
    """
    n, whole = len(shares), sum(shares)
    result = [total * share // whole for share in shares]
    order = sorted(range(n), key=lambda i: (-(total * shares[i] % whole), i))
    for i in order[: total - sum(result)]:
        result[i] += 1
    while total >= n and 0 in result:
        result[result.index(max(result))] -= 1
        result[result.index(0)] += 1
    return result


def _level(runs: list[list[Run]], shares: Sequence[int], shard: int) -> int:
    """Moves whole shards from the ends of clouds that have too much to those that lack most.

    runs: of each cloud, changed in place. Ends after at most two moves a cloud, since each leaves
    one that gives or one that takes within a shard of its target.
    """
    have = [sum(map(len, own)) for own in runs]
    surplus = [h - t for h, t in zip(have, targets(sum(have), shares), strict=True)]
    moved = 0
    while True:
        donor, taker = surplus.index(max(surplus)), surplus.index(min(surplus))
        n = min(surplus[donor], -surplus[taker]) // shard * shard
        if n == 0:
            return moved
        runs[taker] += _cut_off(runs[donor], n)
        surplus[donor] -= n
        surplus[taker] += n
        moved += n


def _cut_off(runs: list[Run], n: int) -> list[Run]:
    """Takes the last ``n`` sequences away, and returns them in order."""
    taken: list[Run] = []
    while n:
        last = runs.pop()
        middle = max(last.begin, last.end - n)
        if middle > last.begin:
            runs.append(Run(last.epoch, last.part, last.begin, middle))
        taken.insert(0, Run(last.epoch, last.part, middle, last.end))
        n -= last.end - middle
    return taken
