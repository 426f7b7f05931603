"""By its scores: a run's best round, whether it ends with that, and whose adapter is its result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.config.choices import CorrectionTeacher
from common.config.run import RunConfig
from common.run_status import Evaluation, Validation
from coordinator.storage.store import Store


@dataclass(frozen=True)
class Scores:
    """A run's scores by round, by which its rounds are judged, the first round first."""

    by_round: tuple[tuple[int, float], ...]
    """Larger is better."""
    at_workers: bool = False
    """Whose they are: the workers', or the owner's of the FM."""

    @property
    def best(self) -> int | None:
        """The round with the best score, the first of equal ones; None without scores."""
        if not self.by_round:
            return None
        return max(self.by_round, key=lambda scored: (scored[1], -scored[0]))[0]

    def stale(self, patience: int) -> bool:
        """Whether the last `patience` scores are not better than the best one before them."""
        best = self.best
        return best is not None and sum(number > best for number, _ in self.by_round) >= patience


def judged(config: RunConfig, evaluations: Sequence[Evaluation], validations: Sequence[Validation]) -> Scores:
    """The scores that decide: those at the workers; where there are none, the FM's on the owner's test data.

    What was scored before the first round is no round's; what is no number is no score.
    """
    workers = [v.as_evaluation for v in validations if v.workers and not v.worker]
    told = workers or [e for e in evaluations if e.model == "fm"]
    by_round = ((e.round, _goodness(e, config.rounds.best_by)) for e in told if e.round)
    return Scores(tuple((n, value) for n, value in by_round if not math.isnan(value)), bool(workers))


def _goodness(score: Evaluation, by: str) -> float:
    match by:
        case "loss":
            return -score.loss
        case "accuracy":
            return score.accuracy
    return score.metrics.get(by, math.nan)


def result_among(config: RunConfig, scores: Scores, newest: int) -> int:
    """The round whose adapter is the result, of a run that has come to the round `newest`."""
    best = scores.best if config.rounds.patience is not None else None
    return newest if best is None else best


def scores_of(store: Store, config: RunConfig) -> Scores:
    """What a run's store has of them."""
    return judged(config, store.evaluations(), store.validations.all())


def best_round(store: Store, config: RunConfig) -> int | None:
    """The round with the best score; None where none is known."""
    return scores_of(store, config).best


def result_round(store: Store, config: RunConfig) -> int:
    """The round whose adapter is the run's result, as things stand; 0 before the first."""
    newest = max(store.adapters(), default=0)
    return result_among(config, scores_of(store, config), newest) if newest else 0


def kept_rounds(store: Store, config: RunConfig) -> frozenset[int]:
    """Rounds whose adapters stay, however old: the best, and what its correction compares it with."""
    best = best_round(store, config)
    if best is None:
        return frozenset()
    c = config.correction
    compared = c.steps > 0 and c.teacher is CorrectionTeacher.ROUNDS and config.rounds.patience is not None
    return frozenset({best, best - 1} if compared else {best})
