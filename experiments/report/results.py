"""The finished cells of an experiment, by split, variant and seed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from experiments.catalogue import Experiment
from experiments.experiment import STEPS_FILE
from experiments.headline import ACCURACY, title_of, value_of
from experiments.summary import Mean, mean_of, paired

Figures = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What the folder holds. Values are taken from a cell's figures by functions."""

    experiment: Experiment
    about: Mapping[str, Any]
    cells: Mapping[tuple[str, str, int], Figures]
    steps: Mapping[str, Mapping[str, Any]]
    """A worker's measured step by variant; empty where none was measured."""

    @classmethod
    def read(cls, folder: Path, experiment: Experiment, about: Mapping[str, Any]) -> "Results":
        """Raises DataError when a result cannot be read."""
        cells = {}
        for file in sorted((folder / "cells").glob("*/*/seed-*.json")):
            try:
                figures = json.loads(file.read_text())
                cell = figures["cell"]
                cells[cell["split"], cell["variant"], cell["seed"]] = figures
            except (OSError, ValueError, KeyError) as error:
                raise DataError(
                    f"{file} cannot be read: {error}; remove it, and run the command again"
                ) from error
        steps = folder / STEPS_FILE
        return cls(experiment, about, cells, json.loads(steps.read_text()) if steps.exists() else {})

    @property
    def splits(self) -> list[str]:
        """Equal shares first, then from uneven to even."""
        found = {split for split, _, _ in self.cells}
        return sorted(found, key=lambda s: (s != "iid", float(s.partition("-")[2] or 0)))

    @property
    def variants(self) -> list[str]:
        """In the catalogue's order."""
        found = {variant for _, variant, _ in self.cells}
        return [v.name for v in self.experiment.variants if v.name in found]

    @property
    def seeds(self) -> list[int]:
        """All seeds of any cell."""
        return sorted({seed for _, _, seed in self.cells})

    @property
    def metric(self) -> str:
        """What runs are compared by, for people: accuracy, or what the task has instead."""
        return title_of(self.about.get("fixed", {}).get("metric", ACCURACY))

    def title(self, variant: str) -> str:
        """A variant's name for people."""
        return self.experiment.variant(variant).title

    def by_seed(self, split: str, variant: str, value: Callable[[Figures], float | None]) -> dict[int, float]:
        """A value of the variant's runs; runs without one are left out."""
        found = {
            seed: value(self.cells[split, variant, seed])
            for seed in self.seeds
            if (split, variant, seed) in self.cells
        }
        return {seed: number for seed, number in found.items() if number is not None}

    def mean(self, split: str, variant: str, value: Callable[[Figures], float | None]) -> Mean | None:
        """Over the seeds; None without runs."""
        values = self.by_seed(split, variant, value)
        return mean_of(list(values.values())) if values else None

    def difference(
        self, split: str, variant: str, to: str, value: Callable[[Figures], float | None] | None = None
    ) -> Mean | None:
        """Paired difference of a value, of accuracies in points without one; None without common seeds."""
        of = value or final_score
        return paired(self.by_seed(split, variant, of), self.by_seed(split, to, of))


def final_score(figures: Figures) -> float | None:
    """Accuracy, or what the task has instead, of the tuned FM after the last round, in %; None for none."""
    score = figures.get("score", figures["accuracy"])
    return None if score is None or math.isnan(score) else 100 * float(score)


def final_auc(figures: Figures) -> float | None:
    """Area under the ROC curve of the tuned FM, after the last round, in %; None where there is none."""
    return _of_last(figures, lambda score: score.get("metrics", {}).get("auc"), 100.0)


def final_loss(figures: Figures) -> float | None:
    """Loss of the tuned FM on the test data, after the last round."""
    return _of_last(figures, lambda score: score["loss"], 1.0)


def correction_gain(figures: Figures) -> float | None:
    """What the correction has brought in accuracy or the like, in points; None where there was none."""
    return _gain(figures, lambda score: value_of(score, figures.get("metric", ACCURACY)))


def correction_gain_auc(figures: Figures) -> float | None:
    """The same in AUC, in points."""
    return _gain(figures, lambda score: score.get("metrics", {}).get("auc"))


def _last_scores(figures: Figures) -> dict[str, Any]:
    last = max((score["round"] for score in figures["scores"]), default=0)
    return {score["model"]: score for score in figures["scores"] if score["round"] == last}


def _of_last(figures: Figures, value: Callable[[Any], float | None], factor: float) -> float | None:
    scores = _last_scores(figures)
    score = scores.get("corrected", scores.get("fm"))
    found = None if score is None else value(score)
    return None if found is None or math.isnan(found) else factor * found


def _gain(figures: Figures, value: Callable[[Any], float | None]) -> float | None:
    scores = _last_scores(figures)
    if "corrected" not in scores:
        return None
    before, after = value(scores["fm"]), value(scores["corrected"])
    return None if before is None or after is None else 100 * (after - before)


def name_of_split(split: str) -> str:
    """For headings."""
    return "equal shares (iid)" if split == "iid" else f"Dirichlet({split.partition('-')[2]})"


def by_round(figures: Figures, model: str = "fm") -> dict[int, float]:
    """Accuracies or the like in % by round, where scored; `model` is "fm" or "sub_fm"."""
    metric = figures.get("metric", ACCURACY)
    found = {e["round"]: value_of(e, metric) for e in figures["scores"] if e["model"] == model}
    return {number: 100 * value for number, value in found.items() if not math.isnan(value)}
