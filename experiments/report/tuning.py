"""What workers train with: a search's trials, what came of them, and where the best lies."""

from collections.abc import Mapping
from typing import Any

from common.records import AdapterTargets
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import Results
from experiments.search import first_design, ranked
from experiments.tuned import HEAD_ONLY
from experiments.tuning import Found, found_by_method

# Settings by column of a table.
_KEYS = ("optimizer", "learning_rate", "head_learning_rate", "epochs", "batch_size")
SETTINGS = (
    Column("optimiser"),
    Column("LoRA's rate", "g"),
    Column("head's rate", "g"),
    Column("epochs"),
    Column("batch size"),
)
_SCORED = (
    "Scored on examples that were kept from the workers' own data. The test data are not looked at: the "
    "search cannot have learnt from what methods are compared on."
)


def settings_cells(training: Mapping[str, Any], with_adapter: bool) -> tuple[Cell, ...]:
    """A row's cells for SETTINGS; `training` is that table of run.toml."""
    values = [str(training[key]) if key == "optimizer" else training[key] for key in _KEYS]
    if not with_adapter:
        values[1] = None
    return tuple(values)


def sections(results: Results) -> list[Section]:
    """The best of every method, then all trials of each."""
    found = _in_order(results)
    metric = results.metric
    return [
        Section("Best settings", (_SCORED,), (_best(results, found),)),
        *(
            Section(
                results.title(method),
                tuple(_edge(each)),
                (_trials(each, method, metric), _plot(each, method, metric)),
            )
            for method, each in found.items()
        ),
    ]


def trained_with(results: Results) -> list[Section]:
    """How each variant's workers trained, and whether that was found by a search."""
    rows: list[tuple[Cell, ...]] = []
    neuron_rates: list[float | None] = []
    for variant in results.variants:
        figures = next((f for (_, name, _), f in results.cells.items() if name == variant), {})
        if "training" not in figures:
            continue
        own = results.experiment.variant(variant).settings
        targets = AdapterTargets(own.get("adapter.targets", AdapterTargets.ATTENTION))
        neuron_rates.append(figures["training"]["neuron_learning_rate"] if targets.neurons else None)
        found = any(key not in own for key in figures["settings"] if key.startswith("training."))
        rows.append(
            (
                results.title(variant),
                *settings_cells(figures["training"], targets.lora),
                "tuned" if found else "default",
            )
        )
    if not rows:
        return []
    further = any(rate is not None for rate in neuron_rates)
    if further:
        rows = [(*row[:3], rate, *row[3:]) for row, rate in zip(rows, neuron_rates, strict=True)]
    note = "tuned: found by `fedpft experiment tune` for the method on this data, on validation data only."
    first, others = SETTINGS[:2], SETTINGS[2:]
    columns = (
        Column("variant"),
        *first,
        *((Column("neurons' rate", "g"),) if further else ()),
        *others,
        Column("from"),
    )
    return [
        Section(
            "Training", (), (Table("training", "What workers train with", columns, tuple(rows), (note,)),)
        )
    ]


def lead(results: Results) -> list[str]:
    """What was found, in a sentence for each method."""
    told = []
    for method, each in _in_order(results).items():
        best = each.best
        rates = f"rate {best.head_learning_rate:g} for the head"
        if best.learning_rate is not None:
            rates = f"rates {best.learning_rate:g} for LoRA, {best.head_learning_rate:g} for the head"
        epochs = "1 epoch" if best.epochs == 1 else f"{best.epochs} epochs"
        told.append(
            f"{results.title(method).partition(':')[0]}: best of {len(each.scores)} trials is "
            f"{best.optimizer} with {rates}, {epochs} in batches of {best.batch_size}: {results.metric} "
            f"{100 * each.scores[best][0]:.2f} % on validation data."
        )
    return told


def _in_order(results: Results) -> dict[str, Found]:
    found = found_by_method(results.cells)
    return {v.name: found[v.name] for v in results.experiment.variants if v.name in found}


def _edge(found: Found) -> list[str]:
    if not found.edges:
        return []
    return [
        "Warning: the best lies at the edge of what was tried. Not tried: " + ", ".join(found.edges) + ". "
        "More trials (--trials) go on from here."
    ]


def _best(results: Results, found: Mapping[str, Found]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for method, each in found.items():
        best, score = each.best, each.scores[each.best]
        first = first_design(method != HEAD_ONLY)[1 if method != HEAD_ONLY else 0]
        before = each.scores.get(first)
        rows.append(
            (
                results.title(method),
                len(each.scores),
                *settings_cells(vars(best), best.learning_rate is not None),
                100 * score[0],
                100 * before[0] if before else None,
                score[1],
                ", ".join(each.edges),
            )
        )
    columns = (
        Column("method"),
        Column("trials"),
        *SETTINGS,
        Column(results.metric, ".2f", "%"),
        Column("by default", ".2f", "%"),
        Column("loss", ".4f"),
        Column("not tried beyond the best"),
    )
    return Table("best", "Best of every method", columns, tuple(rows))


def _trials(found: Found, method: str, metric: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for trial in ranked(found.scores):
        score, loss = found.scores[trial]
        failed = score == float("-inf")
        rows.append(
            (
                *settings_cells(vars(trial), trial.learning_rate is not None),
                None if failed else 100 * score,
                None if failed else loss,
                "diverged" if failed else "",
            )
        )
    columns = (*SETTINGS, Column(metric, ".2f", "%"), Column("loss", ".4f"), Column(""))
    return Table(f"trials-{method}", "All trials, best first", columns, tuple(rows), (), frozenset({0}))


def _plot(found: Found, method: str, metric: str) -> Plot:
    there = [t for t in ranked(found.scores) if found.scores[t][0] != float("-inf")]
    series = tuple(
        Series(
            str(optimizer),
            tuple(t.name for t in there if t.optimizer is optimizer),
            tuple(100 * found.scores[t][0] for t in there if t.optimizer is optimizer),
        )
        for optimizer in sorted({t.optimizer for t in there})
    )
    return Plot(f"trials-{method}", "Score of every trial", PlotKind.POINTS, f"{metric} (%)", "", series)
