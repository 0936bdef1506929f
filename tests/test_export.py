"""``pyfedcomm export``: what it makes opens with transformers; what it refuses it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from tiny_checkpoint import flip, truncate
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from pyfedcomm.cli import app
from pyfedcomm.data import tokenizers

TEXT = "def f(x): return 'ü€😀'  # \t\x00 end\n\n"


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two clouds that ended with equal models; at step 3 they differed."""
    folder = tmp_path_factory.mktemp("run")
    tiny_run.run(tiny_run.config(folder, checkpoint={"every": 3, "keep": 9}))
    return folder / "out"


def export(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_run_becomes_a_hugging_face_directory(run_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "model"
    status, said = export(run_directory, out)
    assert status == 0, said
    assert said.startswith(f"step 6 of cloud0 exported to {out}: ")
    assert "fp32, with its tokenizer" in said
    opened: Any = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    tiny_run.assert_equal_weights(dict(opened.state_dict()), tiny_run.weights(run_directory, 6))
    assert not [p for p in out.parent.iterdir() if p != out], "nothing temporary is left"
    ids = AutoTokenizer.from_pretrained(out, local_files_only=True)(TEXT)["input_ids"]
    generated = opened.generate(torch.tensor([ids[:8]]), max_new_tokens=2, do_sample=False)
    assert generated.shape == (1, 10)


def test_the_byte_tokenizer_as_transformers_sees_it(tmp_path: Path) -> None:
    own = tokenizers.load("bytes")
    own.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    # Every code point that UTF-8 has, and so every byte that can occur.
    text = TEXT + "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000, 7)]))
    (expected,) = own.encode([text])
    assert theirs(text)["input_ids"] == expected.tolist()
    assert theirs.decode(expected.tolist()) == text
    assert (theirs.eos_token_id, len(theirs)) == (own.end_of_text, own.vocab_size)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_precision_is_rounded_once(
    run_directory: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    status, said = export(run_directory, tmp_path / "x", "--dtype", name)
    assert status == 0, said
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype="auto")
    expected = tiny_run.weights(run_directory, 6)
    tiny_run.assert_equal_weights(
        dict(opened.state_dict()), {k: v.to(dtype) for k, v in expected.items()}
    )
    assert json.loads((tmp_path / "x" / "config.json").read_text())["dtype"] == str(dtype)[6:]


def test_the_tokenizer_of_the_run_comes_along(tmp_path: Path) -> None:
    from test_data import write_hf_tokenizer

    write_hf_tokenizer(tmp_path / "tok")
    tables: dict[str, Any] = {"data": {"tokenizer": str(tmp_path / "tok")}, "train": {"steps": 1}}
    tiny_run.run(tiny_run.config(tmp_path, **tables))
    status, said = export(tmp_path / "out", tmp_path / "x")
    assert status == 0, said
    assert "with its tokenizer" in said
    opened, original = (AutoTokenizer.from_pretrained(tmp_path / d) for d in ("x", "tok"))
    assert opened.get_vocab() == original.get_vocab()


def test_one_cloud_and_one_step(run_directory: Path, tmp_path: Path) -> None:
    """Step 3 lies inside a round, where the clouds' models differ."""
    status, said = export(run_directory, tmp_path / "any", "--step", 3)
    assert status == 1
    assert "the clouds' models differ at step 3" in said
    assert "choose one with --cloud cloud0 or cloud1" in said
    home = run_directory / "checkpoints" / "cloud1"
    ways: tuple[list[Any], ...] = (
        [run_directory, "--cloud", "cloud1", "--step", 3],
        [home, "--step", 3],
        [home / "step-00000003"],
    )
    for i, (source, *options) in enumerate(ways):
        status, said = export(source, tmp_path / str(i), *options)
        assert status == 0, said
        assert said.startswith("step 3 of cloud1 exported")
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / str(i))
        tiny_run.assert_equal_weights(
            dict(opened.state_dict()), tiny_run.weights(run_directory, 3, 1)
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}/nowhere", "{out}"], "there is no run and no checkpoint"),
        (["{run}/..", "{out}"], "holds no checkpoint"),
        (["{run}", "{out}", "--step", "4"], "no checkpoint of step 4; it holds 3, 6"),
        (
            ["{run}", "{out}", "--cloud", "cloud7"],
            "no checkpoints of cloud 'cloud7'; it has cloud0",
        ),
        (["{run}", "{out}", "--dtype", "int8"], "must be one of fp32, bf16, fp16"),
        (["{run}", "{run}"], "exists already"),
        (["{run}", "{run}/metrics.jsonl"], "exists already"),
        (["{run}", "{run}/metrics.jsonl/x"], "could not be written: File exists"),
        (
            ["{run}/checkpoints/cloud0/step-00000003", "{out}", "--cloud", "cloud0"],
            "is one checkpoint: leave out --step and --cloud",
        ),
    ],
)
def test_what_cannot_be(
    run_directory: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    places = {"run": run_directory, "out": tmp_path / "x"}
    status, output = export(*(a.format(**places) for a in arguments))
    assert status == 1
    assert output.startswith("error: ")
    assert said in output
    assert output.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damaged_weights_are_not_exported(
    run_directory: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(run_directory, tmp_path / "run")
    damage(tmp_path / "run/checkpoints/cloud0/step-00000006/model/model.safetensors")
    status, output = export(tmp_path / "run", tmp_path / "x")
    assert status == 1
    assert "model/model.safetensors" in output
    assert not (tmp_path / "x").exists()


def test_values_that_the_format_cannot_hold(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyfedcomm.train import model

    original = model.open_directory

    def opened(path: Path) -> torch.nn.Module:
        built = original(path)
        with torch.no_grad():
            next(iter(built.parameters()))[0] = 1e5
        return built

    monkeypatch.setattr(model, "open_directory", opened)
    status, output = export(run_directory, tmp_path / "x", "--dtype", "fp16")
    assert status == 1
    assert "parameter 'transformer.wte.weight' has values up to 100000" in output
    assert "use --dtype bf16 or fp32" in output
    assert export(run_directory, tmp_path / "x", "--dtype", "bf16")[0] == 0
