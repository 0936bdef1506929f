"""`CrossCloudCallback`: Trainers under a real ``mpirun``, and what a batch weighs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pyfedcomm import launch
from pyfedcomm.errors import InvalidArgument

pytest.importorskip("accelerate", reason="a transformers.Trainer needs accelerate")

from pyfedcomm.integrations import batches

pytestmark = pytest.mark.mpi

SCRIPT = Path(__file__).with_name("mpi_hf.py")
# peft asks transformers for a name that it has just renamed.
WARNINGS = ["-W", "error", "-W", "ignore::FutureWarning"]


@pytest.mark.parametrize(
    ("scenarios", "clouds", "n_ranks"),
    [
        # Ranks take longer to import transformers than for most of these: one start for several.
        ("every_rule,resumed", "2", 2),
        ("every_rule,resumed,metrics", "1,2", 3),
        # Not together: accelerate looks for a torch.distributed once in a process.
        ("refused", "2", 4),
        ("own_torch_distributed", "2", 4),
        ("adapters", "2", 2),
    ],
)
def test_trainers(tmp_path: Path, scenarios: str, clouds: str, n_ranks: int) -> None:
    if scenarios == "adapters":
        pytest.importorskip("peft", reason="peft is not installed")
    log, out = tmp_path / "log", tmp_path / "out"
    argv = [sys.executable, *WARNINGS, str(SCRIPT), scenarios, clouds, str(out)]
    env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    status = launch.run(n_ranks, argv, timeout_s=250.0, log=log, env=env)
    output = log.read_text(errors="replace")
    assert status == 0, output
    assert [f"rank {rank} ok" in output for rank in range(n_ranks)] == [True] * n_ranks, output


IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
LABELS = torch.tensor([[5, -100, 7, 8], [-100, 6, -100, -100]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("inputs", "shifted", "expected"),
    [
        ({"input_ids": IDS, "labels": LABELS, "attention_mask": MASK}, True, 3),
        ({"input_ids": IDS, "labels": LABELS}, False, 4),
        ({"input_ids": IDS, "labels": LABELS, "shift_labels": LABELS[:, :2]}, True, 2),
        ({"input_ids": IDS, "labels": torch.full_like(IDS, -100)}, True, 0),
        ({"input_ids": IDS, "labels": torch.tensor([0, 1])}, False, 2),
        ({"input_ids": IDS, "labels": torch.tensor([0.5, 0.25])}, False, 2),
        ({"input_ids": IDS, "attention_mask": MASK}, True, 6),
        ({"input_ids": IDS, "use_cache": False}, True, 8),
        ({"pixel_values": torch.zeros(3, 2, 2)}, False, 3),
    ],
)
def test_what_a_batch_weighs(inputs: dict[str, torch.Tensor], shifted: bool, expected: int) -> None:
    assert int(batches.n_predicted(inputs, shifted=shifted)) == expected


def test_a_batch_without_tensors_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"among the model's inputs \(a\)"):
        batches.n_predicted({"a": None}, shifted=False)


def test_parts_are_disjoint_and_of_one_length() -> None:
    parts = [
        [p[i] for i in range(len(p))] for p in (batches.part(range(11), r, 3) for r in (0, 1, 2))
    ]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(InvalidArgument, match="has no length"):
        batches.part(iter(range(3)), 0, 2)
