"""The tasks of bench_kernel_peers.py --device cuda: what is done, and how each contestant does it.

All work on the same tensor, on one stream, into memory that is there before. A peer does the same
work as ours unless its name says what it leaves out. What torch and Triton compile is compiled
before it is timed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_peer_topk import (
    CHUNK,
    PER_CHUNK,
    cub_top_k,
    torch_chunk_top_k,
    torch_threshold,
    torch_top_k,
)
from peer_tasks import (
    BETA,
    OURS,
    WEIGHT,
    Contestant,
    CudaInputs,
    Prepared,
    Task,
    Unavailable,
    torch,
)

from pyfedcomm import _core, codecs

BLOCK = 256


# --- ours ---------------------------------------------------------------------------------------


class _Ours:
    """Our codec on the device, its outputs, and what the CPU's codec writes of the same."""

    def __init__(self, inputs: CudaInputs, name: str, *, feedback: bool) -> None:
        t = torch()
        if not _core.cuda.available():
            raise Unavailable("this build has no CUDA kernels: build with nvcc on the PATH")
        self.inputs, self.codec = inputs, codecs.get(name)
        self.cuda = _core.cuda.Codec(name)
        self.cuda.reserve(inputs.n)
        self.payload = inputs.empty(self.codec.wire_bytes(inputs.n), dtype=t.uint8)
        self.flags = t.zeros(2, dtype=t.int64, device=inputs.device)  # size; non-finite, corrupt
        self.after = inputs.empty(inputs.n) if feedback else None
        self.known: int | None = None

    def encode(self) -> None:
        residual = (0, 0)
        if self.after is not None:
            residual = (self.inputs.before.data_ptr(), self.after.data_ptr())
        self.known = self.cuda.encode(
            self.inputs.x.data_ptr(),
            self.inputs.n,
            self.payload.data_ptr(),
            self.flags.data_ptr(),
            self.flags.data_ptr() + 8,
            torch().cuda.current_stream().cuda_stream,
            residual,
        )

    def size(self) -> int:
        return int(self.flags[0]) if self.known is None else self.known

    def is_the_cpus(self) -> bool:
        x = self.inputs.x.cpu().numpy()
        if self.after is None:
            expected = self.codec.encode(x)
        else:
            rest = np.empty_like(x)
            before = self.inputs.before.cpu().numpy()
            expected = self.codec.encode(x, residual=before, new_residual=rest)
            if not np.array_equal(self.after.cpu().numpy(), rest):
                return False
        return np.array_equal(self.payload[: self.size()].cpu().numpy(), expected)


def ours_encode(name: str, *, feedback: bool = False) -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        ours = _Ours(inputs, name, feedback=feedback)
        return Prepared(ours.encode, ours.is_the_cpus)

    return Contestant(OURS, name, False, prepare)


def ours_decode_add(name: str) -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        ours = _Ours(inputs, name, feedback=False)
        ours.encode()
        n_bytes = ours.size()
        head = bytes(ours.payload[:4].cpu().numpy())
        accumulator = inputs.empty(inputs.n).zero_()

        def run() -> None:
            ours.cuda.decode_add(
                ours.payload.data_ptr(),
                n_bytes,
                head,
                WEIGHT,
                accumulator.data_ptr(),
                inputs.n,
                ours.flags.data_ptr() + 12,
                torch().cuda.current_stream().cuda_stream,
            )

        def check() -> bool:
            payload = ours.payload[:n_bytes].cpu().numpy()
            expected = WEIGHT * ours.codec.decode(payload, inputs.n)
            return np.array_equal(accumulator.cpu().numpy(), expected)

        return Prepared(run, check)

    return Contestant(OURS, name, False, prepare)


# --- quantization -------------------------------------------------------------------------------


def _within_half_a_step(inputs: CudaInputs, codes: Any, step: Any, limit: int) -> bool:
    """Whether codes are those of the nearest multiple of each block's step."""
    blocks = inputs.x.view(-1, BLOCK)
    error = (blocks - codes.to(blocks.dtype) * step.view(-1, 1)).abs()
    return bool((error <= 0.5001 * step.view(-1, 1)).all() and (codes.abs() <= limit).all())


def _quantize(blocks: Any, codes: Any, step: Any, limit: int) -> None:
    scale = blocks.abs().amax(dim=1, keepdim=True) / limit
    step.copy_(scale)
    codes.copy_((blocks / scale).round())


def torch_quantize(limit: int, *, compiled: bool) -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t, blocks = torch(), inputs.x.view(-1, BLOCK)
        codes = inputs.empty(*blocks.shape, dtype=t.int8)
        step = inputs.empty(blocks.shape[0], 1)
        quantize = t.compile(_quantize) if compiled else _quantize
        return Prepared(
            lambda: quantize(blocks, codes, step, limit),
            lambda: _within_half_a_step(inputs, codes, step, limit),
        )

    packed = "" if limit == 127 else ", a byte each"
    what = f"blocks of {BLOCK}{packed}"
    return Contestant("torch.compile" if compiled else "torch", what, False, prepare)


