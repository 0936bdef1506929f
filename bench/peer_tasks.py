"""The tasks of bench_kernel_peers.py: what is done, and how each contestant does it on a CPU.

A peer does the nearest thing to our task that it offers; where that is less (one scale for the
whole tensor, say), its name says so. All work on the same input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pyfedcomm import codecs
from pyfedcomm.errors import InvalidArgument

OURS = "pyfedcomm"
BLOCK = 256
WEIGHT = 0.5
BETA = 0.95

Floats = npt.NDArray[np.float32]


class Unavailable(Exception):
    """This contestant cannot run here; the text says why, and what to do."""


class Inputs:
    """What all contestants work on. Nobody writes to ``x``."""

    def __init__(self, x: Floats, threads: int) -> None:
        self.x = x
        self.n = x.size
        self.threads = threads

    @cached_property
    def tensor(self) -> Any:
        return torch().from_numpy(self.x)

    @cached_property
    def piquant(self) -> Any:
        """Pi-quant's thread pool of as many threads as the others have."""
        return piquant().Context(self.threads)


class CudaInputs:
    """What all contestants work on: a tensor, and a residual that came before. Nobody writes to
    them. ``device`` is "cuda", or "cpu" where peers are tested without a GPU."""

    threads = None

    def __init__(self, n: int, device: str = "cuda") -> None:
        t = torch()
        generator = t.Generator().manual_seed(1)
        self.n, self.device = n, device
        self.x = t.randn(n, generator=generator).to(device)
        self.before = t.randn(n, generator=generator).mul_(0.1).to(device)

    def empty(self, *shape: int, dtype: Any = None) -> Any:
        return torch().empty(shape, dtype=dtype, device=self.device)

    @cached_property
    def acc(self) -> Any:
        """What error feedback makes of the tensor: product and sum are rounded each."""
        return self.x + BETA * self.before


@dataclass(frozen=True)
class Prepared:
    run: Callable[[], object]
    check: Callable[[], bool] | None = None
    """Whether the outcome of a run before is right."""


@dataclass(frozen=True)
class Contestant:
    peer: str
    what: str
    allocates: bool
    prepare: Callable[[Any], Prepared]
    """Of the inputs of its device."""


@dataclass(frozen=True)
class Task:
    kernel: str
    bytes_per_elem: float
    """What the task has to move at least: fp32 input, and output."""
    contestants: list[Contestant]

    def n_bytes(self, n_elems: int) -> int:
        return round(self.bytes_per_elem * n_elems)


def torch() -> Any:
    return _module("torch", "torch")


def piquant() -> Any:
    return _module("piquant", "pypiquant==4.1.0")


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} cannot be imported ({error}): pip install {package}") from error


def _codec(name: str) -> codecs.Codec:
    try:
        return codecs.get(name)
    except InvalidArgument as error:
        raise Unavailable(f"this build has no codec {name}: {error}") from error


# --- ours ---------------------------------------------------------------------------------------


def ours_encode(name: str, max_error: float | None, *, allocates: bool) -> Contestant:
    """max_error: of an element, as a share of the largest magnitude; None: it is a selection."""

    def prepare(inputs: Inputs) -> Prepared:
        codec = _codec(name)
        out = np.empty(codec.wire_bytes(inputs.n), np.uint8)
        payload = out[:0]

        def run() -> object:
            nonlocal payload
            payload = codec.encode(inputs.x, out=None if allocates else out)
            return payload

        def check() -> bool:
            decoded = codec.decode(payload, inputs.n)
            if max_error is None:
                kept = decoded != 0
                left_out = np.abs(inputs.x[~kept]).max(initial=0)
                return bool(
                    np.array_equal(decoded[kept], inputs.x[kept])
                    and np.abs(inputs.x[kept]).min() >= left_out
                )
            limit = max_error * np.abs(inputs.x).max()
            return bool(np.abs(decoded - inputs.x).max() <= limit)

        def run_and_keep_nothing() -> object:
            nonlocal payload
            payload = out[:0]  # else the old payload lives until the new one is there
            return run()

        return Prepared(run_and_keep_nothing if allocates else run, check)

    return Contestant(OURS, name, allocates, prepare)


def ours_decode_add(name: str) -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        codec = _codec(name)
        payload = codec.encode(inputs.x)
        accumulator = np.zeros(inputs.n, np.float32)

        def check() -> bool:
            return bool(np.array_equal(accumulator, WEIGHT * codec.decode(payload, inputs.n)))

        return Prepared(lambda: codec.decode_add(payload, accumulator, weight=WEIGHT), check)

    return Contestant(OURS, name, False, prepare)


# --- selection ----------------------------------------------------------------------------------


def torch_top_k(density: float, *, allocates: bool) -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        t, x = torch(), inputs.tensor
        k = round(density * inputs.n)
        if allocates:

            def run() -> object:
                indices = t.topk(x.abs(), k, sorted=False).indices
                return indices, x[indices]

            return Prepared(run)
        magnitudes, values = t.empty_like(x), t.empty(k)
        top, indices = t.empty(k), t.empty(k, dtype=t.int64)

        def run_in_place() -> object:
            t.abs(x, out=magnitudes)
            t.topk(magnitudes, k, sorted=False, out=(top, indices))
            return t.index_select(x, 0, indices, out=values)

        return Prepared(run_in_place)

    return Contestant("torch", "abs + topk + gather", allocates, prepare)


def numpy_top_k(density: float) -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        x, k = inputs.x, round(density * inputs.n)

        def run() -> object:
            indices = np.argpartition(np.abs(x), inputs.n - k)[inputs.n - k :]
            return indices, x[indices]

        return Prepared(run)

    return Contestant("numpy", "abs + argpartition, one thread", True, prepare)


