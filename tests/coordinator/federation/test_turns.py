"""What happens to workers, as events of the open round; how far they have come."""

import asyncio
import math

import pytest

from common.records import Activity, Progress
from coordinator.federation.rounds import Outcome, Over, RoundPhase, RoundState
from coordinator.federation.turns import Turns
from coordinator.federation.worker_progress import WorkerProgress

TRAINING = Progress(Activity.TRAINING, round=1, step=3, steps=9, attempt=1)


@pytest.fixture
def pace() -> WorkerProgress:
    """Of one worker, from second 0."""
    pace = WorkerProgress()
    pace.begin(["w"], 0.0)
    return pace


def test_further_is_more_than_before_of_the_same(pace: WorkerProgress) -> None:
    assert pace.advance("w", "training", 1, 1.0) == (True, True)
    assert pace.advance("w", "training", 1, 2.0) == (False, False)
    assert pace.advance("w", "a file", 1, 3.0) == (True, True)
    assert pace.advance("a stranger", "training", 1, 3.0) == (False, False)


def test_another_process_is_further_only_beyond_those_before_it(pace: WorkerProgress) -> None:
    pace.advance("w", "training", 5, 1.0)
    assert pace.is_further("w")
    pace.restart("w", 2.0)
    assert pace.advance("w", "training", 5, 3.0) == (True, False)
    assert not pace.is_further("w")
    # As much as chance brings: how far it came is told now and then.
    assert pace.advance("w", "training", 6, 4.0) == (True, False)
    assert pace.advance("w", "training", 7, 5.0) == (True, True)
    assert pace.is_further("w")
    pace.restart("w", 6.0)
    assert pace.advance("w", "training", 8, 7.0) == (True, False)


def test_who_stands_still_is_who_came_no_further_and_does_not_wait_for_the_coordinator(
    pace: WorkerProgress,
) -> None:
    assert pace.standing(5.0, 4.9) == []
    assert pace.standing(5.0, 5.0) == ["w"]
    pace.queue("w")
    assert pace.standing(5.0, 500.0) == []
    pace.advance("w", "a file", 1, 501.0)
    assert pace.standing(5.0, 505.0) == []
    assert pace.standing(5.0, 506.0) == ["w"]


class Told:
    """An open round of two workers, and what was told of its turns."""

    def __init__(self, stall: float = math.inf, grace: float = 60.0) -> None:
        self.told: list[tuple[str, Over]] = []
        self.turns = Turns(lambda number, worker, over: self.told.append((worker, over)), stall)
        loop = asyncio.get_running_loop()
        selected = frozenset({"w", "v"})
        self.turns.open(RoundState(1, selected, 1, loop.time() + 1000, grace=grace))

    @property
    def outcomes(self) -> list[tuple[str, Outcome]]:
        return [(worker, over.outcome) for worker, over in self.told]


async def test_a_worker_that_says_that_it_cannot_is_told_once_with_its_reason() -> None:
    told = Told()
    for _ in range(3):
        told.turns.heard("w", Progress(Activity.IDLE, 1, trouble="no memory", attempt=1))
    assert told.told == [("w", Over(Outcome.CANNOT, "no memory"))]


@pytest.mark.parametrize(("round", "attempt"), [(1, 2), (2, 1), (0, 0)])
async def test_trouble_with_another_try_is_no_matter_of_this_one(round: int, attempt: int) -> None:
    told = Told()
    told.turns.heard("w", Progress(Activity.IDLE, round, trouble="no memory", attempt=attempt))
    assert told.told == []


async def test_a_worker_that_restarts_at_the_same_place_is_given_up_at_the_third_time() -> None:
    told = Told()
    for _ in range(3):
        told.turns.joined("w", restarted=True)
        told.turns.heard("w", TRAINING)
    # The first start of these three found nothing of it; its progress was the first.
    assert told.told == []
    told.turns.joined("w", restarted=True)
    assert told.outcomes == [("w", Outcome.DIED)]


async def test_a_worker_that_joins_again_with_its_old_process_has_not_died() -> None:
    told = Told()
    for _ in range(5):
        told.turns.joined("w", restarted=False)
    assert told.told == []


async def test_a_worker_that_stands_still_is_told_and_waited_for_again_when_it_comes_further() -> None:
    told = Told(stall=0.05)
    told.turns.heard("w", TRAINING)
    told.turns.queued("v")
    await asyncio.sleep(0.06)
    told.turns.look()
    assert told.outcomes == [("w", Outcome.STALLED)]
    assert told.turns.state is not None and told.turns.state.missing == {"v"}
    told.turns.advanced("w", "a file", 10)
    assert told.turns.state.missing == {"v", "w"}


async def test_a_worker_that_is_lost_for_too_long_is_told_when_its_grace_is_over() -> None:
    told = Told(grace=0.05)
    told.turns.lost("w")
    assert told.told == []
    told.turns.left("v", "left: stopped")
    assert (await told.turns.collect()).phase is RoundPhase.SHORT
    assert told.outcomes == [("v", Outcome.LEFT), ("w", Outcome.LOST)]
