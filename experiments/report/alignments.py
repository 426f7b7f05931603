"""Alignments during the rounds: how many there were, what each did, and the drift between them."""

from experiments.report.comparison import short_title
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import Figures, Results, name_of_split
from experiments.summary import mean_of


def sections(results: Results) -> list[Section]:
    """For each split: alignments and errors, and the gradients' drift over the rounds."""
    found = []
    for split in results.splits:
        parts: list[Table | Plot] = [_table(results, split)]
        if (plot := drift_plot(results, split)) is not None:
            parts.append(plot)
        found.append(Section(f"Alignments: {name_of_split(split)}", (), tuple(parts)))
    return found


def _table(results: Results, split: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for variant in results.variants:
        runs = [
            results.cells[split, variant, s] for s in results.seeds if (split, variant, s) in results.cells
        ]
        if not runs:
            continue
        alignments = [a for run in runs for a in run["alignments"]]
        drifts = [d for run in runs if (d := _last_drift(run)) is not None]
        rows.append(
            (
                results.title(variant),
                len(alignments) / len(runs),
                mean_of([before for _, before, _ in alignments]).mean if alignments else None,
                mean_of([after for _, _, after in alignments]).mean if alignments else None,
                mean_of(drifts).mean if drifts else None,
            )
        )
    columns = (
        Column("variant"),
        Column("alignments in a run", ".1f"),
        Column("hidden-state error before", ".4f"),
        Column("after", ".4f"),
        Column("drift after the last round", ".3f"),
    )
    note = (
        "The error is the mean squared difference of the compressed layers' outputs, relative to the FM's, "
        "on public data. Drift: 0 for equal gradients of the two models, 1 for unrelated ones."
    )
    return Table(f"alignments-{split}", "What the alignments did", columns, tuple(rows), (note,))


def _last_drift(figures: Figures) -> float | None:
    return float(figures["gaps"][-1]["drift"]) if figures["gaps"] else None


def drift_plot(results: Results, split: str) -> Plot | None:
    """Mean drift over the rounds, by variant; None where it was not measured."""
    lines = []
    for variant in results.variants:
        runs = [
            {gap["round"]: gap["drift"] for gap in results.cells[split, variant, s]["gaps"]}
            for s in results.seeds
            if (split, variant, s) in results.cells
        ]
        rounds = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if rounds:
            y = tuple(mean_of([run[n] for run in runs]).mean for n in rounds)
            lines.append(Series(short_title(results, variant), tuple(float(n) for n in rounds), y))
    if not lines:
        return None
    title = f"Drift of the gradients, {name_of_split(split)}"
    return Plot(f"drift-{split}", title, PlotKind.LINES, "round", "drift", tuple(lines))
