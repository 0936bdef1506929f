"""The rule without rounds, against its truth in scripted orders; more in `test_sync_async_runs`."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from async_stage import TOKENS, Stage, gradient, one_step
from ranks import run_ranks
from reference import Choice, decode, encode
from reference_async import AsyncRun
from reference_sync import Vector
from small_model import (
    INNER_LR,
    N_ELEMS,
    crafted,
    flat_of,
    make_parameters,
    opened,
)

from pyfedcomm import sync
from pyfedcomm.group import Group
from pyfedcomm.sync import SyncConfig
from pyfedcomm.sync.asynchronous import Asynchronous

ORDERS = {
    "in turn": [0, 1] * 9,
    "one is three times faster": [1, 1, 1, 0] * 6,
    "the other": [0, 0, 0, 1] * 6,
    "at random": [int(c) for c in np.random.default_rng(5).integers(0, 2, 25)],
}


def play(config: SyncConfig, order: list[int], n: int = 2) -> list[Any]:
    """Of each rank: its parameters after each of its steps, and at the end."""
    stage = Stage(order)
    ready = threading.Barrier(n)

    def fn(group: Group) -> tuple[list[Vector], Vector, int]:
        named, history = make_parameters(), list[Vector]()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            assert isinstance(rule, Asynchronous)
            rule.after_backward(0)  # which compares the parameters of all, once
            if rule.host is not None:
                stage.host = rule.host
                rule.host.serve()
            ready.wait(30)
            for step in range(order.count(group.rank)):
                stage.step(rule, named, group.rank, step)
                history.append(flat_of(named))
            rule.finish()
            return history, flat_of(named), rule.round

    return run_ranks(n, fn)


def expect(config: SyncConfig, order: list[int], results: list[Any], **coded: Any) -> AsyncRun:
    truth = AsyncRun(
        crafted(0),
        TOKENS,
        gradient,
        INNER_LR,
        config.local_steps,
        config.overlap_steps,
        config.aggregation,
        config.buffer or 2,
        config.outer_lr,
        config.alpha,
        config.staleness,
        **coded,
    )
    seen = [0, 0]
    for c in order:
        truth.step(c)
        np.testing.assert_array_equal(results[c][0][seen[c]], truth.clouds[c].params)
        seen[c] += 1
    truth.finish()
    for _, final, version in results:
        np.testing.assert_array_equal(final, truth.model)
        assert version == truth.version
    return truth


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize(
    "keys",
    [
        {"aggregation": "fedbuff"},
        {"aggregation": "fedbuff", "buffer": 1, "outer_lr": 0.5, "staleness": 1.0},
        {"aggregation": "fedbuff", "buffer": 3},
        {"aggregation": "fedasync"},
        {"aggregation": "fedasync", "alpha": 1.0, "staleness": 0.0},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_async_equals_the_plain_algorithm(
    keys: dict[str, Any], overlap: int, order: list[int]
) -> None:
    config = SyncConfig(rule="async", local_steps=3, overlap_steps=overlap, codec="fp32", **keys)
    expect(config, order, play(config, order))


@pytest.mark.parametrize("feedback", [False, True])
def test_both_directions_are_coded(feedback: bool) -> None:
    """int8 by its slow truth: a delta's error is carried, a difference's is in the next one."""
    config = SyncConfig(
        rule="async", local_steps=3, overlap_steps=1, codec="int8", error_feedback=feedback
    )
    error = np.zeros(N_ELEMS, np.float32)

    def coded(_: int, values: Vector) -> Vector:
        int8 = Choice("int8")
        return decode(int8, encode(int8, values), len(values))

    def up(cloud: int, delta: Vector) -> Vector:
        wanted = delta + error if feedback else delta
        got = coded(cloud, wanted)
        error[:] = wanted - got
        return got

    order = ORDERS["one is three times faster"]
    truth = expect(config, order, play(config, order), up=up, down=coded)
    assert truth.version > 3


def test_what_travels_is_coded() -> None:
    """A push and its reply are a byte a value, and the end is four."""

    def fn(group: Group) -> list[int]:
        named, sent = make_parameters(), []
        config = SyncConfig(rule="async", local_steps=2, overlap_steps=0, codec="int8")
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(4):
                before = hierarchy.wan_stats().frame_bytes
                one_step(rule, named, group.rank, step)
                sent.append(hierarchy.wan_stats().frame_bytes - before)
            before = hierarchy.wan_stats().frame_bytes
            rule.finish()
            return [*sent, hierarchy.wan_stats().frame_bytes - before]

    host, cloud = run_ranks(2, fn)
    assert [n > 0 for n in cloud] == [False, True, False, True, True]
    assert N_ELEMS < max(cloud) < 1.5 * N_ELEMS + 500
    assert max(host[:4]) < 2 * (1.5 * N_ELEMS + 500)  # both pushes may be answered in one step
    assert host[4] < 4 * N_ELEMS + 2 * (1.5 * N_ELEMS + 500)


def test_a_fast_cloud_waits_for_no_slow_one() -> None:
    """Cloud 1 takes nine steps, and three pushes, while cloud 2 has not begun its first."""
    gone_on = threading.Event()

    def fn(group: Group) -> Vector:
        named = make_parameters()
        config = SyncConfig(rule="async", local_steps=3, codec="fp32")
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            assert isinstance(rule, Asynchronous)
            rule.after_backward(0)
            if rule.host is not None:
                rule.host.serve()  # and takes no step of its own until then
            assert group.rank == 1 or gone_on.wait(20), "cloud 1 was made to wait"
            for step in range(9 if group.rank == 1 else 4):
                one_step(rule, named, group.rank, step)
            gone_on.set()
            rule.finish()
        return flat_of(named)

    finals = run_ranks(3, fn)
    np.testing.assert_array_equal(finals[0], finals[1])
    np.testing.assert_array_equal(finals[0], finals[2])


@pytest.mark.parametrize("codec", ["bf16", "int8", "topk(0.1, int8)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_clouds_end_bit_identical(dtype: torch.dtype, codec: str) -> None:
    config = SyncConfig(rule="async", local_steps=2, codec=codec, error_feedback=True)

    def fn(group: Group) -> Vector:
        named = make_parameters(dtype)
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(3 + 2 * group.rank):
                one_step(rule, named, group.rank, step)
            rule.finish()
            first = flat_of(named)
            for step in range(3):  # it can go on after that
                one_step(rule, named, group.rank, step)
            rule.finish()
            assert not np.array_equal(first, flat_of(named))
        return flat_of(named)

    first, *others = run_ranks(3, fn)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_one_cloud_alone() -> None:
    config = SyncConfig(rule="async", local_steps=2, overlap_steps=0, codec="fp32")

    def fn(group: Group) -> Vector:
        named = make_parameters()
        with opened(group) as hierarchy:
            rule = sync.make(config, named, hierarchy)
            for step in range(4):
                one_step(rule, named, 0, step)
            rule.finish()
        return flat_of(named)

    expected = crafted(0)
    for step in range(4):
        expected = expected - np.float32(INNER_LR) * gradient(0, step)
    np.testing.assert_array_equal(run_ranks(1, fn)[0], expected)
