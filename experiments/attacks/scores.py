"""How well an attack tells members from others: AUC, hits at few false alarms, intervals. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DRAWS = 400
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's length: an error bar."""
        return (self.high - self.low) / 2


def auc(members: Floats, others: Floats) -> float:
    """Chance that a member's score is above another's, ties counting half: the area under the ROC curve.

    Raises ValueError where one side is empty or a score is NaN.
    """
    _require(members, others)
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left")
    up_to = np.searchsorted(ordered, members, "right")
    return float((below + up_to).sum() / 2 / (len(members) * len(others)))


def hits_at(members: Floats, others: Floats, false_alarms: float) -> float:
    """Share of members whose score is above a bar that at most this share of the others is above.

    With fewer than 1 / `false_alarms` others none of them is above it. Raises ValueError as `auc` does.
    """
    _require(members, others)
    falling = np.sort(others)[::-1]
    return float((members > falling[min(int(false_alarms * len(falling)), len(falling) - 1)]).mean())


def _require(members: Floats, others: Floats) -> None:
    if not len(members) or not len(others):
        raise ValueError(f"scores of both sides are needed, got {len(members)} and {len(others)}")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("a score must be a number, got NaN")


def estimate(statistic: Callable[[NDArray[np.intp]], float], groups: Sequence[int], seed: int) -> Estimate:
    """`statistic` of all indices, with its percentile bootstrap interval over whole groups.

    `groups` says which group each index is of. Examples of one worker stand or fall together: drawing
    them one by one would make the interval too short.
    """
    of = np.asarray(groups)
    members = [np.flatnonzero(of == group) for group in np.unique(of)]
    random = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([members[i] for i in random.integers(len(members), size=len(members))]))
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(drawn, _TAILS)
    return Estimate(statistic(np.arange(len(of))), float(low), float(high))


def total_variation(guess: Floats, truth: Floats) -> Floats:
    """Half of the absolute differences' sum, from 0 to 1, over the last axis."""
    distance: Floats = np.abs(guess - truth).sum(-1) / 2
    return distance


def onto_simplex(values: Floats) -> Floats:
    """The nearest shares (each >= 0, sum 1) to `values` [C], by Euclid. Source: Duchi et al. 2008."""
    falling = np.sort(values)[::-1]
    surplus = np.cumsum(falling) - 1
    kept = int(np.flatnonzero(falling * np.arange(1, len(values) + 1) > surplus)[-1])
    shares: Floats = np.maximum(values - surplus[kept] / (kept + 1), 0.0)
    return shares
