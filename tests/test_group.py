"""Group over threads: results against numpy, kinds of tensors and operations."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
from ranks import (
    ALGORITHMS,
    CODECS_AND_ALGORITHMS,
    TRANSPORTS,
    bits,
    integers,
    residual_of,
    run_ranks,
)

import pyfedcomm as fc
from pyfedcomm import codecs

SIZES = [0, 1, 4095, 4096, 8193, 300_007]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_fp32_sum_is_exact_and_in_place(transport: str, algorithm: str, size: int) -> None:
    def rank(group: fc.Group) -> None:
        for n in SIZES:
            x = integers(group.rank, n)
            truth = np.sum([integers(r, n) for r in range(size)], axis=0, dtype=np.float32)
            assert group.all_reduce(x, algorithm=algorithm) is x
            np.testing.assert_array_equal(x, truth)

    run_ranks(size, rank, transport=transport)


@pytest.mark.parametrize(("codec", "algorithm"), CODECS_AND_ALGORITHMS)
def test_results_are_bit_identical_and_close(codec: str, algorithm: str) -> None:
    n, size = 100_003, 4
    inputs = [np.random.default_rng(r).standard_normal(n, dtype=np.float32) for r in range(size)]
    truth = np.mean(np.array(inputs, np.float64), axis=0)

    def rank(group: fc.Group) -> npt.NDArray[np.float32]:
        out = np.empty(n, np.float32)
        x = inputs[group.rank].copy()
        group.all_reduce(x, op="mean", codec=codec, algorithm=algorithm, out=out)
        assert bits(x) == bits(inputs[group.rank]), "out= must leave the input alone"
        return out

    results = run_ranks(size, rank)
    assert len({bits(r) for r in results}) == 1
    error = np.linalg.norm(results[0] - truth) / np.linalg.norm(truth)
    # Of Gaussians, measured: a ring of 4 codes each value 4 times, all_gather once.
    bounds = {"fp32": 1e-6, "bf16": 0.003, "fp8_e4m3": 0.05, "int8": 0.012, "int4": 0.2}
    bounds |= {"e3m0": 0.32, "int2": 1.01, "sign": 0.77}
    bound = bounds.get(codec, 0.99)
    assert error < bound
    assert codec == "fp32" or error > bound / 100, "a lossy codec that loses nothing was not used"


def test_weighted_mean_needs_only_the_own_weight() -> None:
    weights = [3.0, 0.0, 5.0]

    def rank(group: fc.Group) -> npt.NDArray[np.float32]:
        x = np.full(9000, 8.0 * (group.rank + 1), np.float32)
        group.all_reduce(x, op="mean", weight=weights[group.rank], algorithm="direct")
        return x

    for result in run_ranks(3, rank):
        np.testing.assert_array_equal(result, (3 * 8 + 5 * 24) / 8)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_strided_and_multidimensional_arrays(dtype: str) -> None:
    def rank(group: fc.Group) -> None:
        base = np.arange(5 * 7 * 6, dtype=dtype).reshape(5, 7, 6)
        x = base[::2, ::-1, 1::2]
        truth = 3 * x.astype(np.float32)
        before = base.copy()
        assert group.all_reduce(x) is x
        np.testing.assert_array_equal(x, truth.astype(dtype))
        untouched = np.ones(base.shape, bool)
        untouched[::2, ::-1, 1::2] = False
        np.testing.assert_array_equal(base[untouched], before[untouched])
        scalar = np.array(2.0, dtype)
        group.all_reduce(scalar)
        assert scalar == 6.0

    run_ranks(3, rank)


def test_torch_tensors_of_every_kind() -> None:
    torch = pytest.importorskip("torch")

    def rank(group: fc.Group) -> None:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.arange(12, dtype=dtype).reshape(3, 4)
            truth = x.float() * 2
            for tensor in (x.clone(), x.clone().T, torch.nn.Parameter(x.clone())):
                result = group.all_reduce(tensor)
                assert result is tensor
                expected = truth.T if tensor.shape == (4, 3) else truth
                assert torch.equal(tensor.detach().float(), expected)
        with pytest.raises(fc.InvalidArgument, match="int64"):
            group.all_reduce(torch.arange(3))
        with pytest.raises(fc.InvalidArgument, match="sparse"):
            group.all_reduce(torch.eye(3).to_sparse())

    run_ranks(2, rank)


def test_anything_with_dlpack() -> None:
    class Exporter:
        """Knows DLPack and nothing else of numpy."""

        def __init__(self, array: npt.NDArray[np.float32]) -> None:
            self.array, self.shape = array, array.shape

        def __dlpack__(self, **kw: Any) -> Any:
            return self.array.__dlpack__(**kw)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    def rank(group: fc.Group) -> None:
        x = Exporter(np.ones(10, np.float32))
        out = np.empty(10, np.float32)
        group.all_reduce(x, out=out)
        np.testing.assert_array_equal(out, 2)

    run_ranks(2, rank)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_asynchronous_work(transport: str) -> None:
    def rank(group: fc.Group) -> None:
        x = [np.full(200_000, i, np.float32) for i in range(8)]
        works = [group.all_reduce(each, bucket=i, async_op=True) for i, each in enumerate(x)]
        for i in reversed(range(8)):
            np.testing.assert_array_equal(works[i].wait(), 3 * i)
            assert works[i].done()
            assert works[i].exception() is None
            assert works[i].wait() is x[i]

    run_ranks(3, rank, transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_dropped_work_still_finishes_before_its_memory_goes(transport: str) -> None:
    def rank(group: fc.Group) -> None:
        for _ in range(20):
            group.all_reduce(np.ones(100_000, np.float32), async_op=True)
            gc.collect()
        np.testing.assert_array_equal(group.all_reduce(np.ones(3, np.float32)), 2)

    run_ranks(2, rank, transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_gather_broadcast_barrier_and_objects(transport: str) -> None:
    def rank(group: fc.Group) -> None:
        x = np.arange(6).reshape(2, 3) + 10 * group.rank
        rows = group.all_gather(x)
        assert rows.shape == (3, 2, 3)
        assert rows.dtype == x.dtype
        for r in range(3):
            np.testing.assert_array_equal(rows[r], np.arange(6).reshape(2, 3) + 10 * r)
        for root in range(3):
            y = np.full((3, 5), group.rank, np.int16)[:, ::2]
            assert group.broadcast(y, root=root) is y
            np.testing.assert_array_equal(y, root)
        group.barrier()
        told = group.all_gather_object({"rank": group.rank, "name": "é" * group.rank})
        assert told == [{"rank": r, "name": "é" * r} for r in range(3)]
        assert group.all_gather_bytes(b"\0" * group.rank) == [b"", b"\0", b"\0\0"]
        with pytest.raises(TypeError):
            group.all_gather_object(object())

    run_ranks(3, rank, transport=transport)


def test_torch_gather() -> None:
    torch = pytest.importorskip("torch")

    def rank(group: fc.Group) -> None:
        rows = group.all_gather(torch.full((2,), group.rank, dtype=torch.bfloat16))
        assert torch.equal(rows, torch.tensor([[0, 0], [1, 1]], dtype=torch.bfloat16))

    run_ranks(2, rank)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_limited_group_sends_no_faster(transport: str) -> None:
    def rank(group: fc.Group) -> float:
        limited = group.split([[0, 1]], rate_limit=1e6)
        assert limited is not None
        x = np.arange(50_000, dtype=np.float32) + group.rank
        begin = time.perf_counter()
        limited.all_reduce(x, algorithm="direct")
        seconds = time.perf_counter() - begin
        np.testing.assert_array_equal(x, 2 * np.arange(50_000, dtype=np.float32) + 1)
        return limited.stats().frame_bytes / seconds

    # What it sent since it was made took at least so long; its making took some time, too.
    assert max(run_ranks(2, rank, transport=transport)) < 1.01e6


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_rate_is_refused(rate: float) -> None:
    def rank(group: fc.Group) -> None:
        with pytest.raises(fc.InvalidArgument, match="rate limit"):
            group.split([[0, 1]], rate_limit=rate)

    run_ranks(2, rank)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_groups_of_groups_do_not_mix(transport: str) -> None:
    def rank(group: fc.Group) -> None:
        a = group.split([[0, 1], [2, 3]])
        b = group.split([[0, 2], [1, 3]])
        assert a is not None
        assert b is not None
        c = a.split([[0, 1]])
        assert c is not None
        works = [
            g.all_reduce(np.ones(50_000, np.float32), async_op=True) for g in (a, b, c, group) * 3
        ]
        for g, work in zip((a, b, c, group) * 3, works, strict=True):
            np.testing.assert_array_equal(work.wait(), g.size)

    run_ranks(4, rank, transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_stats_count_what_was_sent(transport: str) -> None:
    n = 1 << 20

    def rank(group: fc.Group) -> None:
        before = group.stats()
        group.all_reduce(np.ones(n, np.float32), codec="int8", algorithm="direct")
        after = group.stats()
        size = group.size
        per_chunk = codecs.get("int8").wire_bytes(n // size)
        assert after.payload_bytes - before.payload_bytes == 2 * (size - 1) * per_chunk
        assert after.frame_bytes == sum(after.sent_to)
        assert after.sent_to[group.rank] == 0
        overhead = after.frame_bytes - before.frame_bytes - 2 * (size - 1) * per_chunk
        assert overhead == 100 * (after.frames - before.frames)

    run_ranks(4, rank, transport=transport)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_selection_is_made_from_the_whole_bucket(dtype: Any) -> None:
    n, k, size = 600_007, 501, 3  # three segments; almost all that is chosen lies in the last
    inputs = [np.random.default_rng(r).standard_normal(n).astype(dtype) for r in range(size)]
    for x in inputs:
        x[590_000:] *= 8
    truth = np.zeros(n, np.float32)
    for x in inputs:
        chosen = reference.top_k(x.astype(np.float32), k)
        truth[chosen] += x[chosen].astype(np.float32)

    def rank(group: fc.Group) -> None:
        x = inputs[group.rank]
        none = np.zeros(0, np.float32)
        left = np.empty(n, np.float32)
        residual = residual_of(np.zeros(n, np.float32), left, none, none)
        out: npt.NDArray[Any] = np.empty(n, dtype)
        codec = f"topk(k={k}, fp32)"
        group.all_reduce(x, out=out, codec=codec, algorithm="all_gather", residual=residual)
        assert bits(out) == bits(truth.astype(dtype))
        expected = x.astype(np.float32)
        expected[reference.top_k(expected, k)] = 0
        assert bits(left) == bits(expected)

    run_ranks(size, rank)


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("codec", ["topk(0.001, fp32)", "topk(k=601, fp32)"])
def test_owners_choose_again_from_the_sum_of_their_chunk(size: int, codec: str) -> None:
    """Against the slow truth: choose, add what was chosen, choose from each owner's whole part."""
    n = 1_300_007  # several segments in each part
    inputs = [np.random.default_rng(r).standard_normal(n, dtype=np.float32) for r in range(size)]
    owed = np.random.default_rng(99).standard_normal(n, dtype=np.float32)
    k = 601 if "k=" in codec else round(0.001 * n)
    sums = np.zeros(n, np.float32)
    left = []
    for x in inputs:
        chosen = reference.top_k(x, k)
        sums[chosen] += x[chosen]
        left.append(x + np.float32(0))  # -0 and an old residual of 0 make +0
        left[-1][chosen] = 0

    def rank(group: fc.Group) -> npt.NDArray[np.float32]:
        part = group.owned(n, "sparse", codec)
        sent, kept = np.empty(n, np.float32), np.empty(part.stop - part.start, np.float32)
        residual = residual_of(np.zeros(n, np.float32), sent, owed[part].copy(), kept)
        x: npt.NDArray[np.float32] = inputs[group.rank].copy()
        group.all_reduce(x, codec=codec, algorithm="sparse", residual=residual)  # in place
        assert bits(sent) == bits(left[group.rank])
        total = sums[part] + owed[part]
        share = (part.stop - part.start) / n
        k_part = int(np.ceil(share * k)) if "k=" in codec else round(0.001 * len(total))
        chosen = reference.top_k(total, k_part)
        expected = np.zeros_like(total)
        expected[chosen] = total[chosen]
        assert bits(x[part]) == bits(expected)
        total[chosen] = 0
        assert bits(kept) == bits(total)
        return x

    results = run_ranks(size, rank)
    assert all(bits(each) == bits(results[0]) for each in results)


