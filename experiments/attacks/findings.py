"""The turns' raw figures → what each attack reached, and whether a bound that is claimed is broken."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.attacks import membership, properties
from experiments.attacks.scores import Estimate, auc, estimate, hits_at, total_variation
from experiments.attacks.turns import LABELS, MEMBERSHIP, WORTH
from experiments.attacks.views import VIEWS

FALSE_ALARMS = 0.01
# What is claimed (docs/privacy.md): of sums over so many workers, with so many examples each, membership is
# not told better than this, and labels not better than by the sum's own mean.
CLAIMED_WORKERS, CLAIMED_EXAMPLES, NEAR_CHANCE = 5, 100, 0.55
# The mean is not the nearest point by total variation: one that knows nothing of single workers may be nearer
# by so much.
LEAST_GAIN = 0.02
_SEED = 1


@dataclass(frozen=True)
class Membership:
    """Of one attack against one view: texts judged, AUC, share of members found at 1 % false alarms."""

    size: int
    view: str
    attack: str
    members: int
    others: int
    auc: Estimate
    hits: Estimate


@dataclass(frozen=True)
class Labels:
    """Of one attack against one view, over workers. Distances are total variations of shares, 0 to 1.

    `distance`: of the guess from the worker's shares. `uniform`, `by_mean`: what guessing equal shares, and
    guessing the mean that the look itself is about (of one worker alone: of all workers), come to. `to_mean`:
    of the attack's guess from that mean. `gain` = by_mean − distance: above 0 the attack tells something of
    single workers. `largest_right`: how often the largest class is the worker's.
    """

    view: str
    attack: str
    workers: int
    looks: int
    distance: Estimate
    uniform: float
    by_mean: float
    to_mean: float
    gain: Estimate
    correlation: float
    largest_right: float

    @property
    def judged(self) -> bool:
        """Whether a bound is claimed, and there are looks to judge it by: one alone has no interval."""
        return claimed(self.view) and self.looks > 1


@dataclass(frozen=True)
class Worth:
    """Accuracies of FM and sub-FM before and after tuning; of an FM tuned whole; mean over seeds.

    `margin`: plugged in − sub-FM tuned, offsite-tuning's second condition.
    """

    fm_before: float
    sub_fm_before: float
    sub_fm_tuned: float
    plugged_in: float
    fm_tuned: float
    margin: Estimate


@dataclass(frozen=True)
class Findings:
    """Raw figures by attack, one mapping for every turn that is done."""

    figures: Mapping[str, Sequence[Mapping[str, Any]]]

    @classmethod
    def read(cls, folder: Path) -> "Findings":
        """What is done of an experiment in `folder`."""
        return cls(
            {
                attack: [
                    json.loads(f.read_text()) for f in sorted((folder / "cells" / attack).rglob("*.json"))
                ]
                for attack in (MEMBERSHIP, LABELS, WORTH)
            }
        )

    @cached_property
    def membership(self) -> list[Membership]:
        """By size, view and attack, over all seeds."""
        found = self.figures[MEMBERSHIP]
        return [
            _membership(size, view, attack, [f for f in found if f["size"] == size and view in f["views"]])
            for size in sorted({f["size"] for f in found})
            for view in VIEWS
            for attack in membership.ATTACKS
            if any(f["size"] == size and view in f["views"] for f in found)
        ]

    @cached_property
    def labels(self) -> list[Labels]:
        """By view and attack, over all seeds."""
        found = self.figures[LABELS]
        return [
            _labels(view, attack, [f for f in found if view in f["views"]])
            for view in VIEWS
            for attack in properties.ATTACKS
            if any(view in f["views"] for f in found)
        ]

    @cached_property
    def worth(self) -> Worth | None:
        """None: not measured yet."""
        return _worth(self.figures[WORTH]) if self.figures[WORTH] else None

    def broken(self) -> list[str]:
        """Every bound that is claimed and does not hold: which, where, by how much."""
        return [*_broken_membership(self.membership), *_broken_labels(self.labels)]


def claimed(view: str, size: int | None = None) -> bool:
    """Whether a bound is claimed for a view; of membership with so many examples a worker."""
    return VIEWS[view].workers >= CLAIMED_WORKERS and (size is None or size >= CLAIMED_EXAMPLES)


def _broken_membership(found: Sequence[Membership]) -> Iterator[str]:
    for m in found:
        if claimed(m.view, m.size) and m.auc.low > NEAR_CHANCE:
            yield (
                f"membership by {m.attack}, {VIEWS[m.view].title}, {m.size} examples a worker: "
                f"AUC {m.auc.value:.3f} (95 % interval from {m.auc.low:.3f}) is above {NEAR_CHANCE:g}"
            )


def _broken_labels(found: Sequence[Labels]) -> Iterator[str]:
    for label in found:
        if label.judged and label.gain.low > LEAST_GAIN:
            yield (
                f"labels by {label.attack}, {VIEWS[label.view].title}: {label.distance.value:.3f} from a "
                f"worker's shares is less than the {label.by_mean:.3f} of guessing by the mean"
            )


def _membership(size: int, view: str, attack: str, found: Sequence[Mapping[str, Any]]) -> Membership:
    seen = [f["views"][view] for f in found]
    scores = np.concatenate([np.asarray(s[attack], dtype=float) for s in seen])
    member = np.concatenate([np.asarray(s["member"], dtype=bool) for s in seen])
    groups = _numbered([(f["seed"], w) for f, s in zip(found, seen, strict=True) for w in s["workers"]])

    def of(statistic: Callable[[NDArray[Any], NDArray[Any]], float]) -> Estimate:
        return estimate(lambda i: statistic(scores[i][member[i]], scores[i][~member[i]]), groups, _SEED)

    return Membership(
        size,
        view,
        attack,
        int(member.sum()),
        int((~member).sum()),
        of(auc),
        of(lambda members, others: hits_at(members, others, FALSE_ALARMS)),
    )


def _labels(view: str, attack: str, found: Sequence[Mapping[str, Any]]) -> Labels:
    rows = [(f["seed"], row) for f in found for row in f["views"][view]]
    true = np.array([row["true"] for _, row in rows])
    guess = np.array([row[attack] for _, row in rows])
    mean = np.array([row["mean"] for _, row in rows])
    if not VIEWS[view].is_sum:
        # What a look at one worker is about is the worker: the mean to guess by is everybody's.
        mean = np.array([f["everybody"] for f in found for _ in f["views"][view]])
    own, by_mean = total_variation(guess, true), total_variation(mean, true)
    groups = _numbered([(seed, row["look"]) for seed, row in rows])
    return Labels(
        view,
        attack,
        len(rows),
        len(set(groups)),
        estimate(lambda i: float(own[i].mean()), groups, _SEED),
        float(total_variation(np.full_like(true, 1 / true.shape[1]), true).mean()),
        float(by_mean.mean()),
        float(total_variation(guess, mean).mean()),
        estimate(lambda i: float((by_mean - own)[i].mean()), groups, _SEED),
        float(np.corrcoef(guess.ravel(), true.ravel())[0, 1]) if guess.std() > 0 else 0.0,
        float((guess.argmax(1) == true.argmax(1)).mean()),
    )


def _worth(found: Sequence[Mapping[str, Any]]) -> Worth:
    def mean(name: str) -> float:
        return float(np.mean([f[name] for f in found]))

    plugged, alone = mean("plugged_in"), mean("sub_fm_tuned")
    tests = sum(int(f["tests"]) for f in found)
    # As if both models were scored on texts of their own: both on the same ones differ by less.
    error = math.sqrt((plugged * (1 - plugged) + alone * (1 - alone)) / tests)
    half = float(stats.norm.ppf(0.975)) * error
    margin = plugged - alone
    return Worth(
        mean("fm_before"),
        mean("sub_fm_before"),
        alone,
        plugged,
        mean("fm_tuned"),
        Estimate(margin, margin - half, margin + half),
    )


def _numbered(keys: Sequence[tuple[int, Any]]) -> list[int]:
    """The same number for the same key."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]
