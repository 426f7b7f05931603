"""The theorems' quantities as measured: gradients' differences beside what is to bound them."""

from dataclasses import dataclass

from experiments.report.alignments import drift_plot
from experiments.report.comparison import short_title
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import Results, name_of_split
from experiments.summary import mean_of, rank_correlation

_TEXT = (
    "The paper's theorem 1 bounds the difference between the gradients on FM and sub-FM, layer by layer, by "
    "the differences of the layers' outputs and of their weights, times constants that it does not give. So "
    "what can be tested is this: one constant must do for all layers and rounds, and where the bound is "
    "small the gradients must be close.",
    "All three are relative norms, measured on the same public batches after every round, with the same "
    "adapter in both models. The constant is the gradients' difference over the sum of the other two; its "
    "largest value is the smallest constant with which the bound holds everywhere. The rank correlation is "
    "Spearman's between the two sides: 1 where the order of the bounds is the order of the differences.",
)


@dataclass(frozen=True)
class _Point:
    """A layer after a round of one run."""

    round: int
    layer: int
    gradient: float
    output: float
    weight: float

    @property
    def bound(self) -> float:
        return self.output + self.weight


def sections(results: Results) -> list[Section]:
    """For each split: the constant and correlation by variant; values by layer; over the rounds."""
    found = []
    for split in results.splits:
        points = {v: _points(results, split, v) for v in results.variants}
        points = {v: p for v, p in points.items() if any(point.bound > 0 for point in p)}
        if not points:
            continue
        parts: list[Table | Plot] = [
            _constants(results, split, points),
            _by_layer(results, split, points),
            *_plots(results, split, points),
        ]
        if (drift := drift_plot(results, split)) is not None:
            parts.append(drift)
        found.append(Section(f"Gradient gap: {name_of_split(split)}", _TEXT, tuple(parts)))
    return found


def _points(results: Results, split: str, variant: str) -> list[_Point]:
    return [
        _Point(
            gap["round"],
            layer["layer"],
            layer["gradient_difference"],
            layer["output_difference"],
            layer["weight_difference"],
        )
        for seed in results.seeds
        if (split, variant, seed) in results.cells
        for gap in results.cells[split, variant, seed]["gaps"]
        for layer in gap["layers"]
    ]


def _constants(results: Results, split: str, points: dict[str, list[_Point]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for variant, found in points.items():
        bounded = [p for p in found if p.bound > 0]
        ratios = [p.gradient / p.bound for p in bounded]
        correlation = rank_correlation([p.bound for p in bounded], [p.gradient for p in bounded])
        loose = sum(1 for p in found if p.bound == 0 and p.gradient > 0)
        rows.append(
            (
                results.title(variant),
                len(found),
                min(ratios),
                mean_of(ratios).mean,
                max(ratios),
                correlation,
                loose,
            )
        )
    columns = (
        Column("variant"),
        Column("layers × rounds × runs"),
        Column("least constant", ".2f"),
        Column("mean", ".2f"),
        Column("largest", ".2f"),
        Column("rank correlation", ".2f"),
        Column("bound 0, difference not"),
    )
    note = (
        "The last column counts layers whose outputs and weights are those of the FM, but whose gradients "
        "are not: those below a compressed layer. Their gradients pass through it on the way back, which the "
        "bound of a single layer does not see."
    )
    return Table(f"bounds-{split}", "Gradients against their bounds", columns, tuple(rows), (note,))


def _by_layer(results: Results, split: str, points: dict[str, list[_Point]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for variant, found in points.items():
        for layer in sorted({p.layer for p in found}):
            own = [p for p in found if p.layer == layer]
            first = min(p.round for p in own)
            last = max(p.round for p in own)
            values: list[Cell] = []
            for number in (first, last):
                there = [p for p in own if p.round == number]
                values += [
                    mean_of([getattr(p, name) for p in there]).mean
                    for name in ("gradient", "output", "weight")
                ]
            rows.append((short_title(results, variant), layer + 1, *values))
    columns = [Column("variant"), Column("layer")]
    for when in ("before the first round", "after the last"):
        columns += [Column(f"{name}, {when}", ".3f") for name in ("gradients", "outputs", "weights")]
    return Table(f"layers-{split}", "Differences by layer", tuple(columns), tuple(rows))


def _plots(results: Results, split: str, points: dict[str, list[_Point]]) -> list[Plot]:
    plots = []
    for name, title in (("gradient", "gradients"), ("output", "layers' outputs"), ("weight", "FFN weights")):
        lines = []
        for variant, found in points.items():
            layers = sorted({p.layer for p in found})
            y = tuple(mean_of([getattr(p, name) for p in found if p.layer == i]).mean for i in layers)
            lines.append(Series(short_title(results, variant), tuple(float(i + 1) for i in layers), y))
        plots.append(
            Plot(
                f"layers-{name}-{split}",
                f"Difference of the {title} by layer, mean over rounds",
                PlotKind.LINES,
                "layer",
                "relative difference",
                tuple(lines),
            )
        )
    return plots