def test_sparse_weighs_members_once() -> None:
    n = 1_300_007

    def rank(group: fc.Group) -> npt.NDArray[np.float32]:
        x = np.full(n, float(group.rank), np.float32)
        group.all_reduce(
            x, op="mean", weight=1 + group.rank, codec="topk(1.0, fp32)", algorithm="sparse"
        )
        return x

    for x in run_ranks(3, rank):
        assert bits(x) == bits(np.full(n, (2 + 2 * 3) / 6, np.float32))


def test_sparse_sends_a_share_of_what_all_gather_sends() -> None:
    n, size = 800_000, 8

    def rank(group: fc.Group) -> list[int]:
        sent = []
        for algorithm in ("all_gather", "sparse"):
            before = group.stats().payload_bytes
            x = np.random.default_rng(group.rank).standard_normal(n, dtype=np.float32)
            group.all_reduce(x, codec="topk(0.01)", algorithm=algorithm)
            sent.append(group.stats().payload_bytes - before)
        return sent

    gathered, sparse = np.sum(run_ranks(size, rank), axis=0)
    assert sparse / gathered == pytest.approx(2 / size, rel=0.05)


def test_error_feedback_telescopes() -> None:
    """What one round loses, later rounds make good: the sum over rounds stays within one step."""
    n, rounds = 9000, 30

    def rank(group: fc.Group) -> None:
        owned = group.owned(n, "direct")
        x = np.random.default_rng(group.rank).standard_normal(n, dtype=np.float32)
        truth = np.float64(0) + sum(
            np.random.default_rng(r).standard_normal(n, dtype=np.float32) for r in range(3)
        )
        sender = [np.zeros(n, np.float32) for _ in range(2)]
        owner = [np.zeros(owned.stop - owned.start, np.float32) for _ in range(2)]
        total, plain = np.zeros(n), np.zeros(n)
        for step in range(rounds):
            residual = residual_of(sender[0], sender[1], owner[0], owner[1])
            out = np.empty(n, np.float32)
            group.all_reduce(
                x, out=out, codec="int8", algorithm="direct", residual=residual, round=step
            )
            sender.reverse()
            owner.reverse()
            total += out
            group.all_reduce(x, out=out, codec="int8", algorithm="direct", round=step)
            plain += out
        with_feedback = np.abs(total / rounds - truth).max()
        without = np.abs(plain / rounds - truth).max()
        assert with_feedback < 0.15 * without

    run_ranks(3, rank)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    torch = pytest.importorskip("torch")
    n = 2**31 + 3

    def rank(group: fc.Group) -> None:
        x = torch.ones(n, dtype=torch.bfloat16)
        x[-1] = 3 + group.rank
        group.all_reduce(x, codec="int8", algorithm="direct")
        assert x[-1] == 7
        for part in x[:-256].split(1 << 26):  # the last block shares a scale with another value
            assert bool((part == 2).all())

    run_ranks(2, rank, timeout=120, deadline=1000)
