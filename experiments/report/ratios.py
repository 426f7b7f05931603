"""The drop ratio: accuracy against size, and where it begins to fall."""

from experiments.catalogue import RATIOS
from experiments.report.costs import step_table
from experiments.report.document import Plot, PlotKind, Section, Series, Table
from experiments.report.results import Results, final_score, name_of_split
from experiments.summary import paired

# A fall that a single run may count as one, in points.
_SINGLE_RUN_FALL = 1.0


def sections(results: Results) -> list[Section]:
    """Accuracy over the ratio; the point where it begins to fall; a worker's step."""
    lines, told = [], []
    for split in results.splits:
        ratios = [r for r in RATIOS if results.mean(split, f"ratio-{r:g}", final_score) is not None]
        means = [results.mean(split, f"ratio-{r:g}", final_score) for r in ratios]
        found = [m for m in means if m is not None]
        errors = tuple(m.sd or 0.0 for m in found) if len(results.seeds) > 1 else None
        x = tuple(100 * r for r in ratios)
        lines.append(Series(name_of_split(split), x, tuple(m.mean for m in found), errors))
        whole = results.mean(split, "ratio-0", final_score)
        if whole is not None and ratios:
            y = (whole.mean, whole.mean)
            lines.append(Series(f"whole FM, {name_of_split(split)}", (x[0], x[-1]), y, None, True))
        told.append(_falls_at(results, split, ratios))
    plot = Plot(
        "ratio", "Accuracy by share of neurons cut", PlotKind.LINES, "cut (%)", "accuracy (%)", tuple(lines)
    )
    parts: list[Table | Plot] = [plot]
    if results.steps:
        parts.append(step_table(results, {v: results.title(v) for v in results.variants}))
    return [Section("Where accuracy begins to fall", tuple(told), tuple(parts))]


def _falls_at(results: Results, split: str, ratios: list[float]) -> str:
    """The first ratio that is below the least cut one, beyond noise."""
    place = name_of_split(split)
    if not ratios:
        return f"{place}: nothing has been run yet."
    first = results.by_seed(split, f"ratio-{ratios[0]:g}", final_score)
    for ratio in ratios[1:]:
        gap = paired(results.by_seed(split, f"ratio-{ratio:g}", final_score), first)
        if gap is None or gap.mean >= 0:
            continue
        single = gap.error is None and gap.mean <= -_SINGLE_RUN_FALL
        if single or gap.is_noise is False:
            error = f" ± {gap.error:.2f}" if gap.error is not None else " (one run)"
            return (
                f"{place}: accuracy begins to fall at {ratio:.0%} cut, {-gap.mean:.2f}{error} points below "
                f"{ratios[0]:.0%}."
            )
    return f"{place}: up to {ratios[-1]:.0%} cut, no fall against {ratios[0]:.0%} stands out from the noise."
