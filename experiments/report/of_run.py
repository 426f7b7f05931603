"""A run's directory → a document: scores, bytes, seconds, drift, workers' losses."""

import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.config.run import RunConfig
from common.listing import first_few
from common.records import Phase, TaskKind
from common.run_status import (
    AT_WORKERS,
    Evaluation,
    RunStatus,
    Traffic,
    Validation,
    reported,
    told_metrics,
)
from common.task_forms import FORMS, Answer
from coordinator.campaign.best import result_round
from coordinator.campaign.criterion import criterion
from coordinator.campaign.liveness import resting_status
from coordinator.campaign.status import open_run
from coordinator.storage.store import Store
from experiments.report import worker_losses
from experiments.report.document import Cell, Column, Document, Plot, PlotKind, Section, Series, Table

_MEGA = 1e6
_MODELS = {
    "fm": "FM, adapter plugged in",
    "sub_fm": "sub-FM",
    "corrected": "FM, corrected",
    AT_WORKERS: "sub-FM, at the workers",
}


def document(directory: Path, each_worker: bool = True) -> Document:
    """A report of a run that is over or still going on; of single workers only with `each_worker`.

    Raises StoreError when there is no run.
    """
    store, config = open_run(directory)
    try:
        latest = store.latest_adapter()
        done = latest[0] if latest else 0
        status = resting_status(store, config)
        sections = [
            *_scores(config, (*status.evaluations, *(v.as_evaluation for v in status.at_workers))),
            *_at_workers(status.at_workers),
            *worker_losses.sections(store, done, config.private, each_worker),
            *_drift(store),
            *_traffic(store, each_worker),
            *_seconds(store),
            *_sizes(store),
        ]
        state = _state(status)
        lead = [f"{done} of {config.rounds.count} rounds are done; the run {state}."]
        lead += _found(config, status)
        lead += _best(config, status)
        lead += [f"Privacy: {line}." for line in status.privacy]
        if (kept := criterion(status.evaluations, status.result, config.task.kind)) is not None:
            lead.append(f"{kept}.".replace("offsite", "Offsite", 1))
        facts = _facts(store, config, each_worker)
        return Document(f"Run {store.run_id()}", tuple(lead), tuple(sections), facts)
    finally:
        store.close()


def _state(status: RunStatus) -> str:
    match status.phase:
        case Phase.FINISHED | Phase.FAILED:
            return f"has {status.phase}"
        case Phase.STOPPED:
            return "is stopped and can go on"
        case Phase.DIED:
            return f"waits for {status.waiting_for}"
    return "is under way"


def _score(evaluation: Evaluation, config: RunConfig) -> float:
    """Perplexity of a language model, mean squared error of numbers, else accuracy in %."""
    if config.task.kind is TaskKind.CAUSAL_LM:
        return math.exp(min(evaluation.loss, 700.0))
    if FORMS[config.task.kind].answer is Answer.NUMBER:
        return evaluation.loss
    return 100 * evaluation.accuracy


def _measure(config: RunConfig) -> tuple[str, str]:
    """Name and unit of the score."""
    if FORMS[config.task.kind].answer is Answer.NUMBER:
        return "mean squared error", ""
    return ("perplexity", "") if config.task.kind is TaskKind.CAUSAL_LM else ("accuracy", "%")


def _best(config: RunConfig, status: RunStatus) -> list[str]:
    if not status.best:
        return []
    by, whose = (
        config.rounds.best_by.replace("_", " "),
        "at the workers" if status.at_workers else "of the FM",
    )
    text = f"By its {by} {whose}, round {status.best} is the best."
    if status.result < status.round:
        text += f" Its adapter is the run's result, as rounds.patience = {config.rounds.patience} asks for."
    return [text]


def _at_workers(together: tuple[Validation, ...]) -> list[Section]:
    """How much the scores at the workers are of; never one worker's own."""
    if not together:
        return []
    columns = (Column("round"), Column("workers", ",d"), Column("examples", ",d"))
    rows = tuple((v.round, v.workers, v.examples) for v in together)
    note = "Sums over examples that workers keep aside and do not train on."
    return [Section("At the workers", (), (Table("at-workers", "Who scored", columns, rows, (note,)),))]


