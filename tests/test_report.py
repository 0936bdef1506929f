"""report: what is read from metrics.jsonl, and what the page shows of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pyfedcomm.errors import ConfigError, InvalidArgument
from pyfedcomm.report import Run, read_run, write_report
from pyfedcomm.report.units import bytes_text, count_text, seconds_text

END = {
    "event": "end",
    "eval_loss_start": 5.5,
    "eval_loss": 2.25,
    "steps": 40,
    "tokens": 983040,
    "seconds": 75.25,
    "n_params": 836864,
    "wan_bytes": 4000000,
    "wan_bytes_data_parallel": 400000000,
    "time": {"compute": 60.0, "encode": 1.5, "wire": 2.5, "wait": 10.0},
    "bit_identical": True,
}
RECORDS: list[dict[str, Any]] = [
    {"event": "start", "config": {"sync.codec": "int8"}, "model": {"model.hidden_size": 128}},
    {"event": "eval", "step": 0, "eval_loss": 5.5},
    {"step": 20, "loss": 3.0, "wan_bytes": 2000000},
    {"step": 40, "loss": 2.5, "wan_bytes": 4000000},
    {"event": "eval", "step": 40, "eval_loss": 2.25},
    END,
]


def write(folder: Path, records: list[dict[str, Any]], rest: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + rest)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write(tmp_path / "run", RECORDS), "the run")


def page_of(tmp_path: Path, *runs: Run) -> str:
    path = tmp_path / "report.html"
    write_report(path, runs, title="A title", lead="A lead.")
    return path.read_text(encoding="utf-8")


def test_reads_what_was_logged(run: Run) -> None:
    assert [(s.step, s.loss, s.wan_bytes) for s in run.steps] == [
        (20, 3.0, 2000000),
        (40, 2.5, 4000000),
    ]
    assert run.evals == ((0, 5.5), (40, 2.25))
    assert run.start["config"] == {"sync.codec": "int8"}
    assert run.finished
    assert run.end["eval_loss"] == 2.25


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    assert read_run(tmp_path, "x") == Run("x", {}, (), (), {})
    run = read_run(write(tmp_path, RECORDS[:3], rest='{"step": 21, "lo'), "x")
    assert len(run.steps) == 1
    assert not run.finished
    with pytest.raises(InvalidArgument, match="'x' has not finished"):
        page_of(tmp_path, run)


def test_a_loss_that_was_not_finite(tmp_path: Path) -> None:
    records = [*RECORDS[:3], {**RECORDS[3], "loss": None}, RECORDS[4], {**END, "eval_loss": None}]
    run = read_run(write(tmp_path, records), "x")
    assert math.isnan(run.steps[-1].loss)
    assert "nan" in page_of(tmp_path, run)


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1}', '{"event": "eval", "step": "x"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    folder = write(tmp_path, RECORDS[:2], rest=line + "\n" + json.dumps(RECORDS[2]) + "\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 3"):
        read_run(folder, "x")


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        page_of(tmp_path)


class _Page(HTMLParser):
    """Collects ids, references and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert value is not None or name == "open"
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_page_asks_for_nothing(tmp_path: Path, run: Run) -> None:
    text = page_of(tmp_path, run, run)
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.ids) == len(set(page.ids)), "ids are unique on the page"
    assert page.references, "markers are drawn once and used"
    assert {ref.removeprefix("#") for ref in page.references} <= set(page.ids)
    assert "@import" not in text
    assert "//" not in re.sub(r"</?[\w!]", "", text)


def test_every_colour_follows_the_page(tmp_path: Path, run: Run) -> None:
    text = page_of(tmp_path, run)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert drawn.count("<svg") == 4
    assert not re.findall(r"#[0-9a-f]{6}", drawn), "a colour that no style sheet can change"
    style = text[text.index("<style>") : text.index("</style>")]
    for variable in set(re.findall(r"var\((--[\w-]+)\)", drawn)):
        assert style.count(f"{variable}:") == 2, f"{variable}: one for light, one for dark"


def test_the_page_shows_the_numbers(tmp_path: Path, run: Run) -> None:
    other = Run("the other", {}, run.steps, run.evals, {**END, "eval_loss": 3.125, "wan_bytes": 0})
    text = _Page(page_of(tmp_path, run, other)).text
    for shown in ("A title", "A lead.", "2.250", "3.125 for the other", "4.00 MB", "400 MB"):
        assert shown in text
    assert "100 times" in text
    assert "sync.codec" in text
    assert "hidden_size" in text


def test_a_run_without_exchange_has_no_chart_of_bytes(tmp_path: Path, run: Run) -> None:
    alone = Run("alone", {}, run.steps, run.evals, {**END, "wan_bytes": 0})
    assert page_of(tmp_path, alone).count("<svg") == 3


def test_differing_ranks_are_not_hidden(tmp_path: Path, run: Run) -> None:
    bad = Run("bad", {}, run.steps, run.evals, {**END, "bit_identical": False})
    assert "different parameters" in page_of(tmp_path, bad)


def test_names_are_text_not_markup(tmp_path: Path, run: Run) -> None:
    named = Run("<b>&", run.start, run.steps, run.evals, run.end)
    assert "<b>&<" not in page_of(tmp_path, named)


def test_the_same_run_gives_the_same_page(tmp_path: Path, run: Run) -> None:
    assert page_of(tmp_path, run) == page_of(tmp_path, run)


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (bytes_text, 0, "0 B"),
        (bytes_text, 999, "999 B"),
        (bytes_text, 1000, "1.00 kB"),
        (bytes_text, 999_999, "1.00 MB"),
        (bytes_text, 12_345_678, "12.3 MB"),
        (bytes_text, 1.5e15, "1.50 PB"),
        (count_text, 12, "12"),
        (count_text, 836_864, "837 thousand"),
        (count_text, 999_999, "1.00 million"),
        (seconds_text, 3.14, "3.1 s"),
        (seconds_text, 59.96, "1 min 0 s"),
        (seconds_text, 75.2, "1 min 15 s"),
    ],
)
def test_units(unit: Callable[[float], str], value: float, text: str) -> None:
    assert unit(value) == text
