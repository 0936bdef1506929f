"""The slow truth of every codec, in numpy, written from the format's definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BLOCK = 256


def encode_fp32(x: Floats) -> bytes:
    return x.tobytes()


def decode_fp32(payload: bytes, n: int) -> Floats:
    return np.frombuffer(payload, np.float32, n)


def encode_bf16(x: Floats) -> bytes:
    """Round half to even on the lower 16 bits."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def decode_bf16(payload: bytes, n: int) -> Floats:
    return (np.frombuffer(payload, np.uint16, n).astype(np.uint32) << 16).view(np.float32)


def encode_int8(x: Floats) -> bytes:
    """One fp32 step a block of 256, then int8 multiples of it, nearest even."""
    largest_step = np.float32(np.finfo(np.float32).max) / np.float32(127)
    with np.errstate(over="ignore"):
        while not np.isfinite(largest_step * np.float32(127)):
            largest_step = np.nextafter(largest_step, np.float32(0))
    steps, codes = [], []
    for begin in range(0, x.size, BLOCK):
        block = x[begin : begin + BLOCK]
        step = np.clip(
            np.abs(block).max() / np.float32(127), np.finfo(np.float32).tiny, largest_step
        )
        steps.append(np.float32(step))
        codes.append(np.rint(block * (np.float32(1) / np.float32(step))).astype(np.int8))
    return b"".join(s.tobytes() for s in steps) + b"".join(c.tobytes() for c in codes)


def decode_int8(payload: bytes, n: int) -> Floats:
    n_blocks = -(-n // BLOCK)
    steps = np.frombuffer(payload, np.float32, n_blocks)
    codes = np.frombuffer(payload, np.int8, n, offset=4 * n_blocks)
    return codes.astype(np.float32) * np.repeat(steps, BLOCK)[:n]


ENCODE: dict[str, Callable[[Floats], bytes]] = {
    "fp32": encode_fp32,
    "bf16": encode_bf16,
    "int8": encode_int8,
}
DECODE: dict[str, Callable[[bytes, int], Floats]] = {
    "fp32": decode_fp32,
    "bf16": decode_bf16,
    "int8": decode_int8,
}