# --- quantization -------------------------------------------------------------------------------


def torch_per_tensor() -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        t, x = torch(), inputs.tensor
        scale = float(x.abs().max()) / 127
        return Prepared(lambda: t.quantize_per_tensor(x, scale, 0, t.qint8))

    return Contestant("torch", "quantize_per_tensor, one scale, given", True, prepare)


def torch_blockwise(*, allocates: bool) -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        t, blocks = torch(), inputs.tensor.view(-1, BLOCK)
        if allocates:

            def run() -> object:
                step = blocks.abs().amax(dim=1, keepdim=True) / 127
                return (blocks / step).round().to(t.int8), step

            return Prepared(run)
        work, step = t.empty_like(blocks), t.empty(blocks.shape[0], 1)
        codes = t.empty(blocks.shape, dtype=t.int8)

        def run_in_place() -> object:
            t.abs(blocks, out=work)
            t.amax(work, dim=1, keepdim=True, out=step)
            step.div_(127)
            t.div(blocks, step, out=work)
            work.round_()
            return codes.copy_(work)

        return Prepared(run_in_place)

    return Contestant("torch", f"eager, blocks of {BLOCK}", allocates, prepare)


def piquant_encode(dtype: str, rounding: str, *, allocates: bool) -> Contestant:
    bits = {"UINT8": 8, "UINT4": 4}[dtype]

    def prepare(inputs: Inputs) -> Prepared:
        pq, context, x = piquant(), inputs.piquant, inputs.x
        kind, mode = pq.DataType[dtype], pq.RoundMode[rounding]
        n_bytes = inputs.n * bits // 8
        kept = np.empty(n_bytes, np.uint8)

        def run() -> object:
            out = np.empty(n_bytes, np.uint8) if allocates else kept
            scale, zero = context.compute_quant_params_ptr_float32(x.ctypes.data, kind, inputs.n)
            context.quantize_ptr(
                x.ctypes.data,
                pq.DataType.F32,
                out.ctypes.data,
                kind,
                numel=inputs.n,
                scale=scale,
                zero_point=zero,
                round_mode=mode,
            )
            return out

        return Prepared(run)

    name = f"min/max + {bits}-bit {rounding.lower()}, one scale"
    return Contestant("pi-quant", name, allocates, prepare)


# --- decoding -----------------------------------------------------------------------------------


def torch_per_tensor_add() -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        t, x = torch(), inputs.tensor
        codes = t.quantize_per_tensor(x, float(x.abs().max()) / 127, 0, t.qint8)
        accumulator = t.zeros_like(x)
        return Prepared(lambda: accumulator.add_(codes.dequantize(), alpha=WEIGHT))

    return Contestant("torch", "dequantize + add, one scale", True, prepare)


def torch_blockwise_add() -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        t, blocks = torch(), inputs.tensor.view(-1, BLOCK)
        step = blocks.abs().amax(dim=1, keepdim=True) / 127
        codes = (blocks / step).round().to(t.int8)
        accumulator, work = t.zeros_like(blocks), t.empty_like(blocks)

        def run() -> object:
            work.copy_(codes)
            work.mul_(step)
            return accumulator.add_(work, alpha=WEIGHT)

        return Prepared(run)

    return Contestant("torch", f"eager, blocks of {BLOCK}", False, prepare)


def piquant_decode_add() -> Contestant:
    def prepare(inputs: Inputs) -> Prepared:
        pq, context = piquant(), inputs.piquant
        codes = (np.arange(inputs.n, dtype=np.uint32) % 251).astype(np.uint8)
        accumulator = np.zeros(inputs.n, np.float32)

        def run() -> object:
            return context.dequantize_ptr(
                codes.ctypes.data,
                pq.DataType.UINT8,
                accumulator.ctypes.data,
                pq.DataType.F32,
                numel=inputs.n,
                scale=0.01,
                zero_point=128,
                reduce_op=pq.ReduceOp.ADD,
            )

        return Prepared(run)

    return Contestant("pi-quant", "dequantize + add, one scale, weight 1", False, prepare)


def tasks() -> list[Task]:
    both = (False, True)
    top_k = [
        Task(
            f"top_k {density:.1%}",
            4 + 8 * density,
            [
                *(ours_encode(f"topk({density}, fp32)", None, allocates=a) for a in both),
                *(torch_top_k(density, allocates=a) for a in both),
                numpy_top_k(density),
            ],
        )
        for density in (0.001, 0.01)
    ]
    return [
        *top_k,
        Task(
            "encode int8",
            5 + 4 / BLOCK,
            [
                *(ours_encode("int8", 0.51 / 127, allocates=a) for a in both),
                torch_per_tensor(),
                *(torch_blockwise(allocates=a) for a in both),
                *(piquant_encode("UINT8", "NEAREST", allocates=a) for a in both),
            ],
        ),
        Task(
            "encode int8 stochastic",
            5 + 4 / BLOCK,
            [
                *(ours_encode("int8(stochastic)", 1.01 / 127, allocates=a) for a in both),
                *(piquant_encode("UINT8", "STOCHASTIC", allocates=a) for a in both),
            ],
        ),
        Task(
            "encode int4",
            4.5 + 2 / 128,
            [
                # Steps are bf16, rounded up: by 1/128 at most.
                *(ours_encode("int4", 0.51 / 7 * 129 / 128, allocates=a) for a in both),
                *(piquant_encode("UINT4", "NEAREST", allocates=a) for a in both),
            ],
        ),
        Task(
            "decode_add int8",
            9 + 4 / BLOCK,
            [
                ours_decode_add("int8"),
                torch_blockwise_add(),
                torch_per_tensor_add(),
                piquant_decode_add(),
            ],
        ),
    ]
