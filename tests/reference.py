"""The slow truth of every codec, in numpy, written from the formats' definitions.

A format is the list of its code's values; rounding is a search for the nearest. Stochastic rounding
and selection follow their definitions (csrc/quant/philox.h, csrc/topk/topk.h).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Random = npt.NDArray[np.uint16]

LARGEST = np.float32(np.finfo(np.float32).max)
SMALLEST = np.float32(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Format:
    """A scaled format: one step a block, codes of ``bits`` bits."""

    name: str
    bits: int
    top: float
    block: int
    scale: str
    has_zero: bool = True


FORMATS = {
    f.name: f
    for f in (
        Format("fp8_e4m3", 8, 448, 256, "fp32"),
        Format("int8", 8, 127, 256, "fp32"),
        Format("int4", 4, 7, 128, "bf16"),
        Format("int2", 2, 3, 128, "bf16", has_zero=False),
        Format("e3m0", 4, 1, 128, "bf16"),
        Format("sign", 1, 1, 1024, "bf16"),
    )
}


@dataclass(frozen=True)
class Choice:
    """A format with its choices; ``block`` and ``scale`` default to the format's."""

    format: str
    block: int = 0
    scale: str = ""
    stochastic: bool = False
    seed: int = 0

    @property
    def text(self) -> str:
        """Canonical."""
        parts = [f"block={self.block}"] if self.block else []
        parts += [f"scale={self.scale}"] if self.scale else []
        parts += ["stochastic"] if self.stochastic else []
        parts += [f"seed={self.seed}"] if self.seed else []
        return self.format + (f"({', '.join(parts)})" if parts else "")


def encode(
    choice: Choice,
    x: Floats,
    *,
    member: int = 0,
    round: int = 0,
    bucket: int = 0,
    first: int = 0,
) -> bytes:
    """The payload; ``first``, a multiple of 8, is where in a tensor ``x`` begins."""
    random = None
    if choice.stochastic:
        random = draws(choice.seed << 16 | member, round, bucket, x.size, first)
    if choice.format == "fp32":
        return x.tobytes()
    if choice.format == "bf16":
        return _bf16_codes(x, random).tobytes()
    form = FORMATS[choice.format]
    size = choice.block or form.block
    scale = choice.scale or form.scale
    steps, codes = [], []
    for begin in range(0, x.size, size):
        block = x[begin : begin + size]
        step = _step(form, block, scale)
        inverse = np.float32(1) / step if step >= SMALLEST else np.float32(0)
        part = None if random is None else random[begin : begin + size]
        steps.append(step)
        codes.append(_quantize(form, (block * inverse).astype(np.float32), part))
    all_steps = np.array(steps, np.float32)
    stored = all_steps if scale == "fp32" else (all_steps.view(np.uint32) >> 16).astype(np.uint16)
    return stored.tobytes() + _pack(np.concatenate([*codes, np.zeros(0, np.uint8)]), form.bits)


def decode(choice: Choice, payload: bytes, n: int) -> Floats:
    """The values, one rounding each."""
    if choice.format == "fp32":
        return np.frombuffer(payload, np.float32, n)
    if choice.format == "bf16":
        return (np.frombuffer(payload, np.uint16, n).astype(np.uint32) << 16).view(np.float32)
    form = FORMATS[choice.format]
    size = choice.block or form.block
    n_blocks = -(-n // size)
    if (choice.scale or form.scale) == "fp32":
        steps, used = np.frombuffer(payload, np.float32, n_blocks), 4 * n_blocks
    else:
        stored = np.frombuffer(payload, np.uint16, n_blocks).astype(np.uint32)
        steps, used = (stored << 16).view(np.float32), 2 * n_blocks
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=used), bitorder="little")
    places = bits[: n * form.bits].reshape(n, form.bits) << np.arange(form.bits, dtype=np.uint8)
    codes = places.sum(axis=1).astype(np.uint8)
    result: Floats = (values(form)[codes] * np.repeat(steps, size)[:n]).astype(np.float32)
    return result


def values(form: Format) -> Floats:
    """What each code stands for, in steps."""
    codes = np.arange(2**form.bits)
    if form.name in ("int8", "int4"):
        half = 2 ** (form.bits - 1)
        result: Floats = ((codes ^ half) - half).astype(np.float32)
        return result
    if form.name == "int2":
        return (2 * codes - 3).astype(np.float32)
    if form.name == "sign":
        return (1 - 2 * codes).astype(np.float32)
    magnitude = codes & (2 ** (form.bits - 1) - 1)
    if form.name == "e3m0":
        size = np.where(magnitude == 0, 0.0, 2.0 ** (magnitude - 7.0))
    else:
        exponent, mantissa = magnitude >> 3, magnitude & 7
        size = np.where(
            exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
        )
    signed: Floats = np.where(codes == magnitude, size, -size).astype(np.float32)
    return signed


