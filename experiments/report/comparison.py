"""Accuracy or the like of an experiment's variants: means, paired differences, the paper's beside them."""

from experiments import paper
from experiments.catalogue import CORRECTED, HEAD_ONLY
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import (
    Figures,
    Results,
    by_round,
    correction_gain,
    correction_gain_auc,
    final_auc,
    final_loss,
    final_score,
    name_of_split,
)
from experiments.summary import Mean, mean_of

_DECIDES = (
    "±: standard error of the difference. Differences are paired: both runs of a pair have the same seed, so "
    "the same data and draws. ≈: noise can explain it; 0 lies within the 95 % confidence interval by "
    "Student's t."
)
_METHODS = {
    paper.FEDPETUNING: "FedPETuning",
    paper.FEDOT: "FedOT",
    paper.FEDPFT: "FedPFT",
    paper.NONE: "FedPFT-N",
    paper.BEFORE: "FedPFT-B",
    paper.DURING: "FedPFT-D",
}


def accuracies(results: Results) -> list[Section]:
    """A section for each split: the table, the means, and the way there."""
    sections = []
    for split in results.splits:
        parts: list[Table | Plot] = [_table(results, split), _second(results, split), _means(results, split)]
        if (corrections := _corrections(results, split)) is not None:
            parts.insert(2, corrections)
        if (way := _way(results, split)) is not None:
            parts.append(way)
        sections.append(Section(f"{_named(results)}: {name_of_split(split)}", (), tuple(parts)))
    return sections


def _compared_with(results: Results) -> list[str]:
    """The reference; where they are there, also FedPFT and the head alone."""
    first = results.experiment.reference
    others = [v for v in (paper.FEDPFT, HEAD_ONLY) if v in results.variants and v != first]
    return [first, *others]


def _table(results: Results, split: str) -> Table:
    others = _compared_with(results)
    columns = [Column("variant"), Column("runs"), Column(results.metric, ".2f", "%"), Column("sd", ".2f")]
    for other in others:
        columns += [
            Column(f"− {short_title(results, other)}", "+.2f", "points"),
            Column("±", ".2f"),
            Column(""),
        ]
    columns.append(Column("sub-FM", ".2f", "%"))
    rows: list[tuple[Cell, ...]] = []
    emphasised = set()
    for variant in results.variants:
        found = results.mean(split, variant, final_score)
        if found is None:
            continue
        row: list[Cell] = [results.title(variant), found.count, found.mean, found.sd]
        for other in others:
            gap = results.difference(split, variant, other) if other != variant else None
            row += [None, None, ""] if gap is None else [gap.mean, gap.error, "≈" if gap.is_noise else ""]
        sub_fm = results.mean(split, variant, _sub_fm)
        if variant == results.experiment.reference:
            emphasised.add(len(rows))
        rows.append((*row, sub_fm.mean if sub_fm else None))
    decides = _DECIDES if len(results.seeds) > 1 else "One run of each: that does not rank close variants."
    note = "Of the FM with the adapter plugged in; under sub-FM, of the sub-FM itself."
    title = f"{_named(results)}, {name_of_split(split)}"
    return Table(
        f"accuracy-{split}", title, tuple(columns), tuple(rows), (note, decides), frozenset(emphasised)
    )


def _second(results: Results, split: str) -> Table:
    """What sees more than accuracy does, which jumps where an answer crosses the threshold: AUC and loss."""
    reference = results.experiment.reference
    columns = (
        Column("variant"),
        Column("AUC", ".2f", "%"),
        Column(f"− {short_title(results, reference)}", "+.2f", "points"),
        Column("±", ".2f"),
        Column(""),
        Column("loss", ".4f"),
        Column(f"− {short_title(results, reference)} ", "+.4f"),
        Column("± ", ".4f"),
        Column(" "),
    )
    rows: list[tuple[Cell, ...]] = []
    for variant in results.variants:
        row: list[Cell] = [results.title(variant)]
        for value in (final_auc, final_loss):
            found = results.mean(split, variant, value)
            gap = results.difference(split, variant, reference, value) if variant != reference else None
            row.append(found.mean if found else None)
            row += [None, None, ""] if gap is None else [gap.mean, gap.error, "≈" if gap.is_noise else ""]
        rows.append(tuple(row))
    title = f"AUC and loss on the test data, {name_of_split(split)}"
    note = "Of the tuned FM, corrected where the variant is; AUC is of one class against the rest."
    return Table(f"auc-{split}", title, columns, tuple(rows), (note,))