def torch_sign(*, compiled: bool) -> Contestant:
    def sign(blocks: Any, codes: Any, mean: Any, weights: Any) -> None:
        mean.copy_(blocks.abs().mean(dim=1, keepdim=True))
        bits = (blocks < 0).view(-1, 8).to(codes.dtype) * weights
        codes.copy_(bits.sum(dim=1, dtype=codes.dtype))

    def prepare(inputs: CudaInputs) -> Prepared:
        t, blocks = torch(), inputs.x.view(-1, BLOCK)
        codes = inputs.empty(inputs.n // 8, dtype=t.uint8)
        mean = inputs.empty(blocks.shape[0], 1)
        weights = (2 ** t.arange(8, device=inputs.device)).to(t.uint8)
        run = t.compile(sign) if compiled else sign

        def check() -> bool:
            bits = (codes.view(-1, 1) & weights) != 0
            return bool(t.equal(bits.view(-1), inputs.x < 0))

        return Prepared(lambda: run(blocks, codes, mean, weights), check)

    name = "torch.compile" if compiled else "torch"
    return Contestant(name, f"blocks of {BLOCK}, packed", False, prepare)


def _add_decoded(accumulator: Any, codes: Any, step: Any) -> None:
    accumulator.add_(codes * step, alpha=WEIGHT)


def torch_decode_add(*, compiled: bool) -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t, blocks = torch(), inputs.x.view(-1, BLOCK)
        codes = inputs.empty(*blocks.shape, dtype=t.int8)
        step = inputs.empty(blocks.shape[0], 1)
        _quantize(blocks, codes, step, 127)
        accumulator = t.zeros_like(blocks)
        run = t.compile(_add_decoded) if compiled else _add_decoded

        def check() -> bool:
            expected = WEIGHT * (codes * step)
            return bool(t.allclose(accumulator, expected, rtol=1e-6, atol=0))

        return Prepared(lambda: run(accumulator, codes, step), check)

    name = "torch.compile" if compiled else "torch"
    return Contestant(name, f"int8, blocks of {BLOCK}", False, prepare)


def triton_quantize() -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t, kernels = torch(), _triton_kernels()
        blocks = inputs.x.view(-1, BLOCK)
        codes = inputs.empty(*blocks.shape, dtype=t.int8)
        step = inputs.empty(blocks.shape[0], 1)
        return Prepared(
            lambda: kernels.quantize(inputs.x, codes, step),
            lambda: _within_half_a_step(inputs, codes, step, 127),
        )

    return Contestant("Triton", f"blocks of {BLOCK}", False, prepare)


def triton_decode_add() -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t, kernels = torch(), _triton_kernels()
        blocks = inputs.x.view(-1, BLOCK)
        codes = inputs.empty(*blocks.shape, dtype=t.int8)
        step = inputs.empty(blocks.shape[0], 1)
        _quantize(blocks, codes, step, 127)
        accumulator = t.zeros_like(inputs.x)

        def check() -> bool:
            expected = (WEIGHT * (codes * step)).view(-1)
            return bool(t.allclose(accumulator, expected, rtol=1e-6, atol=0))

        return Prepared(lambda: kernels.decode_add(codes, step, accumulator), check)

    return Contestant("Triton", f"int8, blocks of {BLOCK}", False, prepare)


def _triton_kernels() -> Any:
    try:
        import cuda_peer_triton
    except ImportError as error:
        raise Unavailable(f"Triton cannot be imported ({error}): pip install triton") from error
    return cuda_peer_triton


def copy_on_device() -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t = torch()
        to = t.empty_like(inputs.x)
        return Prepared(lambda: to.copy_(inputs.x), lambda: bool(t.equal(to, inputs.x)))

    return Contestant("torch", "copy_", False, prepare)


COPY = "copy"


def cuda_tasks() -> list[Task]:
    select = [
        Task(
            f"top_k {density:.1%} + feedback",
            12 + 6 * density,
            [
                ours_encode(f"topk({density}, int8, beta={BETA})", feedback=True),
                torch_top_k(density),
                torch_threshold(density, compiled=False),
                torch_threshold(density, compiled=True),
                cub_top_k(),
            ],
        )
        for density in (0.001, 0.01)
    ]
    return [
        Task(COPY, 8, [copy_on_device()]),
        Task(
            "encode int8",
            5 + 4 / BLOCK,
            [
                ours_encode("int8"),
                torch_quantize(127, compiled=False),
                torch_quantize(127, compiled=True),
                triton_quantize(),
            ],
        ),
        Task(
            "encode int4",
            4.5 + 2 / 128,
            [
                ours_encode("int4"),
                torch_quantize(7, compiled=False),
                torch_quantize(7, compiled=True),
            ],
        ),
        Task(
            "encode sign",
            4.125 + 4 / BLOCK,
            [ours_encode("sign"), torch_sign(compiled=False), torch_sign(compiled=True)],
        ),
        Task(
            "decode_add int8",
            9 + 4 / BLOCK,
            [
                ours_decode_add("int8"),
                torch_decode_add(compiled=False),
                torch_decode_add(compiled=True),
                triton_decode_add(),
            ],
        ),
        *select,
        Task(
            f"chunk_top_k {PER_CHUNK} of {CHUNK} + feedback",
            12 + 2 * PER_CHUNK / CHUNK,
            [
                ours_encode(f"chunk_topk({CHUNK}, {PER_CHUNK}, int2, beta={BETA})", feedback=True),
                torch_chunk_top_k(),
            ],
        ),
    ]
