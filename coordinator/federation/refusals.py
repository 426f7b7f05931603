"""What is refused of workers: counted, told, and the end of their turn where trying again is no use."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import prometheus_client

from common.errors import BadScores, BadUpdate, FedPftError
from common.transport import wire
from coordinator.context import RunContext
from coordinator.federation.turns import Turns

# Refusals of a worker in a round that become events; all are counted.
_TOLD = 10


class Refusals:
    """Lives on the event loop."""

    def __init__(self, run: RunContext, turns: Turns) -> None:
        self._run, self._turns = run, turns
        self._times: Counter[tuple[str, int]] = Counter()

    @contextmanager
    def of_update(self, worker: str, number: int) -> Iterator[None]:
        """Around the judgement of an update for this round."""
        with self._noted("update", self._run.metrics.updates, worker, number):
            yield

    @contextmanager
    def of_scores(self, worker: str, number: int) -> Iterator[None]:
        """Around the judgement of scores after this round."""
        with self._noted("scores", self._run.metrics.scores, worker, number):
            yield

    @contextmanager
    def _noted(
        self, what: str, counter: prometheus_client.Counter, worker: str, number: int
    ) -> Iterator[None]:
        try:
            yield
        except FedPftError as error:
            counter.labels(type(error).__name__).inc()
            # An event takes room on disk: who is refused again and again is news only so often.
            self._times[worker, self._run.traffic.round] += 1
            if self._times[worker, self._run.traffic.round] <= _TOLD:
                text = f"{what} of worker {worker} refused: {error}"
                self._run.events.record(f"{what}_refused", text, number, worker)
            if isinstance(error, BadUpdate | BadScores):
                self._turns.refused(worker, number, f"its {what} was refused: {wire.one_line(str(error))}")
            raise
