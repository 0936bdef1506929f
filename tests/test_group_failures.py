"""Group over threads: bad calls and failures, as every rank of a Python program sees them."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
from ranks import CODECS_AND_ALGORITHMS, bits, errors_of, integers, residual_of, run_ranks

import pyfedcomm as fc
from pyfedcomm import _core

ALGORITHMS = ["auto", "direct", "ring", "all_gather"]
SIZES = [0, 1, 4095, 4096, 8193, 300_007]


def test_all_weights_zero_is_an_error_on_every_rank() -> None:
    errors = errors_of(3, lambda g: g.all_reduce(np.ones(5, np.float32), op="mean", weight=0.0))
    assert all(isinstance(e, fc.InvalidArgument) and "weights" in str(e) for e in errors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.all_reduce([1.0, 2.0]), "list"),
        (lambda g: g.all_reduce(np.ones(3)), "float64"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), codec="zip"), "fp32"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), algorithm="tree"), "direct"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), op="max"), "mean"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), nonfinite="ignore"), "propagate"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), op="mean", weight=-1.0), "weight"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), op="mean", weight=np.nan), "weight"),
        (lambda g: g.all_reduce(np.ones(3, np.float32), out=np.ones(4, np.float32)), "shape"),
        (lambda g: g.all_reduce(np.ones(3, "f4"), out=np.ones(3, "f2")), "dtype float16"),
        (lambda g: g.all_reduce(np.ones(3, "f4"), timeout=0), "timeout"),
        (lambda g: g.barrier(timeout=float("nan")), "timeout"),
        (lambda g: g.all_reduce(np.ones(3, ">f4")), "cannot be sent"),
        (lambda g: g.all_gather(np.array([None])), "cannot be sent"),
        (lambda g: g.all_reduce(np.broadcast_to(np.float32(1), 3)), "read-only"),
        (lambda g: g.broadcast(np.ones(3), root=2), "root 2"),
        (lambda g: g.split([[0, 5]]), "member 5"),
        (lambda g: g.split([[0], [0]]), "twice"),
    ],
)
def test_wrong_arguments_are_named_and_change_nothing(call: Any, message: str) -> None:
    def rank(group: fc.Group) -> None:
        with pytest.raises(fc.InvalidArgument, match=message):
            call(group)
        assert group.broken is None
        np.testing.assert_array_equal(group.all_reduce(np.ones(4, np.float32)), 2)

    run_ranks(2, rank)


def test_wait_has_a_deadline_of_its_own() -> None:
    def rank(group: fc.Group) -> None:
        if group.rank == 1:
            time.sleep(0.5)
        work = group.all_reduce(np.ones(3, np.float32), async_op=True)
        if group.rank == 0:
            with pytest.raises(fc.Timeout, match="goes on"):
                work.wait(0.05)
            assert not work.done()
        np.testing.assert_array_equal(work.wait(), 2)

    run_ranks(2, rank)


@pytest.mark.parametrize(("codec", "algorithm"), CODECS_AND_ALGORITHMS)
def test_nan_is_an_error_everywhere_or_travels(codec: str, algorithm: str) -> None:
    def rank(group: fc.Group) -> None:
        x = np.ones(20_000, np.float32)
        if group.rank == 1:
            x[12_345] = np.nan
        result = group.all_reduce(x.copy(), codec=codec, algorithm=algorithm, nonfinite="propagate")
        assert np.isnan(result[12_345])
        if "topk" not in codec:  # where a block is of values that were far apart
            assert np.isfinite(result[:4096]).all()
        group.all_reduce(x, codec=codec, algorithm=algorithm)

    errors = errors_of(3, rank)
    assert all(isinstance(e, fc.NonFinite) and e.index == 12_345 for e in errors), errors


def test_a_choice_from_the_whole_bucket_is_not_made_from_its_parts() -> None:
    def rank(group: fc.Group) -> None:
        x = np.arange(300_000, dtype=np.float32)
        for algorithm in ("direct", "ring"):
            with pytest.raises(fc.InvalidArgument, match="use algorithm sparse or all_gather"):
                group.all_reduce(x, codec="topk(k=3, fp32)", algorithm=algorithm)
        with pytest.raises(fc.InvalidArgument, match="use algorithm direct"):
            group.all_reduce(x, codec="int8", algorithm="sparse")
        group.all_reduce(x, codec="topk(k=3, fp32)", algorithm="all_gather")
        assert np.flatnonzero(x).tolist() == [299_997, 299_998, 299_999]

    assert errors_of(3, rank) == [None] * 3


def test_a_failed_operation_leaves_an_input_with_out_alone() -> None:
    def rank(group: fc.Group) -> None:
        x = integers(group.rank, 30_000)
        if group.rank == 1:
            x[5] = np.inf
        before = bits(x)
        with pytest.raises(fc.NonFinite):
            group.all_reduce(x, out=np.empty_like(x))
        assert bits(x) == before
        with pytest.raises(fc.GroupBroken, match="rebuilt"):
            group.barrier()
        assert "NaN or infinity" in str(group.broken)

    errors = errors_of(3, rank)
    assert errors == [None] * 3


def test_disagreement_names_what_differs() -> None:
    def codec(group: fc.Group) -> None:
        group.all_reduce(np.ones(9000, np.float32), codec="int8" if group.rank else "bf16")

    def length(group: fc.Group) -> None:
        group.all_reduce(np.ones(9000 + group.rank, np.float32))

    def operation(group: fc.Group) -> None:
        x = np.ones(9000, np.float32)
        group.broadcast(x) if group.rank else group.all_reduce(x)

    for call, words in [
        (codec, ("codec int8", "codec bf16")),
        (length, ("9000 elements", "9001 elements")),
        (operation, ("broadcast", "all_reduce")),
    ]:
        errors = errors_of(2, call)
        for error in errors:
            assert isinstance(error, fc.InvalidArgument), errors
            assert all(word in str(error) for word in words), error


def test_members_with_other_dtypes_are_told() -> None:
    errors = errors_of(2, lambda g: g.all_reduce(np.ones(9, "float16" if g.rank else "float32")))
    for error in errors:
        assert isinstance(error, fc.InvalidArgument), errors
        assert "float16" in str(error)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["direct", "ring", "all_gather"])
def test_a_result_that_its_dtype_cannot_hold_is_an_error(size: int, algorithm: str) -> None:
    for dtype, large in [("float16", 6e4), ("float32", 3e38)]:

        def rank(group: fc.Group, dtype: str = dtype, large: float = large) -> None:
            x = np.full(9000, large, dtype)
            if size == 1:
                x[77] = np.nan
            group.all_reduce(x, algorithm=algorithm)

        errors = errors_of(size, rank)
        assert all(isinstance(e, fc.NonFinite) for e in errors), errors


@pytest.mark.parametrize("place", [0, 4095, 4096, 8999])
def test_the_value_that_a_result_cannot_hold_is_named(place: int) -> None:
    """The sum of two; their mean, which is divided before it is looked at, fits."""

    def rank(group: fc.Group) -> Exception:
        x = np.ones(9000, np.float16)
        x[place] = 6e4
        mean = group.all_reduce(x.copy(), op="mean", codec="fp32", algorithm="all_gather")
        np.testing.assert_array_equal(mean, x)
        with pytest.raises(fc.NonFinite) as caught:
            group.all_reduce(x, codec="fp32", algorithm="all_gather")
        return caught.value

    for error in run_ranks(2, rank):
        assert isinstance(error, fc.NonFinite)
        assert error.index == place, error


def test_dropping_a_group_with_work_in_flight_does_not_block_python() -> None:
    def rank(group: fc.Group) -> None:
        sub = group.split([[0, 1]])
        assert sub is not None
        if group.rank == 1:
            time.sleep(0.3)
        work = sub.all_reduce(np.ones(100_000, np.float32), async_op=True)
        del sub
        gc.collect()
        np.testing.assert_array_equal(work.wait(), 2)

    run_ranks(2, rank)


def test_empty_against_nonempty_is_noticed() -> None:
    errors = errors_of(2, lambda g: g.all_reduce(np.ones(g.rank * 5, np.float32)))
    assert all(isinstance(e, fc.InvalidArgument) for e in errors), errors


def test_lost_frames_and_leavers() -> None:
    hub = _core.MemoryHub(2)
    groups = [fc.Group(core) for core in _core.Group.open_all(hub, 0.3)]
    hub.inject(0, 1, "silence", 0)
    x = np.ones(10, np.float32)
    works = [group.all_reduce(x.copy(), async_op=True) for group in groups]
    with pytest.raises(fc.Timeout, match=r"rank 0: no progress for 0.3 s"):
        works[1].wait()
    rebuilt = groups[1].rebuild([1])
    assert (rebuilt.size, rebuilt.epoch) == (1, 1)
    np.testing.assert_array_equal(rebuilt.all_reduce(x.copy()), 1)

    def leave(group: fc.Group) -> None:
        if group.rank == 1:
            raise KeyError("gone")
        group.all_reduce(np.ones(3, np.float32))

    def leaving(group: fc.Group) -> None:
        with group:
            leave(group)

    errors = errors_of(2, leaving)
    assert isinstance(errors[0], fc.PeerLost)
    assert errors[0].cloud == 1
    assert "KeyError: 'gone'" in str(errors[0])


def test_residuals_of_a_wrong_length_are_refused() -> None:
    def rank(group: fc.Group) -> None:
        short, none = np.zeros(3, np.float32), np.zeros(0, np.float32)
        residual = residual_of(short, short.copy(), none, none.copy())
        with pytest.raises(fc.InvalidArgument, match="residual has 3 elements instead of 10"):
            group.all_reduce(np.ones(10, np.float32), residual=residual)

    run_ranks(2, rank)
