"""Codecs against a slow numpy truth, and against payloads written by earlier versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import Choice

from pyfedcomm import CorruptFrame, InvalidArgument, NonFinite, _core, codecs

GOLDEN = Path(__file__).parent / "golden"
SIZES = [0, 1, 31, 255, 256, 257, 1021, 4097, 65_537]

CHOICES = [Choice("fp32"), Choice("bf16"), Choice("bf16", stochastic=True, seed=1)]
for _name, _format in reference.FORMATS.items():
    other = "bf16" if _format.scale == "fp32" else "fp32"
    CHOICES += [Choice(_name), Choice(_name, block=32), Choice(_name, block=4096, scale=other)]
    if _name != "sign":
        CHOICES.append(Choice(_name, block=64, stochastic=True, seed=7))

SPARSE = [
    "topk(0.01, fp32)",
    "topk(0.3, int8)",
    "topk(k=17, bf16)",
    "topk(0.001, int4(stochastic), beta=0.9)",
    "chunk_topk(256, 3, fp32)",
    "chunk_topk(4096, 64, int2, beta=0.95)",
    "chunk_topk(1000, 40, sign, index=packed)",
]
EVERY = [choice.text for choice in CHOICES] + SPARSE

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def gaussian(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.current_isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.text)
def test_payload_equals_the_reference_byte_for_byte(choice: Choice, isa: str) -> None:
    codec = codecs.get(choice.text)
    where: dict[str, Any] = {"member": 3, "round": 2, "bucket": 5}
    for n in SIZES:
        for magnitude in (1.0, 1e-40, 6e37):
            x = gaussian(n, n) * np.float32(magnitude)
            x[n // 3 : n // 2] = 0
            payload, truth = codec.encode(x, **where), reference.encode(choice, x, **where)
            assert payload.tobytes() == truth
            assert payload.size == codec.wire_bytes(n)
            decoded = reference.decode(choice, truth, n)
            assert codec.decode(payload, n).tobytes() == decoded.tobytes()


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.text)
@settings(max_examples=40, deadline=None)
@given(x=hnp.arrays(np.float32, st.integers(0, 700), elements=finite))
def test_any_finite_input_equals_the_reference(choice: Choice, x: npt.NDArray[np.float32]) -> None:
    codec = codecs.get(choice.text)
    truth = reference.encode(choice, x)
    decoded_truth = reference.decode(choice, truth, x.size)
    if not np.isfinite(decoded_truth).all():  # the largest floats are infinite in bf16
        with pytest.raises(NonFinite):
            codec.encode(x)
    payload = codec.encode(x, nonfinite="propagate")
    assert payload.tobytes() == truth
    assert codec.decode(payload, x.size).tobytes() == decoded_truth.tobytes()


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "fp8_e4m3", "e3m0"])
def test_nearest_is_within_half_a_step(name: str) -> None:
    x, codec = gaussian(65_537, 4), codecs.get(f"{name}(scale=fp32)")
    form = reference.FORMATS[name]
    block = codec.block
    padded = np.zeros(-(-x.size // block) * block, np.float32)
    padded[: x.size] = x
    step = np.abs(padded.reshape(-1, block)).max(1) / np.float32(form.top)
    steps = np.repeat(step, block)[: x.size]
    ladder = np.unique(reference.values(form)[np.abs(reference.values(form)) <= form.top])
    gap = np.diff(ladder)
    at = np.clip(np.searchsorted(ladder, x / steps) - 1, 0, gap.size - 1)
    error = np.abs(codec.decode(codec.encode(x), x.size) - x)
    assert (error <= 0.5001 * gap[at] * steps).all()


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3", "int8", "int4", "int2", "e3m0"])
def test_stochastic_rounding_is_unbiased(name: str) -> None:
    """The mean over many rounds comes as near to the input as independent draws would."""
    codec, x, n_rounds = codecs.get(f"{name}(stochastic, seed=11)"), gaussian(4096, 8), 400
    decoded = np.stack(
        [codec.decode(codec.encode(x, round=r), x.size).astype(np.float64) for r in range(n_rounds)]
    )
    gap = decoded.max(axis=0) - decoded.min(axis=0)
    varied = gap > 0  # the rest lies on a value of the format, or next to one
    assert varied.mean() > 0.9
    error = ((decoded.mean(axis=0) - x) / np.where(varied, gap, 1))[varied]
    # A draw between two values a gap apart deviates by sqrt(p (1 - p)), at most half a gap.
    worst = 0.5 / np.sqrt(n_rounds)
    assert abs(error.mean()) < 5 * worst / np.sqrt(error.size)
    assert np.abs(error).max() < 6 * worst
    assert 0.5 * worst < error.std() < worst


def test_draws_are_philox() -> None:
    """The known answer for counter and key 0 after 7 rounds (Random123's kat_vectors)."""
    words = reference.draws(0, 0, 0, 8).view(np.uint32)
    assert words.tolist() == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def test_stochastic_draws_differ_by_seed_round_bucket_and_member() -> None:
    x = gaussian(1000)
    codec, other = codecs.get("int4(stochastic)"), codecs.get("int4(stochastic, seed=1)")
    payloads = [
        codec.encode(x),
        codec.encode(x, round=1),
        codec.encode(x, bucket=1),
        codec.encode(x, member=1),
        other.encode(x),
    ]
    assert len({p.tobytes() for p in payloads}) == len(payloads)
    assert codec.encode(x, round=1).tobytes() == payloads[1].tobytes()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", SPARSE)
def test_selection_is_the_stable_sorts(name: str, n: int, isa: str) -> None:
    codec, x = codecs.get(name), gaussian(n, n + 1)
    x[: n // 2] = np.round(x[: n // 2], 1)  # ties
    payload = codec.encode(x)
    assert payload.size <= codec.wire_bytes(n)
    decoded = codec.decode(payload, n)
    chosen = np.zeros(n, bool)
    if name.startswith("chunk"):
        chunk, k = (int(part) for part in name.split("(")[1].split(",")[:2])
        chosen[reference.chunk_top_k(x, chunk, k)] = True
    else:
        amount = name.split("(")[1].split(",")[0]
        share = int(amount[2:]) if amount.startswith("k=") else int(float(amount) * n + 0.5)
        chosen[reference.top_k(x, max(1, share))] = True
    assert not decoded[~chosen].any()
    if "fp32" in name:
        assert decoded[chosen].tobytes() == x[chosen].tobytes()
    elif "int8" in name or "bf16" in name:
        assert np.count_nonzero(decoded) >= 0.9 * np.count_nonzero(x[chosen])


@pytest.mark.parametrize("name", EVERY)
def test_feedback_loses_nothing(name: str, isa: str) -> None:
    codec, x, before = codecs.get(name), gaussian(70_001, 1), gaussian(70_001, 2) / np.float32(8)
    beta = float(name.split("beta=")[1].split(")")[0]) if "beta=" in name else 1.0
    acc = x + np.float32(beta) * before
    after = np.full_like(x, np.nan)
    payload = codec.encode(x, residual=before, new_residual=after)
    assert payload.tobytes() == codec.encode(acc).tobytes()
    assert after.tobytes() == (acc - codec.decode(payload, x.size)).tobytes()
    codec.encode(x, residual=before)  # in place
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_threads_and_instruction_sets_agree(name: str) -> None:
    codec, x, residual = codecs.get(name), gaussian(300_007, 3), gaussian(300_007, 4)
    seen = set()
    threads, isa = _core.thread_count(), _core.current_isa()
    try:
        for n_threads in (1, 2, 3):
            for each in _core.isas():
                _core.use_threads(n_threads)
                _core.use_isa(each)
                after, total = np.empty_like(x), gaussian(300_007, 5)
                payload = codec.encode(x, residual=residual, new_residual=after)
                codec.decode_add(payload, total, weight=0.3)
                seen.add((payload.tobytes(), after.tobytes(), total.tobytes()))
    finally:
        _core.use_threads(threads)
        _core.use_isa(isa)
    assert len(seen) == 1


@pytest.mark.parametrize("name", EVERY)
def test_decode_add_is_one_rounding_each(name: str, isa: str) -> None:
    codec, x, start = codecs.get(name), gaussian(3001, 1), gaussian(3001, 2)
    payload, total = codec.encode(x), gaussian(3001, 2)
    codec.decode_add(payload, total, weight=0.3)
    truth = start + np.float32(0.3) * codec.decode(payload, 3001)
    assert total.tobytes() == truth.tobytes()


@pytest.mark.parametrize("name", codecs.names())
def test_golden_payloads_of_every_wire_version(name: str) -> None:
    """A payload that an older version wrote must still be read, and still be what is written."""
    found = 0
    for path in sorted(GOLDEN.glob("wire*/*.json")):
        golden = json.loads(path.read_text())
        if golden["codec"] != name:
            continue
        found += 1
        x = np.frombuffer(bytes.fromhex(golden["input"]), np.float32)
        payload = np.frombuffer(bytes.fromhex(golden["payload"]), np.uint8)
        decoded = codecs.get(name).decode(payload, x.size)
        assert decoded.tobytes() == bytes.fromhex(golden["decoded"])
        assert codecs.get(name).encode(x).tobytes() == payload.tobytes()
    assert found, f"no golden payload of {name}: python tests/golden/make.py"


@pytest.mark.parametrize("name", EVERY)
def test_bad_calls_are_clear(name: str) -> None:
    codec, x = codecs.get(name), gaussian(300)
    with pytest.raises(InvalidArgument, match="float64"):
        codec.encode(np.ones(3))
    with pytest.raises(InvalidArgument, match=r"out has 3 bytes"):
        codec.encode(x, out=np.empty(3, np.uint8))
    with pytest.raises(InvalidArgument, match="residuals have 299 and 299 elements"):
        codec.encode(x, residual=np.zeros(299, np.float32))
    with pytest.raises(InvalidArgument, match="negative"):
        codec.wire_bytes(-1)
    for payload in (np.zeros(0, np.uint8), codec.encode(x)[:-1]):
        with pytest.raises(CorruptFrame):
            codec.decode(payload, 300)
    x[200] = np.inf
    with pytest.raises(NonFinite) as caught:
        codec.encode(x)
    assert caught.value.index == 200
    assert not np.isfinite(codec.decode(codec.encode(x, nonfinite="propagate"), 300)[200])


@pytest.mark.parametrize("name", EVERY)
def test_names_parse_and_print(name: str) -> None:
    assert codecs.get(name).name == name
    assert codecs.get(name.replace(", ", " ,").replace("(", " ( ")).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zip", "bf16, fp8_e4m3, int8"),
        ("", "expected a name"),
        ("int8(", "expected a name"),
        ("int8(block=64", "expected ',' or '\\)'"),
        ("int8)", "expected the end"),
        ("int8(block=48)", "power of two from 32 to 4096"),
        ("int8(block=1)", "power of two"),
        ("int8(block=1e3)", "whole number"),
        ("int8(scale=fp16)", "fp32 or bf16"),
        ("int8(scale=fp32(3))", "fp32 or bf16"),
        ("int8(stochastic(3))", "does not take 'stochastic\\(3\\)'"),
        ("int8(levels=3)", "does not take 'levels=3'"),
        ("int8(seed=3)", "goes with stochastic"),
        ("fp32(block=64)", "takes neither block nor scale"),
        ("sign(stochastic)", "no stochastic rounding"),
        ("int8(beta=1.5)", "from 0 to 1"),
        ("topk(0)", "above 0 and at most 1"),
        ("topk(nan)", "must be a number"),
        ("topk(k=0)", "at least 1"),
        ("topk(0.1, int9)", "no number format 'int9'"),
        ("topk(0.1, int8(beta=0.5))", "inside another codec"),
        ("topk(0.1, topk(0.1))", "no number format 'topk'"),
        ("chunk_topk(100, 5)", "from 256 to 65536"),
        ("chunk_topk(256, 257)", "from 1 to the chunk's"),
        ("chunk_topk(256, 2, index=zip)", "rice or packed"),
        ("chunk_topk(256, 2, index=rice(1))", "rice or packed"),
        ("a(b(c(d(e(f)))))", "too deep"),
        ("x" * 300, "256 characters"),
    ],
)
def test_bad_names_say_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        codecs.get(name)


def test_isas_and_threads_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="portable"):
        _core.use_isa("avx1024")
    with pytest.raises(InvalidArgument, match="1 to 1024"):
        _core.use_threads(0)
