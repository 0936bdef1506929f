"""Charts as inline SVG: matplotlib draws, the page's style sheet colours.

matplotlib writes fixed colours; each of them is replaced here by a CSS variable of `page`, so that
one drawing is readable on a light and on a dark page. Text stays text, in the page's font.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyfedcomm.report.data import Run
from pyfedcomm.report.units import bytes_text
from pyfedcomm.train.metrics import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders that occur nowhere else in an SVG -> the variable of the style sheet.
_INK, _MUTED, _GRID, _SURFACE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_COLOURS = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _SURFACE: "--surface"}
_SERIES = tuple(f"#0a0c0{i}" for i in range(1, 5))
_COLOURS |= {colour: f"--series-{i}" for i, colour in enumerate(_SERIES, start=1)}
_FILLS = {phase: f"#0a0d0{i}" for i, phase in enumerate(PHASES, start=1)}
_COLOURS |= {colour: f"--{phase}" for phase, colour in _FILLS.items()}

_WIDTH_IN, _HEIGHT_IN = 5.0, 2.9
_STYLE: Any = {  # the type that matplotlib gives it names every key it knows
    "svg.fonttype": "none",
    "svg.hashsalt": "pyfedcomm",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


def heldout_loss(runs: Sequence[Run]) -> str:
    """Held-out loss over steps, one line a run.

    The loss before the first step is left out: beside it, no difference between runs would show.
    """

    def draw(axes: Axes) -> None:
        for run, colour in zip(runs, _SERIES, strict=False):
            evals = [each for each in run.evals if each[0] > 0]
            steps, losses = zip(*evals, strict=True) if evals else ((), ())
            axes.plot(
                steps,
                losses,
                color=colour,
                marker="o",
                ms=5.5,
                mec=_SURFACE,
                mew=1.2,
                clip_on=False,
            )
        axes.set_xlabel("optimizer steps")
        axes.set_xlim(left=0)

    return _svg("heldout", draw, label="Held-out loss over optimizer steps")


def training_loss(runs: Sequence[Run]) -> str:
    """Training loss over steps, one line a run."""

    def draw(axes: Axes) -> None:
        for run, colour in zip(runs, _SERIES, strict=False):
            axes.plot([s.step for s in run.steps], [s.loss for s in run.steps], color=colour)
        axes.set_xlabel("optimizer steps")
        axes.set_xlim(left=0)

    return _svg("training", draw, label="Training loss over optimizer steps")


def wan_bytes(run: Run) -> str:
    """Bytes between clouds so far, against data-parallel training in fp32; logarithmic."""
    n_steps, total = int(run.end["steps"]), float(run.end["wan_bytes_data_parallel"])
    # The few hundred bytes that open the connections would stretch the axis by decades.
    least = int(run.end["wan_bytes"]) / 1000

    def draw(axes: Axes) -> None:
        sent = [(s.step, s.wan_bytes) for s in run.steps if s.wan_bytes > least]
        sent.append((n_steps, int(run.end["wan_bytes"])))
        axes.plot([1, n_steps], [total / n_steps, total], color=_MUTED, ls=(0, (4, 2.5)))
        # What was sent by a step stays sent until the next exchange.
        axes.plot(*zip(*sent, strict=True), color=_SERIES[0], drawstyle="steps-post")
        axes.set_yscale("log")
        axes.set_xlabel("optimizer steps")
        axes.set_xlim(left=0)
        smallest = min(sent[0][1], total / n_steps)
        low, high = math.floor(math.log10(max(smallest, 1))), math.ceil(math.log10(total))
        axes.set_yticks([10.0**e for e in range(low, high + 1)])
        axes.yaxis.set_major_formatter(lambda value, _: _power_of_ten(value))
        axes.minorticks_off()

    return _svg("bytes", draw, label="Bytes between clouds over optimizer steps, logarithmic")


def _power_of_ten(n_bytes: float) -> str:
    """``1e7`` -> ``"10 MB"``: round numbers need no decimals."""
    number, unit = bytes_text(n_bytes).split()
    return f"{float(number):.0f} {unit}"


def time_split(shares: Mapping[str, Mapping[str, float]]) -> str:
    """A bar a run: the seconds of each phase. ``shares``: run name -> phase -> seconds."""

    def draw(axes: Axes) -> None:
        names = list(shares)
        for row, name in enumerate(names):
            left = 0.0
            for phase in PHASES:
                seconds = max(0.0, shares[name].get(phase, 0.0))
                axes.barh(
                    row, seconds, left=left, height=0.42, color=_FILLS[phase], ec=_SURFACE, lw=1.5
                )
                left += seconds
            axes.text(0, row - 0.32, name, va="bottom", ha="left")
            axes.text(left, row - 0.32, f"{left:.1f} s", va="bottom", ha="right", color=_MUTED)
        axes.set_ylim(len(names) - 0.6, -0.75)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds of a rank")

    return _svg("time", draw, label="Time of a rank by phase")


def _svg(name: str, draw: Callable[[Axes], None], *, label: str) -> str:
    """Runs ``draw`` on fresh axes; returns an ``<svg>`` element; its ids start with ``name``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure: Figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, label)


def _inline(text: str, name: str, label: str) -> str:
    """Matplotlib's SVG file -> an element for a page that may hold several of them."""
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Ids are unique in a file, but must be so on the page.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    # The page's font, whichever way this version of matplotlib names its own.
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    body = svg[svg.index(">") + 1 :]
    return f'<svg role="img" aria-label="{html.escape(label)}" {view.group()}>{body}'