def draws(seed: int, round: int, bucket: int, n: int, first: int = 0) -> Random:
    """16 random bits an element: Philox4x32-7 (Salmon et al., SC 2011)."""
    counter = np.arange(first // 8, first // 8 - (-n // 8), dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    a, b = counter & low, counter >> np.uint64(32)
    c, d = np.full_like(a, bucket), np.full_like(a, round)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(7):
        p0, p1 = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        a, b, c, d = (
            (p1 >> shift) ^ b ^ np.uint64(key0),
            p1 & low,
            (p0 >> shift) ^ d ^ np.uint64(key1),
            p0 & low,
        )
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack([a, b, c, d], axis=1).astype(np.uint32)
    random: Random = words.view(np.uint16).reshape(-1)[:n]
    return random


def top_k(x: Floats, k: int) -> npt.NDArray[np.intp]:
    """Indices, ascending, of the k largest magnitudes; ties to the lowest index."""
    magnitude = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.sort(np.argsort(-magnitude.astype(np.int64), kind="stable")[:k])


def chunk_top_k(x: Floats, chunk: int, k: int) -> npt.NDArray[np.intp]:
    """The same in each chunk."""
    chosen = [begin + top_k(x[begin : begin + chunk], k) for begin in range(0, x.size, chunk)]
    return np.concatenate([*chosen, np.zeros(0, np.intp)])


def _step(form: Format, block: Floats, scale: str) -> np.float32:
    if form.name == "sign":
        lanes = np.zeros(32, np.float32)
        with np.errstate(over="ignore"):
            for begin in range(0, block.size, 32):
                part = np.abs(block[begin : begin + 32])
                lanes[: part.size] += part
            while lanes.size > 1:
                lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        mean: np.float32 = np.float32(min(lanes[0], LARGEST) / np.float32(block.size))
        if scale == "fp32":
            return mean
        nearest = (_bf16_codes(np.array([mean]), None).astype(np.uint32) << 16).view(np.float32)[0]
        return min(nearest, _down_to_bf16(LARGEST))
    step = np.float32(np.abs(block).max() / np.float32(form.top))
    if step < SMALLEST:
        step = SMALLEST if form.has_zero else np.float32(0)
    if scale == "bf16" and step != _down_to_bf16(step):
        above = np.array([step]).view(np.uint32) + np.uint32(0x10000)
        step = _down_to_bf16(above.view(np.float32)[0])
    with np.errstate(over="ignore"):
        while not np.isfinite(step * np.float32(form.top)):
            below = np.nextafter(step, np.float32(0))
            step = _down_to_bf16(below) if scale == "bf16" else below
    result: np.float32 = np.float32(step)
    return result


def _down_to_bf16(x: np.float32) -> np.float32:
    kept = (np.array([x], np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    result: np.float32 = np.float32(kept[0])
    return result


def _bf16_codes(x: Floats, random: Random | None) -> npt.NDArray[np.uint16]:
    """Half to even on the lower 16 bits; or up by chance, but not to infinity."""
    bits = x.view(np.uint32).astype(np.uint64)
    if random is None:
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    magnitude, sign = bits & 0x7FFFFFFF, bits & 0x80000000
    up = np.minimum(magnitude + random, 0x7F7FFFFF)
    result: npt.NDArray[np.uint16] = ((up | sign) >> 16).astype(np.uint16)
    return result


def _quantize(form: Format, y: Floats, random: Random | None) -> Codes:
    """The code of the nearest value, from a middle the even one; random: up or down by chance."""
    if form.name == "sign":
        return (y.view(np.uint32) >> 31).astype(np.uint8)
    if form.name in ("int8", "int4", "int2"):
        position = y if form.name != "int2" else y * np.float32(0.5) + np.float32(1.5)
        if random is not None:
            low, high = (0, 3) if form.name == "int2" else (-form.top, form.top)
            position = np.clip(_by_chance(position, random), low, high)
        codes: Codes = (np.rint(position).astype(np.int64) & (2**form.bits - 1)).astype(np.uint8)
        return codes
    return _quantize_float(form, y, random)


def _by_chance(x: npt.NDArray[np.floating[Any]], random: Random) -> npt.NDArray[np.int64]:
    """Down or, with the fraction's probability, up: in units of 2^-15, with 15 random bits."""
    units = np.rint(x.astype(np.float64) * 2**15).astype(np.int64)
    return (units + (random >> 1)) >> 15


def _quantize_float(form: Format, y: Floats, random: Random | None) -> Codes:
    half = 2 ** (form.bits - 1)
    ladder = values(form)[:half].astype(np.float64)
    ladder = ladder[: half - 1] if form.name == "fp8_e4m3" else ladder  # its last code is NaN
    magnitude = np.abs(y).astype(np.float64)
    below = np.clip(np.searchsorted(ladder, magnitude, side="right") - 1, 0, ladder.size - 2)
    share = (magnitude - ladder[below]) / (ladder[below + 1] - ladder[below])
    if random is None:
        up = (share > 0.5) | ((share == 0.5) & (below % 2 == 1))
    else:  # the middles of 2^16 equal parts of the step, where the step doubles with the exponent
        up = share + (random.astype(np.float64) + 0.5) / 2**16 >= 1
        even = 1 if form.name == "e3m0" else 8  # below this code steps are equal
        up = np.where(below < even, _by_chance(magnitude / ladder[1], random) > below, up)
    code = np.minimum(below + up, ladder.size - 1)
    codes: Codes = (code | np.where(np.signbit(y), half, 0)).astype(np.uint8)
    return codes


def _pack(codes: Codes, bits: int) -> bytes:
    each = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(each.reshape(-1), bitorder="little").tobytes()
