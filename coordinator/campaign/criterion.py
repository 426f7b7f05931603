"""Whether a worker keeps a model as good as the owner's: offsite-tuning's criterion (Xiao et al. 2023,
section 3).

The FM must gain by what is plugged in, and what workers have must stay worse than that: else nobody needs
the owner."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.records import TaskKind
from common.run_status import Evaluation, reported
from common.task_forms import FORMS, Answer

# From so many points (percent, or percent of the loss) on the owner's model is worth asking for.
MARGIN = 2.0


@dataclass(frozen=True)
class Criterion:
    """Of one run: the FM before the first round and with the result plugged in, and the tuned sub-FM.

    Accuracies in percent, or mean losses, of which less is better.
    """

    zero_shot: float
    plugged_in: float
    sub_fm: float
    losses: bool

    @property
    def gain(self) -> float:
        """What the FM has gained: points, or percent of its loss before."""
        return self._better(self.plugged_in, self.zero_shot)

    @property
    def margin(self) -> float:
        """By how much the owner's model is better than the workers': points, or percent of their loss."""
        return self._better(self.plugged_in, self.sub_fm)

    def _better(self, this: float, than: float) -> float:
        if not self.losses:
            return this - than
        return 100 * (than - this) / than if than else 0.0

    def __str__(self) -> str:
        unit = "% of the loss" if self.losses else "points"
        gained = f"the FM gains {self.gain:.2f} {unit}" if self.gain > 0 else "the FM gains nothing"
        behind = f"{self.margin:.2f} {unit} behind it"
        if self.margin >= MARGIN:
            kept = f"stays {behind}"
        elif self.margin > 0:
            kept = f"is only {behind}: they keep a model nearly as good"
        else:
            kept = f"is not behind it ({self.margin:+.2f} {unit}): they keep a model as good"
        return f"offsite-tuning's criterion: {gained}; the workers' sub-FM {kept}"


def criterion(evaluations: Sequence[Evaluation], result: int, kind: TaskKind) -> Criterion | None:
    """None where the three were not all scored, or have no finite score."""
    before = next((e for e in evaluations if e.model == "fm" and e.round == 0), None)
    sub_fm = next((e for e in evaluations if e.model == "sub_fm" and e.round == result), None)
    plugged_in = reported(evaluations, result)
    if before is None or sub_fm is None or plugged_in is None or result == 0:
        return None
    losses = kind is TaskKind.CAUSAL_LM or FORMS[kind].answer is Answer.NUMBER
    found = [e.loss if losses else 100 * e.accuracy for e in (before, plugged_in, sub_fm)]
    if not all(map(math.isfinite, found)):
        return None
    return Criterion(found[0], found[1], found[2], losses)
