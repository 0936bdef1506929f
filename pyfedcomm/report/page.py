"""The page: headline numbers, four charts, a table of numbers and one of the configuration.

One HTML file with its style and its drawings inside; it asks for nothing from anywhere and runs no
script. What the charts look like is in ``charts``, how runs are read in ``data``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pyfedcomm.errors import InvalidArgument
from pyfedcomm.report import charts
from pyfedcomm.report.data import Run
from pyfedcomm.report.units import bytes_text, count_text, seconds_text
from pyfedcomm.train.metrics import PHASES

_STYLE = Path(__file__).with_name("page.css")
_WHO_WROTE_IT = frozenset({"event", "cloud", "rank"})


def write_report(path: Path, runs: Sequence[Run], *, title: str, lead: str) -> None:
    """Writes the report of finished runs to ``path``.

    runs: the first is what the report is about, the others are what it is compared with.
    title: the heading. lead: one or two sentences under it.
    Raises `InvalidArgument` for a run that has not finished, `OSError` if it cannot be written.
    """
    if not runs:
        raise InvalidArgument("a report needs at least one run")
    for run in runs:
        if not run.finished:
            raise InvalidArgument(f"run {run.name!r} has not finished: its metrics have no end")
    path.write_text(_page(runs, title, lead), encoding="utf-8")


def _page(runs: Sequence[Run], title: str, lead: str) -> str:
    main, others = runs[0], runs[1:]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="lead">{escape(lead)}</p>',
            '<div class="tiles">',
            *_tiles(main, others),
            "</div>",
            '<div class="cards">',
            *_cards(main, runs),
            "</div>",
            _card("Numbers", _numbers(runs), wide=True),
            _card("Configuration", _configuration(main), wide=True),
            "<footer>Losses are cross-entropy in nats per token. Bytes are those of all ranks that "
            "crossed from one cloud to another, headers included. Data-parallel means an fp32 ring "
            "all-reduce of every gradient at every step; its bytes are computed, not measured."
            "</footer>",
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _tiles(main: Run, others: Sequence[Run]) -> Iterator[str]:
    end = main.end
    before = f"{end['eval_loss_start']:.3f} before training"
    rest = "".join(f"; {run.end['eval_loss']:.3f} for {run.name}" for run in others)
    yield _tile("Held-out loss", f"{end['eval_loss']:.3f}", before + rest)
    sent, data_parallel = end["wan_bytes"], end["wan_bytes_data_parallel"]
    yield _tile(
        "Bytes between clouds",
        bytes_text(sent),
        f"data-parallel training in fp32 would send {bytes_text(data_parallel)}",
    )
    if sent:
        times = f"{data_parallel / sent:.0f} times"
        yield _tile("Fewer bytes", times, "than data-parallel training in fp32")
    if end["bit_identical"]:
        note = "all ranks ended with the same parameters, to the last bit"
        yield _tile("Bit-identical", "yes", note)
    else:
        yield _tile("Bit-identical", "no", "the ranks ended with different parameters")


def _cards(main: Run, runs: Sequence[Run]) -> Iterator[str]:
    lines = _legend([(run.name, "line", f"--series-{i}") for i, run in enumerate(runs, 1)])
    yield _card(
        "Held-out loss",
        lines + charts.heldout_loss(runs),
        note="on text of every cloud that no cloud trained on; lower is better",
    )
    yield _card("Training loss", lines + charts.training_loss(runs), note="mean over all ranks")
    if main.end["wan_bytes"] and main.end["wan_bytes_data_parallel"]:
        series = [
            (main.name, "line", "--series-1"),
            ("data-parallel fp32 (computed)", "dashed", "--muted"),
        ]
        yield _card(
            "Bytes between clouds",
            _legend(series) + charts.wan_bytes(main),
            note="sent so far, all ranks together; the axis is logarithmic",
        )
    shares = {run.name: run.end["time"] for run in runs}
    yield _card(
        "Where the time went",
        _legend([(phase, "block", f"--{phase}") for phase in PHASES]) + charts.time_split(shares),
        note="of an average rank; wait is for slower ranks and inside the cloud",
    )


def _numbers(runs: Sequence[Run]) -> str:
    rows: list[tuple[str, list[str]]] = [
        ("Held-out loss before", [f"{run.end['eval_loss_start']:.4f}" for run in runs]),
        ("Held-out loss after", [f"{run.end['eval_loss']:.4f}" for run in runs]),
        ("Bytes between clouds", [bytes_text(run.end["wan_bytes"]) for run in runs]),
        (
            "Bytes of data-parallel fp32",
            [bytes_text(run.end["wan_bytes_data_parallel"]) for run in runs],
        ),
        ("Optimizer steps", [f"{run.end['steps']:,}" for run in runs]),
        ("Tokens", [count_text(run.end["tokens"]) for run in runs]),
        ("Time", [seconds_text(run.end["seconds"]) for run in runs]),
        (
            "All ranks bit-identical",
            ["yes" if run.end["bit_identical"] else "no" for run in runs],
        ),
    ]
    head = "".join(f'<th class="number">{escape(run.name)}</th>' for run in runs)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f'<td class="number">{escape(value)}</td>' for value in values)
        + "</tr>"
        for name, values in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _configuration(run: Run) -> str:
    """The run's own keys in the open, the model's (there are dozens) behind a click."""
    general = {k: v for k, v in run.start.items() if k not in _WHO_WROTE_IT}
    model = general.pop("model", {})
    chosen = general.pop("config", {})
    return _table(general | chosen) + f"<details><summary>Model</summary>{_table(model)}</details>"


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(values)
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every value in nested tables; empty ones and nulls are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        elif isinstance(value, bool):
            yield f"{prefix}{key}", "yes" if value else "no"
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def _tile(name: str, value: str, note: str) -> str:
    return (
        f'<div class="tile"><span class="name">{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
    )


def _card(title: str, body: str, *, note: str = "", wide: bool = False) -> str:
    extra = " wide" if wide else ""
    text = f"<p>{escape(note)}</p>" if note else ""
    return f'<section class="card{extra}"><h2>{escape(title)}</h2>{text}{body}</section>'


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Entries are (name, CSS class of the mark, its colour variable)."""
    items = (
        f'<span><i class="{mark}" style="--mark: var({colour})"></i>{escape(name)}</span>'
        for name, mark, colour in entries
    )
    return f'<div class="legend">{"".join(items)}</div>'
