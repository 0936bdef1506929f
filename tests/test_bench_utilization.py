"""bench_utilization.py as a program: what its rows say, not how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyfedcomm.buckets import SHARD_MULTIPLE
from pyfedcomm.errors import ConfigError
from pyfedcomm.train.config import TrainConfig, load

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as for the scripts there

import bench_utilization  # noqa: E402
import table  # noqa: E402  (found by the path just given)
import wanlab  # noqa: E402

pytestmark = pytest.mark.mpi

REASON = wanlab.missing()
GPT2 = ["train.micro_batch=1", "model.n_layer=2", "model.n_embd=64", "model.n_head=1"]
LLAMA = ["train.micro_batch=1", "model.num_hidden_layers=2", "model.hidden_size=64"]
LLAMA += ["model.num_attention_heads=2", "model.num_key_value_heads=2", "data.seq_len=32"]
LLAMA += ["model.intermediate_size=128", "model.vocab_size=300"]


def run(*arguments: str, sets: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "bench_utilization.py"), *arguments]
    command += [f"--set={each}" for each in sets]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.skipif(REASON is not None, reason=f"wanlab: {REASON}")
@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--rules", "isolated; sparse", "--pieces", "1"], ["isolated", "sparse"]),
        (["--slower", "3"], list(bench_utilization.UNEQUAL)),
    ],
)
def test_rows_of_every_rule_and_cloud(
    tmp_path: Path, arguments: list[str], rules: list[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    sets = [*GPT2, "sync.local_steps=4"]  # four fragments need as many steps
    done = run("--turns", "1", "--devices", "cpu,cpu", *arguments, "--json", str(file), sets=sets)
    assert done.returncode == 0, done.stderr
    rows = table.read_rows(file)
    assert [(r["rule"], r["cloud"]) for r in rows] == [(r, c) for r in rules for c in range(2)]
    for row in rows:
        assert 0 < row["busy"] <= 1
        # In so few steps a cloud without rounds may not have pushed at all.
        assert row["bytes_per_step"] > 0 or row["rule"] in ("isolated", "async")
        assert row["verified"] is (None if row["rule"] == "isolated" else True)
        assert {"machine", "date", "commit", "rate_mbit", "rtt_ms"} <= row.keys()
        assert row["rule"] in done.stdout


def test_sharded_clouds_behind_a_limit(tmp_path: Path) -> None:
    """FSDP in clouds of two ranks, which are rails that share the limit; without a laboratory."""
    file = tmp_path / "rows.jsonl"
    arguments = ["--plain", "--preset", "llama", "--ranks", "2", "--devices", "cpu,cpu"]
    arguments += ["--turns", "1", "--rounds", "2", "--rules", "isolated; streaming"]
    sets = [*LLAMA, "sync.local_steps=8", "sync.overlap_steps=1", "sync.codec=fp32"]
    done = run(*arguments, "--json", str(file), sets=sets)
    assert done.returncode == 0, done.stderr
    rows = table.read_rows(file)
    assert [(r["rule"], r["cloud"]) for r in rows] == [
        (rule, cloud) for rule in ("isolated", "streaming") for cloud in range(2)
    ]
    for row in rows:
        assert (row["ranks"], row["rails"], row["devices"]) == ([2, 2], 2, ["CPU", "CPU"])
        assert (row["parallel"], row["dtype"], row["steps"]) == ("fsdp", "bf16", [16])
        assert row["utilisation"] == pytest.approx(1 / row["ratio"])
        assert row["rtt_ms"] is None
    for row in rows[2:]:
        assert row["verified"] is True
        assert row["floor_bytes_per_step"] == 4 * row["n_params"] / 8
        # Each fragment once in a round, its shards padded; and headers.
        padding = 4 * 4 * row["rails"] * SHARD_MULTIPLE / 8
        assert 0 < row["bytes_per_step"] - row["floor_bytes_per_step"] < 1.01 * padding
    assert "bytes a step" in table.table(rows)


@pytest.mark.parametrize(("turns", "ratio"), [([2.0, 2.2, 9.0], 1.1), ([1.0, 1.0, 1.0], 1.0 / 2)])
def test_the_ratio_is_of_each_turn_to_its_own(turns: list[float], ratio: float) -> None:
    rows = [
        {"rule": "isolated", "cloud": 0, "turn_step_s": [2.0, 2.0, 2.0], "busy": 1.0},
        {"rule": "sparse", "cloud": 0, "turn_step_s": turns, "busy": 0.9},
    ]
    row = bench_utilization.finished(rows[1], rows)
    assert row["ratio"] == pytest.approx(ratio)
    assert row["utilisation"] == pytest.approx(1 / ratio)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rules", "nothing"], "'nothing' is none of"),
        (["--preset", "nothing"], "nothing.toml"),
        (["--set", "sync.rules=diloco"], "did you mean 'sync.rule'"),
        (["--slower", "0.5"], "--slower must be 1 or more"),
        (["--pieces", "7"], "does not divide"),
        (["--rules", "isolated"], "nothing beside isolated"),
        (["--turns", "0"], "--turns must be 1 or more"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_turns_of_rounds_of_one_length() -> None:
    def config(rule: str, local_steps: int) -> TrainConfig:
        sets = [f"sync.rule={rule}", f"sync.local_steps={local_steps}"]
        return load(bench_utilization.PRESETS / "llama.toml", sets)

    configs = {"isolated": config("isolated", 1), "diloco": config("diloco", 40)}
    assert bench_utilization.local_steps_of(configs) == 40
    configs["sparse"] = config("sparse", 15)
    with pytest.raises(ConfigError, match="'diloco': 40, 'sparse': 15"):
        bench_utilization.local_steps_of(configs)


def test_a_piece_may_not_end_within_an_exchange() -> None:
    arguments = ["--plain", "--preset", "llama", "--devices", "cpu,cpu", "--rules", "streaming"]
    done = run(*arguments, sets=[*LLAMA, "sync.local_steps=8", "sync.overlap_steps=2"])
    assert done.returncode == 1
    assert "while a fragment is under way" in done.stderr
