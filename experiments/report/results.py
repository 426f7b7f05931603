"""The finished cells of an experiment, by split, variant and seed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from experiments.catalogue import Experiment
from experiments.experiment import STEPS_FILE
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

    def difference(self, split: str, variant: str, to: str) -> Mean | None:
        """Paired difference of accuracies in points; None without common seeds."""
        return paired(self.by_seed(split, variant, final_accuracy), self.by_seed(split, to, final_accuracy))


def final_accuracy(figures: Figures) -> float:
    """Of the FM with the adapter plugged in, after the last round, in %."""
    return 100 * float(figures["accuracy"])


def name_of_split(split: str) -> str:
    """For headings."""
    return "equal shares (iid)" if split == "iid" else f"Dirichlet({split.partition('-')[2]})"


def by_round(figures: Figures, model: str = "fm") -> dict[int, float]:
    """Accuracies in % by round, where scored; `model` is "fm" or "sub_fm"."""
    return {e["round"]: 100 * e["accuracy"] for e in figures["scores"] if e["model"] == model}
