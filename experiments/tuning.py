"""A search for every method's best settings: its trials as cells, and what it came to as a file."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.records import LocalOptimizer
from common.storage.files import write_atomically
from experiments.catalogue import Scale, Variant
from experiments.cells import Cell
from experiments.running import Work
from experiments.search import Trial, at_edge, first_design, next_trials, ranked
from experiments.tuned import BEST_FILE, HEAD_ONLY, method_of

_JOINT = "+"
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a method's search has come to: the trials with their score and loss, and the best of them."""

    scores: Mapping[Trial, tuple[float, float]]

    @property
    def best(self) -> Trial:
        """The first of `ranked`."""
        return ranked(self.scores)[0]

    @property
    def edges(self) -> list[str]:
        """Where the best lies at the end of what was tried."""
        return at_edge(self.best, list(self.scores))


def stages(folder: Path, methods: Sequence[Variant], scale: Scale) -> Iterator[list[Work]]:
    """All methods' next trials as cells, one stage after the other; those before must have been run."""
    tried: dict[str, list[Trial]] = {}
    while True:
        work = []
        for method in methods:
            if method.name not in tried:
                new = first_design(method_of(method.settings) != HEAD_ONLY)[: scale.trials]
            else:
                scores = {t: _score(folder, method, t, scale) for t in tried[method.name]}
                new = next_trials(scores, scale.trials)
            tried.setdefault(method.name, []).extend(new)
            work += [
                Work(cell, dict(method.settings) | trial.settings)
                for trial in new
                for cell in _cells(method.name, trial, scale)
            ]
        if not work:
            return
        yield work


def _cells(method: str, trial: Trial, scale: Scale) -> list[Cell]:
    return [
        Cell(split, f"{method}{_JOINT}{trial.name}", seed)
        for split in scale.splits
        for seed in scale.all_seeds
    ]


def _score(folder: Path, method: Variant, trial: Trial, scale: Scale) -> tuple[float, float]:
    return mean_score([json.loads((folder / c.file).read_text()) for c in _cells(method.name, trial, scale)])


def mean_score(cells: Sequence[Figures]) -> tuple[float, float]:
    """Score and loss of a trial over its cells; one that diverged in any of them is behind all others."""
    scores = [(float(c["score"]), _loss(c)) for c in cells if "failed" not in c]
    if len(scores) < len(cells):
        return -math.inf, math.inf
    means = [sum(values) / len(values) for values in zip(*scores, strict=True)]
    return means[0] if math.isfinite(means[0]) else -math.inf, means[1]


def _loss(figures: Figures) -> float:
    last = max(score["round"] for score in figures["scores"])
    return float(next(s["loss"] for s in figures["scores"] if (s["round"], s["model"]) == (last, "fm")))


def found_by_method(cells: Mapping[tuple[str, str, int], Figures]) -> dict[str, Found]:
    """What cells (split, variant, seed → figures) come to, by method, but for trials that are not whole."""
    grouped: dict[tuple[str, Trial], list[Figures]] = {}
    for (_, variant, _), figures in sorted(cells.items()):
        method, _, name = variant.partition(_JOINT)
        trial = _trial(figures["settings"])
        assert trial.name == name, (trial.name, name)
        grouped.setdefault((method, trial), []).append(figures)
    most = max((len(group) for group in grouped.values()), default=0)
    found: dict[str, dict[Trial, tuple[float, float]]] = {}
    for (method, trial), group in grouped.items():
        if len(group) == most:
            found.setdefault(method, {})[trial] = mean_score(group)
    return {method: Found(scores) for method, scores in found.items()}


def _trial(settings: Mapping[str, Any]) -> Trial:
    values = {key.removeprefix("training."): v for key, v in settings.items() if key.startswith("training.")}
    values.pop("weight_decay", None)
    values["optimizer"] = LocalOptimizer(values["optimizer"])
    return Trial(**({"learning_rate": None} | values))


def write_best(folder: Path, found: Mapping[str, Found], about: Mapping[str, Any]) -> Path:
    """best.json: the settings for every method, by keys of run.toml, and what they rest on."""
    methods = {
        method: {
            "settings": each.best.settings,
            "validation": each.scores[each.best][0],
            "loss": each.scores[each.best][1],
            "trials": len(each.scores),
            "at_edge": each.edges,
        }
        for method, each in found.items()
    }
    content = {"methods": methods, **about}
    write_atomically(folder / BEST_FILE, json.dumps(content, indent=1, default=str).encode())
    return folder / BEST_FILE
