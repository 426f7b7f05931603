"""What a run tells of its classes fits, or is not taken."""

import math

import pytest

from common.errors import BadMessage
from common.records import AdapterSpec, AdapterTargets, RunSpec, TaskKind, TaskSpec, TrainingSpec
from worker.joining import require_weights


def run(*weights: float) -> RunSpec:
    task = TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False)
    adapter = AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1)
    return RunSpec("run", task, adapter, TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0, class_weights=weights), 7)


def test_one_positive_number_for_each_class_or_none() -> None:
    require_weights(run())
    require_weights(run(0.5, 2.0))


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf), (math.nan, 1.0)]
)
def test_other_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(BadMessage, match="must be 2 positive numbers"):
        require_weights(run(*weights))
