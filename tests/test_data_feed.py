"""Batches prepared ahead: same order as without, errors come out, nothing hangs at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from ranks import run_ranks
from tiny_run import one_rank_per_cloud

from pyfedcomm.data import stream, tokenizers
from pyfedcomm.data.deal import Deal
from pyfedcomm.data.prefetch import Prefetch
from pyfedcomm.errors import Error, Timeout
from pyfedcomm.group import Group
from pyfedcomm.train.data import Data
from pyfedcomm.train.feed import Feed


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


# --- prefetch -------------------------------------------------------------------------------------


class Counting:
    """0, 1, 2, ...; remembers how many were asked for."""

    def __init__(self, fail_at: int = -1) -> None:
        self.made, self._fail_at = 0, fail_at

    def __iter__(self) -> Iterator[int]:
        while True:
            if self.made == self._fail_at:
                raise OSError(5, "Input/output error")
            self.made += 1
            yield self.made - 1


def wait_until(what: Any) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_items_come_in_order_and_not_too_many_ahead(depth: int) -> None:
    source = Counting()
    ahead = Prefetch(iter(source), depth, timeout=20.0)
    for i in range(20):
        assert ahead.next() == i
        # Those in the queue, and one that waits for room.
        wait_until(lambda i=i: source.made == i + 1 + depth + 1)
        time.sleep(0.002)
        assert source.made == i + 1 + depth + 1
    ahead.close()
    ahead.close()
    assert not threads()


def test_an_error_comes_after_what_was_good_and_stays() -> None:
    ahead = Prefetch(iter(Counting(fail_at=3)), 2, timeout=20.0)
    assert [ahead.next() for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(Error, match=r"next batch could not be made: OSError: .*Input/output"):
            ahead.next()
    ahead.close()
    assert not threads()


def test_what_does_not_come_is_a_timeout() -> None:
    release = threading.Event()

    def stuck() -> Iterator[int]:
        release.wait(20)
        yield 0

    ahead = Prefetch(stuck(), 1, timeout=0.05)
    with pytest.raises(Timeout, match=r"no batch for 0.05 s: the disk"):
        ahead.next()
    release.set()
    ahead.close()
    assert not threads()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_at_any_time_ends_the_thread(taken: int) -> None:
    for _ in range(20):
        ahead = Prefetch(iter(Counting()), 2, timeout=20.0)
        for _ in range(taken):
            ahead.next()
        ahead.close()
        assert not threads()


# --- feed -----------------------------------------------------------------------------------------


def feed(group: Group, tmp_path: Path, lengths: tuple[int, ...] = (20, 20), **data: Any) -> Feed:
    """Of one rank per cloud; sequences of 16 tokens."""
    topology = one_rank_per_cloud(group)
    train = {"micro_batch": 1 + 2 * (1 - topology.cloud)}  # cloud 0 is three times faster
    config = tiny_run.config(
        tmp_path, data={"partition": "iid", "redeal_every": 2, **data}, train=train
    )
    parts = [np.arange(16 * n + 1, dtype=np.uint16) for n in lengths]
    sequences = stream.Sequences(parts, 16, seed=0)
    made = Data(
        tokenizers.load("bytes"),
        sequences,
        Deal(sequences.lengths),
        topology.cloud,
        np.zeros((0, 17), np.int64),
        "",
        {},
    )
    return Feed(config, made, topology, torch.device("cpu"))


def rows(feed: Feed, n: int) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for _ in range(n) for row in feed.next().samples]


def test_what_was_prepared_does_not_count_as_taken(tmp_path: Path) -> None:
    def rank(group: Group) -> None:
        with feed(group, tmp_path) as one, feed(group, tmp_path) as other:
            first = rows(one, 3)
            saved = one.state_dict()
            assert saved["taken"] == 3 * (1 + 2 * (1 - group.rank))
            rest = rows(one, 4)
            other.load_state_dict(saved)
            assert rows(other, 4) == rest
            one.load_state_dict(saved)
            assert rows(one, 4) == rest
            assert first[0] not in rest

    run_ranks(2, rank)
    assert not threads()


def test_batches_are_those_samples_on_the_device(tmp_path: Path) -> None:
    def rank(group: Group) -> None:
        with feed(group, tmp_path) as one:
            batch = one.next()
            assert batch.sequences.dtype == torch.int64
            assert batch.sequences.shape == (1 + 2 * (1 - group.rank), 17)
            assert batch.sequences[:, 0].tolist() == (16 * batch.samples[:, 2]).tolist()

    run_ranks(2, rank)


def test_what_was_prepared_is_no_part_of_a_deal(tmp_path: Path) -> None:
    """One cloud is about to begin an epoch, and its thread has; the other's has not."""

    def rank(group: Group) -> dict[str, Any]:
        with feed(group, tmp_path, prefetch=3, shard=1) as one:
            rows(one, 5)  # cloud 0 has 5 of 20 left, and 9 or more are prepared
            wait_until(lambda: one._ahead is not None and one._ahead._ready.full())
            one.redeal(group, timeout=20.0)
            state: dict[str, Any] = one.state_dict()["deal"]
            return state

    first, second = run_ranks(2, rank)
    expected = Deal([20, 20])
    expected.redeal([15, 5], shard=1)
    assert first == second == expected.state_dict()


def test_a_new_deal_lets_clouds_end_together(tmp_path: Path) -> None:
    """3 to 1: without a deal the fast cloud would be in its third epoch when the slow one ends."""

    def rank(group: Group) -> tuple[list[dict[str, int]], list[tuple[int, ...]]]:
        told, seen = [], []
        with feed(group, tmp_path, shard=1) as one:
            for _ in range(4):
                seen += rows(one, 2)
                told.append(one.redeal(group, timeout=20.0))
            seen += rows(one, 2)
        return told, seen

    (told, fast), (same, slow) = run_ranks(2, rank)
    assert told == same
    # Of 40 sequences 8 are gone, and 14 and 18 left: 24 and 8 are due.
    assert (
        told
        == [{"cloud0": 6, "cloud1": 2, "moved": 10}] + [{"cloud0": 6, "cloud1": 2, "moved": 0}] * 3
    )
    assert sorted(fast + slow) == sorted(
        (0, part, index) for part in range(2) for index in range(20)
    ), "the epoch, each sequence once, at the same step"