def _found(config: RunConfig, status: RunStatus) -> list[str]:
    evaluations, result = status.evaluations, status.result
    own = {e.round: _score(e, config) for e in evaluations if e.model == "fm" and e.round <= result}
    if (tuned := reported(evaluations, result)) is not None and tuned.model == "corrected":
        own[tuned.round] = _score(tuned, config)
    if not own and status.at_workers:
        return ["The owner has no test data: the run has been scored at the workers alone."]
    if not own:
        return ["Nothing has been scored: the run has no test data, or has not come that far."]
    name, unit = _measure(config)
    first, last = min(own), max(own)
    text = f"The FM's {name} is {own[last]:.2f} {unit}".rstrip() + f" after round {last}"
    if first != last:
        text += f"; it was {own[first]:.2f} {unit}".rstrip() + (
            " before the first" if first == 0 else f" after {first}"
        )
    return [text + "."]


def _scores(config: RunConfig, evaluations: tuple[Evaluation, ...]) -> list[Section]:
    if not evaluations:
        return []
    name, unit = _measure(config)
    by_model: dict[str, dict[int, float]] = defaultdict(dict)
    for e in evaluations:
        by_model[e.model][e.round] = _score(e, config)
    rounds = sorted({e.round for e in evaluations})
    losses = {(e.model, e.round): e.loss for e in evaluations}
    columns = [Column("round")]
    for model in by_model:
        columns += [Column(f"{name} of {_MODELS[model]}", ".2f", unit), Column("its loss", ".4f", "nats")]
    rows = [
        (n, *(cell for model in by_model for cell in (by_model[model].get(n), losses.get((model, n)))))
        for n in rounds
    ]
    where = "On the owner's test data" if set(by_model) - {AT_WORKERS} else "At the workers"
    where += " and at the workers" if AT_WORKERS in by_model and len(by_model) > 1 else ""
    table = Table("scores", where, tuple(columns), tuple(rows))
    titles = told_metrics(evaluations)
    tuned = [e for e in evaluations if e.model in ("fm", "corrected", AT_WORKERS) and e.metrics]
    further = Table(
        "metrics",
        f"Further metrics {where[0].lower()}{where[1:]}",
        (Column("round"), Column("model"), *(Column(title, ".4f") for title in titles.values())),
        tuple((e.round, _MODELS[e.model], *(e.metrics.get(name) for name in titles)) for e in tuned),
    )
    lines = tuple(
        Series(_MODELS[model], tuple(map(float, sorted(found))), tuple(found[n] for n in sorted(found)))
        for model, found in by_model.items()
    )
    title = f"{name} by round"
    y_title = f"{name} ({unit})" if unit else name
    plot = Plot("scores-by-round", title, PlotKind.LINES, "round", y_title, lines)
    return [Section(name.capitalize(), (), (plot, table, further) if titles else (plot, table))]


def _drift(store: Store) -> list[Section]:
    gaps, alignments = store.gaps(), store.alignments.all()
    parts: list[Table | Plot] = []
    if gaps:
        x = tuple(float(gap.round) for gap in gaps)
        marks = tuple((float(number), "re-aligned") for number, _, _ in alignments)
        lines = [Series("all layers", x, tuple(gap.drift for gap in gaps))]
        for i, layer in enumerate(gaps[0].layers):
            differences = tuple(gap.layers[i].gradient_difference for gap in gaps)
            lines.append(Series(f"layer {layer.layer + 1}", x, differences))
        parts.append(
            Plot(
                "drift", "Drift of the gradients", PlotKind.LINES, "round", "drift", (lines[0],), marks=marks
            )
        )
        title = "Difference of the adapter's gradients by layer"
        parts.append(
            Plot(
                "layers", title, PlotKind.LINES, "round", "relative difference", tuple(lines[1:]), marks=marks
            )
        )
    if alignments:
        columns = (
            Column("after round"),
            Column("hidden-state error before", ".4f"),
            Column("after", ".4f"),
            Column("ratio", ".2f"),
        )
        rows = tuple(
            (n, before, after, after / before if before else None) for n, before, after in alignments
        )
        parts.append(Table("alignments", "Alignments during the rounds", columns, rows))
    return [Section("Sub-FM against FM", (), tuple(parts))] if parts else []


