"""The search for a method's best settings: what to try next, given what was found. Pure, without chance.

A pattern search (Hooke and Jeeves 1961) on a grid: a first design over both optimisers, then the neighbours
of the best so far, along two coordinates at a time. Every method is given the same number of trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.records import LocalOptimizer

# 1, 2, 5, 10, … in both directions: a grid on which steps are of about the same ratio.
_MANTISSAS = (1, 2, 5)
EPOCHS = (1, 2, 4, 8)
BATCH_SIZES = (4, 8, 16, 32, 64)
RATES, HEAD_RATE, PASSES, BATCH = "learning rates", "head's learning rate", "epochs", "batch size"
# AdamW's rates must be below 1; SGD beyond this is no training any more.
_MOST = {LocalOptimizer.ADAMW: 0.5, LocalOptimizer.SGD: 500.0}
_LEAST = 1e-6
# Neighbours looked at in one poll.
_POLL = 4


@dataclass(frozen=True)
class Trial:
    """Settings of a worker's training. Without an adapter there is no `learning_rate` to find: None."""

    optimizer: LocalOptimizer
    learning_rate: float | None
    head_learning_rate: float
    epochs: int = 1
    batch_size: int = 16

    @property
    def name(self) -> str:
        """Short, and part of file names: optimiser, rates, epochs x batch size."""
        rates = "".join(f"-{r:g}" for r in (self.learning_rate, self.head_learning_rate) if r is not None)
        return f"{self.optimizer}{rates}-{self.epochs}x{self.batch_size}"

    @property
    def settings(self) -> dict[str, Any]:
        """By keys of run.toml. SGD goes without weight decay, which its rates would make a strong one."""
        found: dict[str, Any] = {
            "training.optimizer": str(self.optimizer),
            "training.head_learning_rate": self.head_learning_rate,
            "training.epochs": self.epochs,
            "training.batch_size": self.batch_size,
        }
        if self.learning_rate is not None:
            found["training.learning_rate"] = self.learning_rate
        if self.optimizer is LocalOptimizer.SGD:
            found["training.weight_decay"] = 0.0
        return found


def first_design(with_adapter: bool) -> list[Trial]:
    """Three scales of the rates for each optimiser, some steps apart; AdamW's default is among them."""
    adamw, sgd = LocalOptimizer.ADAMW, LocalOptimizer.SGD
    if with_adapter:
        return [
            Trial(adamw, 5e-4, 1e-3),
            Trial(adamw, 2e-3, 5e-3),
            Trial(adamw, 1e-2, 2e-2),
            Trial(sgd, 0.1, 1.0),
            Trial(sgd, 0.5, 5.0),
            Trial(sgd, 2.0, 20.0),
        ]
    # A head alone wants more than one beside LoRA, and how much more is less well known.
    heads = {adamw: (5e-3, 5e-2, 0.5), sgd: (2.0, 20.0, 200.0)}
    return [Trial(optimizer, None, rate) for optimizer, rates in heads.items() for rate in rates]


def next_trials(scores: Mapping[Trial, tuple[float, float]], budget: int) -> list[Trial]:
    """The trials to run next, none when `budget` is spent; `scores` are as in `best`, of all so far.

    Raises ValueError without scores: `first_design` comes first.
    """
    left = min(budget - len(scores), _POLL)
    if left <= 0:
        return []
    # By turns rates and work, so that neither takes the whole budget.
    polls = -(-max(0, len(scores) - len(first_design(True))) // _POLL)
    order = (RATES, HEAD_RATE, PASSES, BATCH) if polls % 2 == 0 else (PASSES, BATCH, RATES, HEAD_RATE)
    found: list[Trial] = []
    for trial in ranked(scores):
        near = neighbours(trial)
        for each in (n for coordinate in order for n in near.get(coordinate, ())):
            if each not in scores and each not in found:
                found.append(each)
        if found:
            # Only when all around the best is known, what is around the second.
            break
    return found[:left]


def ranked(scores: Mapping[Trial, tuple[float, float]]) -> list[Trial]:
    """Best first: by score, then by lower loss; of equals the one with less work, then by name."""
    return sorted(
        scores, key=lambda t: (-scores[t][0], scores[t][1], t.epochs / t.batch_size, t.epochs, t.name)
    )


def at_edge(best: Trial, tried: Sequence[Trial]) -> list[str]:
    """Coordinates along which the best has a side where nothing was tried, as "larger …" and "smaller …".

    With another value of the other coordinates counts as tried: what is asked is how far the search went.
    """
    of_one = [t for t in tried if t.optimizer is best.optimizer]
    along: list[tuple[str, float | None, list[float]]] = [
        (
            "LoRA's learning rate",
            best.learning_rate,
            [t.learning_rate for t in of_one if t.learning_rate is not None],
        ),
        (HEAD_RATE, best.head_learning_rate, [t.head_learning_rate for t in of_one]),
        (PASSES, best.epochs, [t.epochs for t in tried]),
        (BATCH, best.batch_size, [t.batch_size for t in tried]),
    ]
    told = []
    for name, value, there in along:
        if value is None:
            continue
        if value >= max(there):
            told.append(f"larger {name}")
        # Less than one epoch there is not.
        if value <= min(there) and not (name == PASSES and value == EPOCHS[0]):
            told.append(f"smaller {name}")
    return told


def neighbours(trial: Trial) -> dict[str, list[Trial]]:
    """One step away, by coordinate: both rates together, the head's alone, epochs, batch size.

    Without an adapter both coordinates of rates are the head's: the second goes two steps.
    """
    lora, head = trial.learning_rate, trial.head_learning_rate
    found: dict[str, list[Trial]] = {RATES: [], HEAD_RATE: [], PASSES: [], BATCH: []}
    for way in (1, -1):
        both = replace(
            trial,
            learning_rate=None if lora is None else stepped(lora, way),
            head_learning_rate=stepped(head, way),
        )
        alone = replace(trial, head_learning_rate=stepped(head, way if lora is not None else 2 * way))
        found[RATES].append(both)
        found[HEAD_RATE].append(alone)
        if (epochs := _beside(EPOCHS, trial.epochs, way)) is not None:
            found[PASSES].append(replace(trial, epochs=epochs))
        if (size := _beside(BATCH_SIZES, trial.batch_size, way)) is not None:
            found[BATCH].append(replace(trial, batch_size=size))
    most = _MOST[trial.optimizer]
    return {
        coordinate: [
            t
            for t in trials
            if all(r is None or _LEAST <= r <= most for r in (t.learning_rate, t.head_learning_rate))
        ]
        for coordinate, trials in found.items()
    }


def _beside(values: Sequence[int], value: int, way: int) -> int | None:
    """The value before or after it; None beyond the ends."""
    index = values.index(value) + way
    return values[index] if 0 <= index < len(values) else None


def stepped(rate: float, steps: int) -> float:
    """So many steps up or down on the grid 1, 2, 5, 10, …; `rate` must lie on it. Raises ValueError."""
    digits, _, exponent = f"{rate:.0e}".partition("e")
    index = int(exponent) * len(_MANTISSAS) + _MANTISSAS.index(int(digits)) + steps
    decade, place = divmod(index, len(_MANTISSAS))
    return float(f"{_MANTISSAS[place]}e{decade}")
