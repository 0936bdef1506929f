"""Triton kernels as one would write them for blockwise int8: contestants of cuda_peer_tasks.py."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from peer_tasks import WEIGHT

BLOCK = 256
ROWS = 16  # blocks of a program


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(  # type: ignore[no-untyped-def]
    x, codes, step, n_blocks, rows: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    at = row[:, None].to(tl.int64) * block + tl.arange(0, block)[None, :]
    inside = (row < n_blocks)[:, None]
    values = tl.load(x + at, mask=inside, other=0.0)
    scale = tl.max(tl.abs(values), axis=1) / 127.0
    inverse = tl.where(scale > 0, 1.0 / scale, 0.0)
    scaled = values * inverse[:, None]
    rounded = tl.where(scaled >= 0, tl.floor(scaled + 0.5), tl.ceil(scaled - 0.5))
    tl.store(codes + at, rounded.to(tl.int8), mask=inside)
    tl.store(step + row, scale, mask=row < n_blocks)


@triton.jit  # type: ignore[untyped-decorator]
def _decode_add(  # type: ignore[no-untyped-def]
    codes, step, out, weight, n_blocks, rows: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    at = row[:, None].to(tl.int64) * block + tl.arange(0, block)[None, :]
    inside = (row < n_blocks)[:, None]
    scale = tl.load(step + row, mask=row < n_blocks, other=0.0)
    values = tl.load(codes + at, mask=inside, other=0).to(tl.float32) * scale[:, None]
    total = tl.load(out + at, mask=inside, other=0.0) + weight * values
    tl.store(out + at, total, mask=inside)


def quantize(x: Any, codes: Any, step: Any) -> None:
    n_blocks = x.numel() // BLOCK
    _quantize[(triton.cdiv(n_blocks, ROWS),)](x, codes, step, n_blocks, rows=ROWS, block=BLOCK)


def decode_add(codes: Any, step: Any, out: Any) -> None:
    n_blocks = out.numel() // BLOCK
    grid = (triton.cdiv(n_blocks, ROWS),)
    _decode_add[grid](codes, step, out, WEIGHT, n_blocks, rows=ROWS, block=BLOCK)
