"""Plots as SVG, by matplotlib: the same bytes for the same plot."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.document import Plot, PlotKind, Series

# Okabe and Ito's colours, which the colour-blind can tell apart; then the same with another mark.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v")
_REFERENCE = "#767676"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    # Text stays text: it can be searched, read aloud and copied. Ids do not change from run to run.
    "svg.fonttype": "none",
    "svg.hashsalt": "fedpft",
}
_WIDTH, _ROW, _LEAST = 7.6, 0.34, 3.4
# What fits side by side below the bars; more is turned.
_LABEL_CHARACTERS = 40


def to_svg(plot: Plot) -> str:
    """The plot as an SVG element, to stand in a page."""
    draw: Callable[[Axes, Plot], None] = {
        PlotKind.LINES: _lines,
        PlotKind.BARS: _bars,
        PlotKind.POINTS: _points,
    }[plot.kind]
    rows = max((len(series.x) for series in plot.series), default=0) * max(1, len(plot.series))
    height = max(_LEAST, 1.2 + _ROW * rows) if plot.kind is PlotKind.POINTS else _LEAST + 0.2
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, plot)
        axes.set_xlabel(plot.x_title)
        axes.set_ylabel(plot.y_title)
        if plot.log_y:
            axes.set_yscale("log")
        for x, word in plot.marks:
            axes.axvline(x, color=_REFERENCE, linewidth=0.8, linestyle=":")
            axes.annotate(word, (x, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color=_REFERENCE)
        if len(plot.series) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        file = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None, "Creator": None}
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata=metadata)
    text = file.getvalue().decode()
    # Without XML declaration and doctype, which a page must not hold in its middle.
    return text[text.index("<svg") :]


def _looks(plot: Plot) -> Sequence[tuple[Series, dict[str, Any]]]:
    """Every series with its colour and mark."""
    looks, number = [], 0
    for series in plot.series:
        if series.is_reference:
            looks.append((series, {"color": _REFERENCE, "linestyle": "--", "marker": ""}))
            continue
        colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[(number // len(_COLOURS)) % len(_MARKS)]
        looks.append((series, {"color": colour, "linestyle": "-", "marker": mark}))
        number += 1
    return looks


def _lines(axes: Axes, plot: Plot) -> None:
    for series, look in _looks(plot):
        axes.plot(series.x, series.y, label=series.label, markersize=4.5, linewidth=1.6, **look)
        if series.errors is not None:
            low = [y - e for y, e in zip(series.y, series.errors, strict=True)]
            high = [y + e for y, e in zip(series.y, series.errors, strict=True)]
            axes.fill_between(series.x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    numbers = [float(x) for series in plot.series for x in series.x]
    if all(number.is_integer() for number in numbers):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(axes: Axes, plot: Plot) -> None:
    categories = list(dict.fromkeys(x for series in plot.series for x in series.x))
    width = 0.8 / max(1, len(plot.series))
    for number, (series, look) in enumerate(_looks(plot)):
        places = [categories.index(x) + (number - (len(plot.series) - 1) / 2) * width for x in series.x]
        bars = axes.bar(
            places, series.y, width * 0.92, label=series.label, color=look["color"], yerr=series.errors
        )
        axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
    axes.set_xticks(range(len(categories)), [str(c) for c in categories])
    axes.grid(axis="x", visible=False)
    if sum(len(str(category)) for category in categories) > _LABEL_CHARACTERS:
        axes.tick_params(axis="x", labelrotation=30)


def _points(axes: Axes, plot: Plot) -> None:
    categories = list(dict.fromkeys(x for series in plot.series for x in series.x))
    step = 0.6 / max(1, len(plot.series))
    for number, (series, look) in enumerate(_looks(plot)):
        offset = (number - (len(plot.series) - 1) / 2) * step
        places = [categories.index(x) + offset for x in series.x]
        axes.errorbar(
            series.y,
            places,
            xerr=series.errors,
            fmt=look["marker"] or "|",
            color=look["color"],
            label=series.label,
            markersize=6,
            capsize=3,
            elinewidth=1.2,
        )
    axes.set_yticks(range(len(categories)), [str(c) for c in categories])
    axes.set_ylim(len(categories) - 0.5, -0.5)
