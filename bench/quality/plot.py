"""The frontier as an SVG file: how many times fewer bytes, against how much loss."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quality.table import Compared, Row, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL_FEWER, GOAL_PERCENT = 4000, 0.5
_INK, _MUTED, _GRID, _OURS, _GOAL = "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#dafbe1"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyfedcomm",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


_LINE = 15
"""Between two names in the list, in typographic points."""


def write(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows of one preset. Points without a loss to compare with are left out."""
    points = [each for each in compare(rows) if not math.isnan(each.difference)]
    drawn = io.StringIO()
    with _style():
        _draw(points).savefig(
            drawn, format="svg", facecolor="white", metadata={"Date": None, "Creator": None}
        )
    path.write_text(drawn.getvalue(), encoding="utf-8")


def frontier(points: Sequence[Compared]) -> list[Compared]:
    """Those that no other beats in both bytes and loss; fewest bytes last.

    By the difference, which is between equal seeds: points may have different ones.
    """
    kept: list[Compared] = []
    for each in sorted(points, key=lambda p: (-p.fewer, p.difference)):
        if not kept or each.difference < kept[-1].difference:
            kept.append(each)
    return kept[::-1]


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _draw(points: Sequence[Compared]) -> Figure:
    from matplotlib.figure import Figure

    height = max(5.0, (_LINE * len(points) + 45) / 72)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    axes = figure.subplots()
    most = max(point.fewer for point in points)
    top = max(point.difference for point in points)
    bottom = min(0.0, *(point.difference for point in points))
    room = 0.08 * (top - bottom + 1)
    axes.set_xscale("log")
    axes.set_xlim(0.6, 12 * max(most, GOAL_FEWER))
    axes.set_ylim(bottom - room, top + room)
    axes.axvspan(
        GOAL_FEWER,
        axes.get_xlim()[1],
        ymax=(GOAL_PERCENT - axes.get_ylim()[0]) / (axes.get_ylim()[1] - axes.get_ylim()[0]),
        color=_GOAL,
        lw=0,
    )
    best = frontier(points)
    axes.plot(
        [point.fewer for point in best],
        [point.difference for point in best],
        color=_OURS,
        lw=1.4,
    )
    numbered = sorted(points, key=lambda p: (p.fewer, p.difference))
    for point in points:
        colour = _OURS if point in best else _MUTED
        axes.plot(point.fewer, point.difference, "o", ms=6, color=colour, mec="white", mew=1)
    for point, above in _labels(points, axes):
        axes.annotate(
            str(numbered.index(point) + 1),
            (point.fewer, point.difference),
            (7, above),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_OURS if point in best else _INK,
        )
    for place, point in enumerate(numbered):
        for right, text in ((10, str(place + 1)), (28, point.name)):
            axes.annotate(
                text,
                (1, 1),
                (right, -5 - _LINE * place),
                xycoords="axes fraction",
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_OURS if point in best else _INK,
            )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("times fewer bytes between clouds than data-parallel fp32")
    axes.set_ylabel("held-out loss above data-parallel (AdamW), %")
    return figure


def _labels(points: Sequence[Compared], axes: Any) -> list[tuple[Compared, float]]:
    """Each point and how far above it its number stands, in typographic points: none overlap."""
    low, high = axes.get_ylim()
    points_per_percent = 300 / (high - low)
    placed: list[tuple[float, float]] = []  # decade of bytes, height
    result = []
    for point in sorted(points, key=lambda p: (p.difference, p.fewer)):
        decade, own = math.log10(point.fewer), point.difference * points_per_percent
        height = own
        while any(abs(decade - d) < 0.2 and abs(height - h) < 11 for d, h in placed):
            height += 1
        placed.append((decade, height))
        result.append((point, height - own))
    return result