def _corrections(results: Results, split: str) -> Table | None:
    """What the correction brought within each run: with and without it are the same run."""
    rows: list[tuple[Cell, ...]] = []
    for variant in results.variants:
        gain = results.mean(split, variant, correction_gain)
        area = results.mean(split, variant, correction_gain_auc)
        if gain is None:
            continue
        cells: list[Cell] = [results.title(variant), gain.count]
        for found in (gain, area):
            cells += (
                [None, None, ""]
                if found is None
                else [found.mean, found.error, "≈" if found.is_noise else ""]
            )
        rows.append(tuple(cells))
    if not rows:
        return None
    columns = (
        Column("variant"),
        Column("runs"),
        Column(results.metric, "+.2f", "points"),
        Column("±", ".2f"),
        Column(""),
        Column("AUC", "+.2f", "points"),
        Column("± ", ".2f"),
        Column(" "),
    )
    title = f"What the correction brings, {name_of_split(split)}"
    return Table(f"correction-{split}", title, columns, tuple(rows))


def _named(results: Results) -> str:
    """The metric at the beginning of a title."""
    return results.metric[0].upper() + results.metric[1:]


def _sub_fm(figures: Figures) -> float | None:
    scores = by_round(figures, "sub_fm")
    return scores[max(scores)] if scores else None


def short_title(results: Results, variant: str) -> str:
    """A variant's name before its explanation."""
    return _METHODS.get(variant) or results.title(variant).partition(":")[0]


def _means(results: Results, split: str) -> Plot:
    found = {v: results.mean(split, v, final_score) for v in results.variants}
    there = {v: m for v, m in found.items() if m is not None}
    errors = tuple(m.sd or 0.0 for m in there.values()) if len(results.seeds) > 1 else None
    series = Series(
        "mean and standard deviation" if errors else "one run",
        tuple(short_title(results, v) for v in there),
        tuple(m.mean for m in there.values()),
        errors,
    )
    title = f"{_named(results)} of the FM after the last round, {name_of_split(split)}"
    return Plot(f"means-{split}", title, PlotKind.POINTS, f"{results.metric} (%)", "", (series,))


def _way(results: Results, split: str) -> Plot | None:
    """Mean accuracy over the rounds; None where only the last is scored."""
    lines = []
    for variant in results.variants:
        runs = [
            by_round(results.cells[split, variant, s])
            for s in results.seeds
            if (split, variant, s) in results.cells
        ]
        rounds = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if len(rounds) > 1:
            y = tuple(mean_of([run[number] for run in runs]).mean for number in rounds)
            lines.append(Series(short_title(results, variant), tuple(float(n) for n in rounds), y))
    if not lines:
        return None
    title = f"{_named(results)} over the rounds, {name_of_split(split)}"
    return Plot(f"rounds-{split}", title, PlotKind.LINES, "round", f"{results.metric} (%)", tuple(lines))


def findings(results: Results) -> list[str]:
    """What the figures say, in sentences, one for each split."""
    told = []
    for split in results.splits:
        found = {v: m for v in results.variants if (m := results.mean(split, v, final_score)) is not None}
        if len(found) < 2:
            continue
        best = max(found, key=lambda v: found[v].mean)
        sentence = (
            f"{name_of_split(split)}: {short_title(results, best)} is highest with {_percent(found[best])}."
        )
        reference, head = results.experiment.reference, found.get(HEAD_ONLY)
        if reference in found and reference != best:
            sentence += f" {short_title(results, reference)} has {_percent(found[reference])}."
        if paper.FEDPFT in found and paper.FEDPFT not in (best, reference):
            sentence += f" FedPFT has {_percent(found[paper.FEDPFT])}."
            sentence += _told(results, split, paper.FEDPFT, paper.FEDOT)
        if CORRECTED in found and best != CORRECTED:
            sentence += f" {short_title(results, CORRECTED)} has {_percent(found[CORRECTED])}."
            sentence += _told(results, split, CORRECTED, reference)
        if head is not None:
            sentence += f" The head alone reaches {_percent(head)}: the rest is the adapter's."
        told.append(sentence[0].upper() + sentence[1:])
    return told


