"""How torch and others select on a GPU: contestants of cuda_peer_tasks.py.

None of them codes what it has chosen. torch rounds a product and its sum once, so residuals are
compared within rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peer_tasks import BETA, Contestant, CudaInputs, Prepared, Unavailable, torch

CHUNK, PER_CHUNK = 4096, 64
SAMPLE = 1 << 20


def torch_top_k(density: float) -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t, k = torch(), round(density * inputs.n)
        after, magnitudes = t.empty_like(inputs.x), t.empty_like(inputs.x)
        values, top = inputs.empty(k), inputs.empty(k)
        indices = inputs.empty(k, dtype=t.int64)

        def run() -> object:
            t.add(inputs.x, inputs.before, alpha=BETA, out=after)
            t.abs(after, out=magnitudes)
            t.topk(magnitudes, k, sorted=False, out=(top, indices))
            t.index_select(after, 0, indices, out=values)
            return after.index_fill_(0, indices, 0)

        def check() -> bool:
            left = inputs.acc.clone()
            left[indices] = 0  # an fma in torch's add differs in the last bit
            smallest, largest = float(values.abs().min()), float(after.abs().max())
            return bool(t.allclose(after, left, atol=1e-5) and smallest >= largest)

        return Prepared(run, check)

    return Contestant("torch", "abs + topk + gather + residual, not coded", False, prepare)


def _split(x: Any, before: Any, after: Any, threshold: Any) -> tuple[Any, Any]:
    acc = x + BETA * before
    chosen = acc.abs() >= threshold
    after.copy_(acc.masked_fill(chosen, 0))
    return acc, chosen


def torch_threshold(density: float, *, compiled: bool) -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t = torch()
        after = t.empty_like(inputs.x)
        stride = max(1, inputs.n // SAMPLE)
        split = t.compile(_split) if compiled else _split
        found: dict[str, Any] = {}

        def run() -> object:
            sample = inputs.x[::stride] + BETA * inputs.before[::stride]
            n_above = max(1, round(density * sample.numel()))
            threshold = t.topk(sample.abs(), n_above).values[-1]
            acc, chosen = split(inputs.x, inputs.before, after, threshold)
            found["indices"] = t.nonzero(chosen).view(-1)
            found["values"] = acc[found["indices"]]
            return found

        def check() -> bool:
            n_chosen = found["indices"].numel()
            about = 0.8 * density * inputs.n <= n_chosen <= 1.2 * density * inputs.n
            left = inputs.acc.clone()
            left[found["indices"]] = 0
            return about and bool(t.allclose(after, left, atol=1e-5))

        return Prepared(run, check)

    name = "torch.compile" if compiled else "torch"
    return Contestant(name, "sampled threshold + residual, about k, not coded", True, prepare)


def cub_top_k() -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        header = "cub/device/device_topk.cuh"
        places = [*Path("/usr/local").glob("cuda*/**/" + header)]
        if not places:
            raise Unavailable(f"no CUDA toolkit here has {header} (CCCL)")
        raise Unavailable(f"{places[0]} is there, but nothing here calls it yet")

    return Contestant("cub", "DeviceTopK", False, prepare)


def torch_chunk_top_k() -> Contestant:
    def prepare(inputs: CudaInputs) -> Prepared:
        t = torch()
        after = t.empty_like(inputs.x)
        rows = after.view(-1, CHUNK)
        magnitudes = t.empty_like(rows)
        values = inputs.empty(rows.shape[0], PER_CHUNK)
        top, indices = t.empty_like(values), inputs.empty(*values.shape, dtype=t.int64)

        def run() -> object:
            t.add(inputs.x, inputs.before, alpha=BETA, out=after)
            t.abs(rows, out=magnitudes)
            t.topk(magnitudes, PER_CHUNK, dim=1, sorted=False, out=(top, indices))
            t.gather(rows, 1, indices, out=values)
            return rows.scatter_(1, indices, 0)

        def check() -> bool:
            smallest, largest = values.abs().amin(dim=1), rows.abs().amax(dim=1)
            left = inputs.acc.view(-1, CHUNK).scatter(1, indices, 0)
            return bool((smallest >= largest).all() and t.allclose(rows, left, atol=1e-5))

        return Prepared(run, check)

    return Contestant("torch", "topk of rows + gather + residual, not coded", False, prepare)
