"""What a run does in which round: pure decisions, out of the configuration."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from common.config.run import RunConfig
from common.runtime import seeds
from coordinator.algorithms.alignment import due


def select(config: RunConfig, number: int, present: Sequence[str], more: int = 0) -> list[str]:
    """The workers of a round, drawn from those that are there; `more` than the sample where there are."""
    if not config.rounds.sample:
        return sorted(present)
    draw = random.Random(seeds.derive(config.run.seed, "select", number))
    return sorted(draw.sample(list(present), min(len(present), config.rounds.sample + more)))


def learning_rate_factor(config: RunConfig, number: int) -> float:
    """Factor on both learning rates: falling to 0 after the last round, or 1 throughout."""
    falls = config.training.decay == "linear"
    return 1.0 - (number - 1) / config.rounds.count if falls else 1.0


def may_realign_after(config: RunConfig, number: int) -> bool:
    """Whether an alignment may follow this round, so that its updates must bring APoZ counts."""
    if not config.realigns or number >= config.rounds.count:
        return False
    return config.realignment.drift is not None or due(number, config.realignment.every, config.rounds.count)


def counts_in(config: RunConfig, number: int) -> bool:
    """Whether workers count neurons at rest in this round: not where that would tell of single examples."""
    return may_realign_after(config, number) and not config.private


def realigns_after(config: RunConfig, number: int, drift: float | None) -> bool:
    """Whether one does follow: because it is due, or because the measured drift asks for it."""
    if not may_realign_after(config, number):
        return False
    if due(number, config.realignment.every, config.rounds.count):
        return True
    limit = config.realignment.drift
    return limit is not None and drift is not None and drift > limit


def validators(config: RunConfig, number: int, able: Sequence[str]) -> list[str]:
    """The workers that score the sub-FM after a round, drawn from those that can."""
    most = config.validation.workers
    if most is None or most >= len(able):
        return sorted(able)
    draw = random.Random(seeds.derive(config.run.seed, "validators", number))
    return sorted(draw.sample(sorted(able), most))


def validates_after(config: RunConfig, number: int) -> bool:
    """Whether workers score the sub-FM after this round; 0 is before the first."""
    every = config.validation.every
    return every > 0 and (number == config.rounds.count or number % every == 0)


@dataclass(frozen=True)
class Scoring:
    """When the models are scored on the owner's test data: after the last round always."""

    before: bool = True
    """Before the first round, too."""
    every: int | None = 1
    """After every so many rounds; None: after the last alone."""
    sub_fm: bool = True
    """The sub-FM beside the FM whenever that is scored; otherwise after the last round alone."""

    def due(self, number: int, count: int) -> bool:
        """Whether there are scores after round `number` of `count`; 0 is before the first."""
        if number == 0:
            return self.before
        return number == count or (self.every is not None and number % self.every == 0)

    def fm_only(self, number: int, count: int) -> bool:
        """Whether the FM alone is scored then."""
        return not (self.sub_fm or number == count)
