"""bench_kernel_peers.py --device cuda, as far as it goes without a GPU: on CPU tensors, torch's
contestants do the work that they are compared for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

from cuda_peer_tasks import cuda_tasks  # noqa: E402
from peer_tasks import CudaInputs  # noqa: E402

TORCHS = [
    pytest.param(contestant, id=f"{task.kernel}: {contestant.what}")
    for task in cuda_tasks()
    for contestant in task.contestants
    if contestant.peer == "torch"
]


@pytest.mark.parametrize("contestant", TORCHS)
def test_a_peer_does_its_work(contestant: object) -> None:
    inputs = CudaInputs(1 << 20, "cpu")
    prepared = contestant.prepare(inputs)  # type: ignore[attr-defined]
    prepared.run()
    assert prepared.check()


@pytest.mark.parametrize("contestant", TORCHS)
def test_a_peer_that_does_not_is_found_out(contestant: object) -> None:
    inputs = CudaInputs(1 << 20, "cpu")
    prepared = contestant.prepare(inputs)  # type: ignore[attr-defined]
    prepared.run()
    inputs.x.neg_().mul_(3)  # all that was written is of another tensor
    inputs.__dict__.pop("acc", None)
    if "int8, blocks" in contestant.what:  # type: ignore[attr-defined]
        prepared.run()  # adds, so twice is wrong
    assert not prepared.check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    script = [
        sys.executable,
        str(BENCH / "bench_kernel_peers.py"),
        "--device",
        "cuda",
        "-n",
        "4096",
    ]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "torch finds no GPU" in done.stderr
