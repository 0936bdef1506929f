"""Codecs on more than 2^31 elements: indices and byte counts that 32 bits do not hold.

Each test has one array of 8 GiB, which is encoded and then decoded in place. Pages of zeros that
nobody writes to take no memory.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import reference
from reference import Choice

from pyfedcomm import CorruptFrame, InvalidArgument, codecs

Floats = npt.NDArray[np.float32]

N = 2**31 + 3
PIECE = 2**24
GIB = 2**30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def need(n_bytes: float) -> None:
    known = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(known[1]) * 1024 if known else 0
    if available < n_bytes + GIB:
        pytest.skip(f"needs {n_bytes / GIB:.1f} GiB of memory, has {available / GIB:.1f}")


BASE = np.random.default_rng(5).standard_normal(PIECE, dtype=np.float32)


def pieces() -> list[tuple[int, slice]]:
    return [(i, slice(begin, min(begin + PIECE, N))) for i, begin in enumerate(range(0, N, PIECE))]


def piece(i: int, where: slice) -> Floats:
    """Elements `where`: each piece has a magnitude of its own, so that none passes for another."""
    values: Floats = BASE[: where.stop - where.start] * np.float32(1 + i / 64)
    return values


def filled() -> Floats:
    x = np.empty(N, np.float32)
    for i, where in pieces():
        x[where] = piece(i, where)
    return x


def planted(n: int, at: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Zeros but for values at `at`, and these values."""
    values = np.random.default_rng(6).uniform(1, 2, at.size).astype(np.float32)
    values[::2] *= -1
    x = np.zeros(n, np.float32)
    x[at] = values
    return x, values


def places(n: int, count: int) -> npt.NDArray[np.int64]:
    edges = [0, 1, 2**31 - 1, 2**31, n - 1]
    drawn = np.random.default_rng(7).integers(0, n, count - len(edges))
    return np.unique(np.concatenate([np.array(edges), drawn]))


def check_only(x: Floats, at: npt.NDArray[np.int64], values: Floats) -> None:
    assert x[at].tobytes() == values.tobytes()
    assert sum(np.count_nonzero(x[where]) for _, where in pieces()) == np.count_nonzero(values)


@pytest.mark.parametrize("name", [n for n in codecs.names() if "(" not in n])
def test_every_format(name: str) -> None:
    """As the pieces by themselves, which are whole blocks, but for the last 3 elements."""
    codec = codecs.get(name)
    need(4 * N + codec.wire_bytes(N))
    x = filled()
    payload = codec.encode(x)
    assert payload.size == codec.wire_bytes(N)
    with pytest.raises(CorruptFrame):
        codec.decode(payload[:-1], N, out=x)
    codec.decode(payload, N, out=x)
    for i, where in pieces():
        alone = piece(i, where)
        truth = codec.decode(codec.encode(alone), alone.size)
        assert np.array_equal(x[where].view(np.uint32), truth.view(np.uint32)), i
    codec.decode_add(payload, x, weight=-1)
    assert not any(x[where].any() for _, where in pieces())


def test_stochastic_draws_by_the_element() -> None:
    choice = Choice("int4", stochastic=True, seed=3)
    codec = codecs.get(choice.text)
    need(4 * N + codec.wire_bytes(N))
    x = filled()
    payload = codec.encode(x, round=2, bucket=5, member=1)
    parts = [slice(0, 4096), slice(2**30, 2**30 + 4096), slice(2**31 - 4096, N)]
    inputs = [x[where].copy() for where in parts]
    codec.decode(payload, N, out=x)
    for where, given in zip(parts, inputs, strict=True):
        truth = reference.encode(choice, given, round=2, bucket=5, member=1, first=where.start)
        assert x[where].tobytes() == reference.decode(choice, truth, given.size).tobytes()
        unmoved = reference.encode(choice, given, round=2, bucket=5, member=1)
        assert (truth == unmoved) == (where.start == 0)


def test_feedback() -> None:
    codec = codecs.get("sign(beta=0.5)")
    need(4 * N + codec.wire_bytes(N))
    residual = filled()
    payload = codec.encode(np.zeros(N, np.float32), residual=residual)
    codec.decode_add(payload, residual)  # decoded + left over: all of it
    for i, where in pieces():
        alone = piece(i, where)
        coded = codec.encode(np.zeros_like(alone), residual=alone)
        codec.decode_add(coded, alone)
        assert np.array_equal(residual[where], alone), i
        assert np.abs(alone - 0.5 * piece(i, where)).max() < 1e-5


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_top_k(values: str) -> None:
    at = places(N, 1000)
    codec = codecs.get(f"topk(k={at.size}, {values})")
    need(8 * GIB)
    x, truth = planted(N, at)
    payload = codec.encode(x)
    coded = codecs.get(values)
    truth = coded.decode(coded.encode(truth), at.size)
    del x
    total = np.zeros(N, np.float32)
    codec.decode_add(payload, total)
    check_only(total, at, truth)
    codec.decode(payload, N, out=total)  # writes all of it
    check_only(total, at, truth)


def test_top_k_feedback() -> None:
    at = places(N, 1000)
    codec = codecs.get(f"topk(k={at.size // 2}, fp32)")
    need(8 * GIB)
    residual, values = planted(N, at)
    payload = codec.encode(np.zeros(N, np.float32), residual=residual)
    order = np.lexsort((at, -np.abs(values)))
    left = values.copy()
    left[order[: at.size // 2]] = 0
    check_only(residual, at, left)
    codec.decode_add(payload, residual)
    check_only(residual, at, values)


@pytest.mark.parametrize("index", ["rice", "packed"])
@pytest.mark.parametrize("values", ["fp32", "bf16"])
def test_chunk_top_k(index: str, values: str) -> None:
    chunk = 65536
    codec = codecs.get(f"chunk_topk({chunk}, 2, {values}, index={index})")
    need(8 * GIB)
    starts = np.arange(0, N, chunk, dtype=np.int64)
    lengths = np.minimum(chunk, N - starts)
    first = np.random.default_rng(8).integers(0, lengths - 1)
    second = np.random.default_rng(9).integers(first + 1, lengths)
    at = np.sort(np.concatenate([starts + first, starts + second]))
    x, truth = planted(N, at)
    payload = codec.encode(x)
    codec.decode(payload, N, out=x)
    coded = codecs.get(values)
    check_only(x, at, coded.decode(coded.encode(truth), at.size))


def test_top_k_takes_2_to_the_32_elements_less_one() -> None:
    n = 2**32 - 1
    at = places(n, 300)
    codec = codecs.get(f"topk(k={at.size}, fp32)")
    need(2 * GIB)
    x, values = planted(n, at)
    payload = codec.encode(x)
    total = np.zeros(n, np.float32)
    codec.decode_add(payload, total)
    assert total[at].tobytes() == values.tobytes()
    codec.decode_add(payload, total, weight=-1)
    assert not total[at].any()


@pytest.mark.parametrize("name", ["topk(k=5)", "chunk_topk(4096, 1)"])
def test_more_than_indices_can_count_are_refused(name: str) -> None:
    codec, payload = codecs.get(name), codecs.get("topk(k=5)").encode(np.ones(9, np.float32))
    room = np.empty(2**24, np.uint8)
    with pytest.raises(InvalidArgument, match="indices have 32 bits"):
        codec.encode(np.zeros(2**32, np.float32), out=room)
    with pytest.raises(InvalidArgument, match="2\\^32"):
        codec.wire_bytes(2**32 + 1)
    with pytest.raises((InvalidArgument, CorruptFrame)):
        codec.decode_add(payload, np.zeros(2**32 + 1, np.float32))
