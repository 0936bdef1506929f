"""CUDA kernels: need a GPU and a build with FEDCOMM_CUDA, skip by name elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyfedcomm import _core, codecs

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not _core.cuda.available(), reason="built without FEDCOMM_CUDA"),
]

CODECS = [
    *codecs.names(),
    "int8(stochastic, seed=3)",
    "topk(0.001, bf16)",
    "chunk_topk(1000, 10, int4, index=packed)",
]
SIZES = [0, 1, 31, 255, 256, 257, 8191, 1_000_003, (1 << 24) + 77]


def encode_on_device(name: str, x: Any) -> tuple[npt.NDArray[np.uint8], int]:
    """Payload, and the flag that says whether a value could not be held."""
    room = codecs.get(name).wire_bytes(x.numel())
    payload = torch.full((room + 8,), 0xAB, dtype=torch.uint8).cuda()
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    n_bytes = torch.zeros(1, dtype=torch.int64, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    known = _core.cuda.Codec(name).encode(
        x.data_ptr(),
        x.numel(),
        payload.data_ptr(),
        n_bytes.data_ptr(),
        flag.data_ptr(),
        stream,
    )
    size = int(n_bytes.item()) if known is None else known
    all_bytes: npt.NDArray[np.uint8] = payload.cpu().numpy()
    assert (all_bytes[size:] == 0xAB).all()
    return all_bytes[:size], int(flag.item())


def inputs(n: int, seed: int) -> npt.NDArray[np.float32]:
    """Gaussians of very different magnitude from block to block, with zeros and denormals."""
    rng = np.random.default_rng(seed)
    scale = np.repeat(10.0 ** rng.uniform(-42, 30, n // 200 + 1), 200)[:n]
    x = (rng.standard_normal(n) * scale).astype(np.float32)
    x[rng.random(n) < 0.05] = 0
    return x


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("n", SIZES)
def test_encoders_write_the_same_bytes(name: str, n: int) -> None:
    for seed in range(3):
        x = inputs(n, seed)
        payload, flag = encode_on_device(name, torch.from_numpy(x).cuda())
        assert payload.tobytes() == codecs.get(name).encode(x).tobytes()
        assert flag == 0


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("n", SIZES)
def test_decoders_agree_to_the_last_bit(name: str, n: int) -> None:
    codec, x, start = codecs.get(name), inputs(n, 1), inputs(n, 2)
    payload = codec.encode(x)
    on_device = torch.from_numpy(payload.copy()).cuda()
    out = torch.full((n,), 7.0, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    device = _core.cuda.Codec(name)
    corrupt = torch.zeros(1, dtype=torch.int32, device="cuda")
    whole = (on_device.data_ptr(), payload.nbytes, payload.tobytes()[:4])
    device.decode(*whole, out.data_ptr(), n, corrupt.data_ptr(), stream)
    assert out.cpu().numpy().tobytes() == codec.decode(payload, n).tobytes()
    total, truth = torch.from_numpy(start.copy()).cuda(), start.copy()
    device.decode_add(*whole, 0.3, total.data_ptr(), n, corrupt.data_ptr(), stream)
    assert int(corrupt.item()) == 0
    codec.decode_add(payload, truth, weight=0.3)
    assert total.cpu().numpy().tobytes() == truth.tobytes()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_raise_the_flag_and_the_same_bytes(name: str, bad: float) -> None:
    x = inputs(5000, 3)
    x[4097] = bad
    payload, flag = encode_on_device(name, torch.from_numpy(x).cuda())
    assert flag == 1
    assert payload.tobytes() == codecs.get(name).encode(x, nonfinite="propagate").tobytes()


def test_encoding_can_be_captured_in_a_graph() -> None:
    x = torch.randn(1 << 20, device="cuda")
    payload = torch.empty(codecs.get("int8").wire_bytes(x.numel()), dtype=torch.uint8).cuda()
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    device = _core.cuda.Codec("int8")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.encode(
            x.data_ptr(),
            x.numel(),
            payload.data_ptr(),
            0,
            flag.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert payload.cpu().numpy().tobytes() == codecs.get("int8").encode(x.cpu().numpy()).tobytes()
