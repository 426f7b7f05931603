"""Saliency measures against ways of aligning: accuracy and hidden-state error as matrices."""

from collections.abc import Callable

from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import Figures, Results, final_score, name_of_split

_METRICS = ("l2", "activation", "integrated-gradients", "attention", "random")
_WAYS = {"": "not aligned", "+closed": "closed form", "+gradient": "gradient", "+both": "both"}


def sections(results: Results) -> list[Section]:
    """For each split, accuracy and error of every measure under every way of aligning."""
    found = []
    for split in results.splits:
        parts: list[Table | Plot] = [
            _matrix(results, split, "accuracy", "Accuracy", final_score, ".2f", "%"),
            _matrix(results, split, "error", "Hidden-state error after alignment", _error, ".4f", ""),
            _plot(results, split),
        ]
        found.append(Section(f"Measures and alignments: {name_of_split(split)}", (), tuple(parts)))
    return found


def _error(figures: Figures) -> float | None:
    return float(figures["hidden_error"][1]) if figures["hidden_error"] else None


def _matrix(
    results: Results,
    split: str,
    name: str,
    title: str,
    value: Callable[[Figures], float | None],
    form: str,
    unit: str,
) -> Table:
    ways = [w for w in _WAYS if any(f"{m}{w}" in results.variants for m in _METRICS)]
    rows: list[tuple[Cell, ...]] = []
    for metric in _METRICS:
        means = [results.mean(split, f"{metric}{way}", value) for way in ways]
        rows.append((metric, *(mean.mean if mean else None for mean in means)))
    columns = (Column("measure"), *(Column(_WAYS[way], form, unit) for way in ways))
    return Table(f"saliency-{name}-{split}", f"{title}, {name_of_split(split)}", columns, tuple(rows))


def _plot(results: Results, split: str) -> Plot:
    series = []
    for way, title in _WAYS.items():
        found = {m: results.mean(split, f"{m}{way}", final_score) for m in _METRICS}
        there = {m: mean for m, mean in found.items() if mean is not None}
        if there:
            errors = tuple(m.sd or 0.0 for m in there.values()) if len(results.seeds) > 1 else None
            series.append(Series(title, tuple(there), tuple(m.mean for m in there.values()), errors))
    title = f"Accuracy by measure, {name_of_split(split)}"
    return Plot(f"saliency-{split}", title, PlotKind.POINTS, "accuracy (%)", "", tuple(series))