def _told(results: Results, split: str, variant: str, other: str) -> str:
    gap = results.difference(split, variant, other)
    if gap is None:
        return ""
    error = f" ± {gap.error:.2f}" if gap.error is not None else ""
    noise = ", which noise can explain" if gap.is_noise else ""
    side = "above" if gap.mean >= 0 else "below"
    return f" It is {abs(gap.mean):.2f}{error} points {side} {short_title(results, other)}{noise}."


def _percent(mean: Mean) -> str:
    return f"{mean.mean:.2f} %" + (f" ± {mean.sd:.2f}" if mean.sd is not None else "")


# --- the paper's figures ---


def papers(results: Results) -> list[Section]:
    """The paper's tables 1 to 3, and its distances beside ours."""
    text = (
        "Figures of FedPFT (arXiv 2404.11536), of larger models on other data: what compares is the order of "
        "the methods and the distances between them.",
    )
    return [Section("The paper's figures", text, (_distances(results), _iid(), _dirichlet(), _ablation()))]


def _distances(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for split in results.splits:
        row: list[Cell] = [f"ours, {name_of_split(split)}"]
        for other in (paper.FEDPETUNING, paper.FEDOT):
            gap = results.difference(split, paper.FEDPFT, other)
            row += [gap.mean, gap.error] if gap else [None, None]
        rows.append(tuple(row))
    for (model, data), found in paper.IID.items():
        gaps = [found[paper.FEDPFT] - found[other] for other in (paper.FEDPETUNING, paper.FEDOT)]
        rows.append((f"{model}, {data}, equal shares", gaps[0], None, gaps[1], None))
    for (model, data), by_method in paper.DIRICHLET.items():
        for i, concentration in enumerate(paper.CONCENTRATIONS):
            ours = by_method[paper.FEDPFT][i]
            gaps = [ours - by_method[other][i] for other in (paper.FEDPETUNING, paper.FEDOT)]
            rows.append((f"{model}, {data}, Dirichlet({concentration})", gaps[0], None, gaps[1], None))
    columns = (
        Column("setting"),
        Column("FedPFT − FedPETuning", "+.1f", "points"),
        Column("±", ".2f"),
        Column("FedPFT − FedOT", "+.1f", "points"),
        Column("±", ".2f"),
    )
    marked = frozenset(range(len(results.splits)))
    return Table(
        "paper-distances", "Distances between methods, ours and the paper's", columns, tuple(rows), (), marked
    )


def _iid() -> Table:
    methods = (paper.FEDPETUNING, paper.FEDOT, paper.FEDPFT)
    columns = (Column("model"), Column("method"), *(Column(data, ".1f", "%") for data in _datasets()))
    rows = [
        (model, _METHODS[m], *(paper.IID[model, data][m] for data in _datasets()))
        for model in ("BERT", "RoBERTa")
        for m in methods
    ]
    return Table("paper-iid", "Table 1: equal shares", columns, tuple(rows))


def _datasets() -> list[str]:
    return list(dict.fromkeys(data for _, data in paper.IID))


def _dirichlet() -> Table:
    columns = [Column("model"), Column("data"), Column("method")]
    columns += [Column(f"Dirichlet({c})", ".1f", "%") for c in paper.CONCENTRATIONS]
    rows: list[tuple[Cell, ...]] = [
        (model, data, _METHODS[method], *figures)
        for (model, data), by_method in paper.DIRICHLET.items()
        for method, figures in by_method.items()
    ]
    return Table("paper-dirichlet", "Table 2: uneven shares", tuple(columns), tuple(rows))


def _ablation() -> Table:
    methods = list(paper.ABLATION["BERT"])
    rows: list[tuple[Cell, ...]] = [
        (model, *(figures[m] for m in methods)) for model, figures in paper.ABLATION.items()
    ]
    columns = (Column("model"), *(Column(_METHODS[m], ".1f", "%") for m in methods))
    return Table("paper-ablation", "Table 3: what each alignment is worth, QNLI", columns, tuple(rows))
