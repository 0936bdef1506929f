"""Codecs against a slow numpy truth, and against payloads written by earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import DECODE, ENCODE

from pyfedcomm import CorruptFrame, InvalidArgument, NonFinite, codecs

GOLDEN = Path(__file__).parent / "golden"
SIZES = [0, 1, 2, 255, 256, 257, 1021, 65_537]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def gaussian(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


@pytest.mark.parametrize("name", codecs.names())
@pytest.mark.parametrize("n", SIZES)
def test_payload_equals_the_reference_byte_for_byte(name: str, n: int) -> None:
    codec, x = codecs.get(name), gaussian(n, n)
    payload = codec.encode(x)
    assert payload.tobytes() == ENCODE[name](x)
    assert payload.size == codec.wire_bytes(n)
    decoded = codec.decode(payload, n)
    assert decoded.tobytes() == DECODE[name](payload.tobytes(), n).tobytes()


@pytest.mark.parametrize("name", codecs.names())
@settings(max_examples=60, deadline=None)
@given(x=hnp.arrays(np.float32, st.integers(0, 700), elements=finite))
def test_any_finite_input_equals_the_reference(name: str, x: npt.NDArray[np.float32]) -> None:
    codec = codecs.get(name)
    truth = ENCODE[name](x)
    decoded_truth = DECODE[name](truth, x.size)
    if not np.isfinite(decoded_truth).all():  # the largest floats are infinite in bf16
        with pytest.raises(NonFinite):
            codec.encode(x)
    payload = codec.encode(x, nonfinite="propagate")
    assert payload.tobytes() == truth
    assert codec.decode(payload, x.size).tobytes() == decoded_truth.tobytes()


@pytest.mark.parametrize("name", codecs.names())
def test_decode_add_is_one_rounding_each(name: str) -> None:
    codec, x, start = codecs.get(name), gaussian(3001, 1), gaussian(3001, 2)
    payload, total = codec.encode(x), gaussian(3001, 2)
    codec.decode_add(payload, total, weight=0.3)
    truth = start + np.float32(0.3) * codec.decode(payload, 3001)
    assert total.tobytes() == truth.tobytes()


@pytest.mark.parametrize("name", codecs.names())
def test_golden_payloads_of_every_wire_version(name: str) -> None:
    """A payload that an older version wrote must still be read, and still be what is written."""
    files = sorted(GOLDEN.glob(f"wire*/{name}.json"))
    assert files, f"no golden payload of {name}: python tests/golden/make.py"
    for path in files:
        golden = json.loads(path.read_text())
        x = np.frombuffer(bytes.fromhex(golden["input"]), np.float32)
        payload = np.frombuffer(bytes.fromhex(golden["payload"]), np.uint8)
        decoded = codecs.get(name).decode(payload, x.size)
        assert decoded.tobytes() == bytes.fromhex(golden["decoded"])
        assert codecs.get(name).encode(x).tobytes() == payload.tobytes()


@pytest.mark.parametrize("name", codecs.names())
def test_bad_calls_are_clear(name: str) -> None:
    codec, x = codecs.get(name), gaussian(300)
    with pytest.raises(InvalidArgument, match="float64"):
        codec.encode(np.ones(3))
    with pytest.raises(InvalidArgument, match=r"out has 3 bytes"):
        codec.encode(x, out=np.empty(3, np.uint8))
    with pytest.raises(InvalidArgument, match="negative"):
        codec.wire_bytes(-1)
    for payload in (np.zeros(0, np.uint8), codec.encode(x)[:-1]):
        with pytest.raises(CorruptFrame, match="cannot hold 300 elements"):
            codec.decode(payload, 300)
    x[200] = np.inf
    with pytest.raises(NonFinite) as caught:
        codec.encode(x)
    assert caught.value.index == 200
    assert not np.isfinite(codec.decode(codec.encode(x, nonfinite="propagate"), 300)[200])


def test_unknown_codec_lists_the_known() -> None:
    with pytest.raises(InvalidArgument, match="bf16, int8"):
        codecs.get("zip")
