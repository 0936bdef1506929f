"""bench_quality.py: the comparison of rows, the frontier, the text to train on, one small run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as for the scripts there

import bench_quality  # noqa: E402
from quality import corpus, plot, points, runs, table  # noqa: E402

from pyfedcomm.train.config import from_table  # noqa: E402

pytestmark = pytest.mark.mpi


def row(point: str, seed: int, loss: float, wan_bytes: int, **more: Any) -> dict[str, Any]:
    return {
        "preset": "cpu",
        "point": point,
        "seed": seed,
        "rule": "diloco",
        "codec": "fp32",
        "local_steps": 40,
        "eval_loss": loss,
        "tokens": 1000,
        "wan_bytes": wan_bytes,
        "wan_bytes_data_parallel": 80_000,
        **more,
    }


BASE = [row("all", s, 2.0 + s, 80_000, rule="gradient") for s in (0, 1)]
CODED = row("coded", 0, 2.1, 8000, rule="gradient", codec="int4")


def test_a_point_is_compared_with_the_baseline_of_the_same_seed() -> None:
    few = [row("few", 0, 2.2, 40), row("few", 1, 3.03, 40), row("few", 2, 9.0, 40)]
    base, coded, compared = table.compare([CODED, *few, *BASE])
    assert (base.name, base.difference, base.fewer, base.local_steps) == ("all", 0.0, 1.0, None)
    assert (coded.name, coded.local_steps, coded.fewer) == ("coded", None, 10.0)
    assert coded.difference == pytest.approx(5.0)
    # 10 % and 1 %; the third seed has nothing to be compared with.
    assert compared.difference == pytest.approx(5.5)
    assert compared.loss == pytest.approx((2.2 + 3.03 + 9.0) / 3)
    assert (compared.loss_least, compared.loss_most, compared.seeds) == (2.2, 9.0, 3)
    assert (compared.fewer, compared.bytes_per_token) == (2000.0, 0.04)


def test_the_baseline_has_the_preset_s_learning_rate() -> None:
    faster = row("faster", 0, 1.9, 80_000, rule="gradient", rate=1.4)
    base, other = table.compare([faster, *BASE])
    assert (base.name, other.name) == ("all", "faster")
    assert other.difference == pytest.approx(-5.0)
    # But who is better than the slower one may be worse than the faster.
    assert base.own_difference == pytest.approx(100 * (2.0 / 1.9 - 1) / 2)
    assert other.own_difference == 0.0


def test_an_optimizer_is_compared_with_its_own_data_parallel_too() -> None:
    rows = [
        row("its all", 0, 1.8, 80_000, rule="gradient", optimizer="muon", rate=2.0),
        row("its few", 0, 1.9, 40, optimizer="muon"),
        row("alone", 0, 1.9, 40, optimizer="another"),
    ]
    base, its_all, few, alone = table.compare([*rows, *BASE])
    assert base.name == "all"
    assert its_all.difference == pytest.approx(-10.0)
    assert its_all.own_difference == 0.0
    assert few.difference == pytest.approx(-5.0)
    assert few.own_difference == pytest.approx(100 * (1.9 / 1.8 - 1))
    assert math.isnan(alone.own_difference)


def test_without_a_baseline_there_is_no_difference() -> None:
    [only] = table.compare([row("few", 0, 2.2, 40)])
    assert math.isnan(only.difference)
    assert table.render([row("few", 0, 2.2, 40)]).endswith("| 0.04 | 2,000 | - | - |")


def test_frontier_leaves_out_what_is_beaten_in_both() -> None:
    rows = [*BASE[:1], row("b", 0, 2.2, 800), row("beaten", 0, 2.3, 800), row("c", 0, 2.4, 80)]
    rows += [row("beaten too", 0, 2.25, 4000)]
    assert [p.name for p in plot.frontier(table.compare(rows))] == ["all", "b", "c"]
    # Seed 0 is the easier one: a lower loss with it alone is no better point.
    rows = [*BASE, row("only the easier", 0, 2.1, 90_000)]
    assert [p.name for p in plot.frontier(table.compare(rows))] == ["all"]


def test_plot_is_svg_with_every_name(tmp_path: Path) -> None:
    plot.write([*BASE, row("few & <small>", 0, 2.2, 40)], tmp_path / "frontier.svg")
    root = ElementTree.parse(tmp_path / "frontier.svg").getroot()
    texts = {"".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"all", "few & <small>"} <= texts


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_every_point_of_a_preset_is_a_valid_run(preset: str, tmp_path: Path) -> None:
    chosen = points.load(points.FILE, preset)
    bench = runs.Bench(preset, tmp_path, overrides=("train.steps=7",))
    for point in chosen:
        config = from_table(runs.tables(bench, point, seed=3))
        assert (config.train.steps, config.run.seed) == (7, 3)
        own = from_table(points.read(points.FILE.with_name(f"{preset}.toml"))).train
        assert config.train.optimizer == point.optimizer
        assert config.train.lr == point.rate * own.lr
        assert config.train.min_lr == point.rate * own.min_lr
    assert len({point.name for point in chosen}) == len({point.slug for point in chosen})
    exact = [(point.optimizer, point.rate) for point in chosen if point.data_parallel]
    assert exact.count(("adamw", 1)) == 1
    assert {point.optimizer for point in chosen} == {optimizer for optimizer, _ in exact}


def test_packages_are_divided_and_copies_left_out(tmp_path: Path) -> None:
    texts = {
        "small/a.py": "a" * 300,
        "other/copy.py": "a" * 300,
        "tiny/b.py": "b",
        "big/one/x.py": "x" * 3000,
        "big/two/y.py": "y" * 3000,
        "big/z.py": "z" * 3000,
        "binary/c.py": "c\0" * 300,
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = corpus.find_packages(tmp_path)
    # "other" comes before "small"; what has more than a 16th of all bytes is divided.
    assert sorted(found) == ["big/one", "big/two", "big/z.py", "other"]
    out = tmp_path / "out"
    out.mkdir()
    told = corpus.write(found, out, 2)
    lines = [line for c in (0, 1) for line in (out / f"cloud{c}.jsonl").read_text().splitlines()]
    assert sorted({json.loads(line)["text"][0] for line in lines}) == ["a", "x", "y", "z"]
    assert sum(cloud["bytes"] for cloud in told) == 9300


def test_rows_are_measured_once(tmp_path: Path) -> None:
    (tmp_path / "points.toml").write_text(
        '[[point]]\nname = "all"\n'
        'sync = { rule = "gradient", codec = "fp32", algorithm = "ring" }\n'
        '[[point]]\nname = "wrong"\nsync = { rule = "diloco", codec = "none such" }\n'
    )
    command = [sys.executable, str(BENCH / "bench_quality.py"), "cpu"]
    command += ["--json", str(tmp_path / "rows.jsonl"), "--work", str(tmp_path / "runs")]
    command += ["--points", str(tmp_path / "points.toml"), "--set", "train.steps=2"]
    for option in ("train.warmup_steps=1", "model.num_hidden_layers=1", "eval.sequences=4"):
        command += ["--set", option]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 1
        assert "wrong, seed 0: exit status 1" in done.stderr
        assert "none such" in done.stderr
        [only] = table.read(tmp_path / "rows.jsonl")
    assert "all, seed 0" not in done.stdout
    assert only["bit_identical"]
    # Frames are a header larger than the fp32 ring all-reduce that the ratio is taken of.
    assert 1.0 < only["wan_bytes"] / only["wan_bytes_data_parallel"] < 1.1
    assert only["tokens"] == 2 * 4 * 4 * 64


def test_text_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_quality.main(["gpu", "--json", "x"])
    assert "--corpus" in capsys.readouterr().err