def _traffic(store: Store, each_worker: bool) -> list[Section]:
    counted = store.traffic.by_worker()
    if not counted:
        return []
    rows: list[tuple[Cell, ...]] = []
    down: dict[int, float] = defaultdict(float)
    up: dict[int, float] = defaultdict(float)
    for worker, counts in counted.items():
        by_round: dict[int, list[Traffic]] = defaultdict(list)
        for count in counts:
            by_round[count.round].append(count)
        for number, these in sorted(by_round.items()):
            received, sent = sum(t.bytes_down for t in these), sum(t.bytes_up for t in these)
            rows.append((worker, number, received / _MEGA, sent / _MEGA))
            down[number] += received / _MEGA
            up[number] += sent / _MEGA
    columns = (
        Column("worker"),
        Column("round"),
        Column("to the worker", ".3f", "MB"),
        Column("from the worker", ".3f", "MB"),
    )
    note = "Messages as sent, without HTTP/2 and TCP. Round 0 is before the first: the sub-FM. MB: 10⁶ bytes."
    x = tuple(str(number) for number in sorted(down))
    plot = Plot(
        "bytes",
        "Bytes over all workers by round",
        PlotKind.BARS,
        "round",
        "MB",
        (
            Series("to workers", x, tuple(down[n] for n in sorted(down))),
            Series("from workers", x, tuple(up[n] for n in sorted(down))),
        ),
    )
    if not each_worker:
        return [Section("Bytes", (note,), (plot,))]
    table = Table("traffic", "Bytes by worker and round", columns, tuple(rows), (note,))
    return [Section("Bytes", (), (plot, table))]


def _seconds(store: Store) -> list[Section]:
    entered = [e for e in store.events.all() if e.kind == "phase_entered"]
    if len(entered) < 2:
        return []
    seconds: dict[str, float] = defaultdict(float)
    for event, following in pairwise(entered):
        seconds[event.text.removeprefix("phase: ")] += following.time - event.time
    total = sum(seconds.values())
    rows = tuple((phase, took, 100 * took / total if total else None) for phase, took in seconds.items())
    columns = (Column("phase"), Column("seconds", ".1f"), Column("share", ".0f", "%"))
    table = Table("seconds", "Time by phase", columns, rows)
    series = Series("seconds", tuple(seconds), tuple(seconds.values()))
    plot = Plot("seconds-by-phase", "Seconds by phase", PlotKind.BARS, "", "seconds", (series,))
    return [Section("Time", ("What the coordinator was doing, from phase to phase.",), (plot, table))]


def _sizes(store: Store) -> list[Section]:
    stored = store.sub_model()
    if stored is None:
        return []
    facts = stored[2]
    rows: tuple[tuple[Cell, ...], ...] = (
        ("FM", facts.fm_parameters, facts.fm_layer_parameters, facts.fm_bytes / _MEGA),
        ("sub-FM", facts.sub_fm_parameters, facts.sub_fm_layer_parameters, stored[0].base.size / _MEGA),
        ("adapter and head", facts.adapter_parameters, None, None),
    )
    columns = (
        Column(""),
        Column("parameters", ",d"),
        Column("in its layers", ",d"),
        Column("size", ".2f", "MB"),
    )
    return [Section("Sizes", (), (Table("sizes", "The models", columns, rows),))]


def _facts(store: Store, config: RunConfig, each_worker: bool) -> dict[str, str]:
    changed = _changed(config, "")
    adapters, workers = store.adapters(), store.workers()
    named = first_few((f"{name} ({count:,})" for name, count in workers.items()), 100)
    return {
        "model": Path(config.model.path).name,
        "task": f"{config.task.kind}; {first_few(config.task.labels, 100)}"
        if config.task.labels
        else str(config.task.kind),
        "workers": (named if each_worker else str(len(workers))) if workers else "simulated",
        "seed": str(config.run.seed),
        "settings that differ from the defaults": "; ".join(changed) or "none",
        "adapter, SHA-256": adapters[result_round(store, config)] if adapters else "none yet",
    }


# Where files lie and what listens where says nothing about the result.
_LEFT_OUT = (
    "run.directory",
    "model.path",
    "server.",
    "data.public.path",
    "data.test.path",
    "data.root",
    "task.labels",
)


def _changed(section: BaseModel, prefix: str) -> list[str]:
    """Keys that were set to something else than the default, as KEY = VALUE."""
    found: list[str] = []
    for name, info in type(section).model_fields.items():
        value: Any = getattr(section, name)
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            found += _changed(value, f"{key}.")
        elif value != info.get_default(call_default_factory=True) and not key.startswith(_LEFT_OUT):
            found.append(f"{key} = {value}")
    return found
