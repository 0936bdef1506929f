"""Training on a GPU that two clouds of one rank share: what other tests do on CPUs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_mpi import DROPOUT, mpirun
from tiny_run import assert_equal_weights, losses, records, weights

from pyfedcomm import _core, launch

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not _core.cuda.available(), reason="built without FEDCOMM_CUDA"),
]

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "sync",
    [
        {"rule": "diloco", "local_steps": 2, "codec": "int8", "outer_on_host": True},
        {"rule": "streaming", "local_steps": 2, "codec": "e3m0", "error_feedback": True},
        {"rule": "sparse", "local_steps": 2},
    ],
)
def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path, sync: dict[str, Any]) -> None:
    """With dropout; checkpoints go through pinned memory while training does not wait."""
    tables: dict[str, Any] = {
        "run": {"device": "cuda"},
        "model": DROPOUT,
        "sync": sync,
        "checkpoint": {"every": 3, "keep": 9},
    }
    status, straight = mpirun(tmp_path, 2, "--clouds", "2", **tables)
    assert status == 0, straight.text
    first, second = tmp_path / "out", tmp_path / "second"
    assert records(first)[0]["device"].startswith("cuda")
    assert records(first)[-1]["bit_identical"]
    start = ["--set", f"run.out={second}", "--resume"]
    start.append(f"{first}/checkpoints/{{cloud}}/step-00000003")
    status, resumed = mpirun(tmp_path, 2, "--clouds", "2", *start, **tables)
    assert status == 0, resumed.text
    for cloud in range(2):
        assert_equal_weights(weights(first, 6, cloud), weights(second, 6, cloud))
    assert losses(second) == {s: loss for s, loss in losses(first).items() if s > 3}


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("mpi_integrations.py", ["ddp", "2", "cuda"]),
        ("mpi_hf.py", ["every_rule,resumed,metrics", "2", "OUT"]),
        ("mpi_hf.py", ["adapters", "2", "OUT"]),
    ],
)
def test_integrations(tmp_path: Path, script: str, arguments: list[str]) -> None:
    if script == "mpi_hf.py":
        pytest.importorskip("accelerate", reason="a transformers.Trainer needs accelerate")
    if "adapters" in arguments:
        pytest.importorskip("peft", reason="peft is not installed")
    log = tmp_path / "log"
    chosen = [str(tmp_path / "out") if each == "OUT" else each for each in arguments]
    # A Trainer takes all GPUs that it sees.
    env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "0"}
    argv = [sys.executable, str(HERE / script), *chosen]
    status = launch.run(2, argv, timeout_s=250.0, log=log, env=env)
    output = log.read_text(errors="replace")
    assert status == 0, output
    assert [f"rank {rank} ok" in output for rank in range(2)] == [True] * 2, output
