"""The owner's margin: how far what a worker keeps is behind the FM, and what each lever costs for it."""

from collections.abc import Callable

from coordinator.campaign.criterion import MARGIN
from experiments.catalogue import HEAD_ONLY
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import Figures, Results, by_round, final_score, name_of_split

# Points of the FM's that a lever may cost.
_MOST_LOST = 1.0


def sections(results: Results) -> list[Section]:
    """For each split offsite-tuning's criterion of every variant, and the margin against its price."""
    found = []
    for split in results.splits:
        text = (
            "Offsite-tuning's criterion: the FM gains by what is plugged in, and what workers keep, the "
            "tuned sub-FM, stays behind it.",
            _told(results, split),
        )
        parts = (_table(results, split), _plot(results, split))
        found.append(Section(f"The owner's margin: {name_of_split(split)}", text, parts))
    return found


def zero_shot(figures: Figures) -> float | None:
    """The FM's score in % before the first round."""
    return by_round(figures).get(0)


def sub_fm(figures: Figures) -> float | None:
    """The tuned sub-FM's score in %, after the last round."""
    scores = by_round(figures, "sub_fm")
    return scores[max(scores)] if scores else None


def margin(figures: Figures) -> float | None:
    """Points by which the FM with the result plugged in is ahead of the tuned sub-FM."""
    owners, workers = final_score(figures), sub_fm(figures)
    return None if owners is None or workers is None else owners - workers


def _table(results: Results, split: str) -> Table:
    columns = (
        Column("variant"),
        Column("runs"),
        Column("FM before", ".2f", "%"),
        Column("FM, plugged in", ".2f", "%"),
        Column("tuned sub-FM", ".2f", "%"),
        Column("margin", "+.2f", "points"),
        Column("±", ".2f"),
        Column("FM's cost", "+.2f", "points"),
        Column("± ", ".2f"),
    )
    rows: list[tuple[Cell, ...]] = []
    reference = results.experiment.reference
    for variant in results.variants:
        ahead = results.mean(split, variant, margin)
        lost = results.difference(split, variant, reference) if variant != reference else None
        figures = [_mean(results, split, variant, value) for value in (zero_shot, final_score, sub_fm)]
        rows.append(
            (
                results.title(variant),
                ahead.count if ahead else 0,
                *figures,
                ahead.mean if ahead else None,
                ahead.error if ahead else None,
                lost.mean if lost else None,
                lost.error if lost else None,
            )
        )
    note = "±: standard errors, of margins and of differences to the first variant, paired by seed."
    return Table(f"margin-{split}", f"Margin and cost, {name_of_split(split)}", columns, tuple(rows), (note,))


def _mean(
    results: Results, split: str, variant: str, value: Callable[[Figures], float | None]
) -> float | None:
    found = results.mean(split, variant, value)
    return found.mean if found else None


def _points(results: Results, split: str) -> dict[str, tuple[float, float]]:
    """Of each lever the FM's cost, 0 or less where it loses, and the margin."""
    found, reference = {}, results.experiment.reference
    for variant in results.variants:
        ahead = results.mean(split, variant, margin)
        lost = results.difference(split, variant, reference)
        if variant not in (HEAD_ONLY, reference) and ahead is not None and lost is not None:
            found[variant] = (lost.mean, ahead.mean)
    return found


def _told(results: Results, split: str) -> str:
    points = _points(results, split)
    good = [v for v, (lost, ahead) in points.items() if ahead >= MARGIN and lost >= -_MOST_LOST]
    aim = f"a margin of {MARGIN:g} points at a cost of {_MOST_LOST:g} at most"
    if good:
        return f"These have {aim}: {'; '.join(results.title(v) for v in good)}."
    if not points:
        return "Nothing has been run yet."
    best = max(points, key=lambda v: points[v][1])
    lost, ahead = points[best]
    return (
        f"No variant has {aim}. The largest margin is {ahead:+.2f} points, at a cost of {lost:+.2f} "
        f"({results.title(best)})."
    )


def _plot(results: Results, split: str) -> Plot:
    points = _points(results, split)
    names = tuple(results.title(variant) for variant in points)
    costs, margins = (tuple(values) for values in zip(*points.values(), strict=True)) if points else ((), ())
    series = (Series("margin", names, margins), Series("the FM's accuracy − without the lever", names, costs))
    title = f"Margin and cost, {name_of_split(split)}"
    return Plot(f"margin-{split}", title, PlotKind.POINTS, "points", "", series)
