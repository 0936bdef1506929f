"""The examples run as their first lines say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyfedcomm import launch

pytestmark = pytest.mark.mpi

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_sum(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert launch.run(2, [sys.executable, str(EXAMPLES / "sum.py")], timeout_s=120, log=log) == 0
    printed = log.read_text()
    assert "sum: [3. 3. 3. 3.]" in printed
    assert "bytes of 4194320 in fp32" in printed


def test_links(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, str(EXAMPLES / "links.py")]
    assert launch.run(3, argv, timeout_s=120, log=log) == 0
    printed = log.read_text()
    assert "rank 2 -> rank 1" in printed
    assert "1,000,000 elements as fp32, 4 MB, 3 members: " in printed


def run(tmp_path: Path, n_ranks: int, *argv: str) -> str:
    log = tmp_path / "log"
    command = [sys.executable, str(EXAMPLES / argv[0]), *argv[1:]]
    env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    status = launch.run(n_ranks, command, timeout_s=250, log=log, env=env)
    printed = log.read_text(errors="replace")
    assert status == 0, printed
    return printed


def test_own_loop(tmp_path: Path) -> None:
    printed = run(tmp_path, 2, "own_loop.py")
    assert "equal parameters in all clouds: True" in printed
    assert "step 150: loss 0.0" in printed


def test_ddp_hook(tmp_path: Path) -> None:
    printed = run(tmp_path, 4, "ddp_hook.py")
    assert "equal parameters on all ranks: True" in printed
    assert "step 75: loss 0.0" in printed


@pytest.mark.parametrize("adapters", [False, True])
def test_hf_trainer(tmp_path: Path, adapters: bool) -> None:
    pytest.importorskip("accelerate", reason="a transformers.Trainer needs accelerate")
    if adapters:
        pytest.importorskip("peft", reason="peft is not installed")
    printed = run(tmp_path, 2, "hf_trainer.py", *["--lora"][: int(adapters)])
    assert "equal parameters in all clouds: True" in printed


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name
