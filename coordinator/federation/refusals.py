"""What is refused of workers: counted, told, and the end of their turn where trying again is no use."""

from collections import Counter
from collections.abc import Callable, Iterator
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

        def tell(error: FedPftError) -> None:
            text = f"update of worker {worker} refused: {error}"
            self._run.events.record("update_refused", text, number, worker)

        with self._noted(self._run.metrics.updates, worker, tell):
            try:
                yield
            except BadUpdate as error:
                self._turns.refused(worker, number, f"its update was refused: {wire.one_line(str(error))}")
                raise

    @contextmanager
    def of_scores(self, worker: str, number: int) -> Iterator[None]:
        """Around the judgement of scores after this round."""

        def tell(error: FedPftError) -> None:
            text = f"scores of worker {worker} refused: {error}"
            self._run.events.record("scores_refused", text, number, worker)

        with self._noted(self._run.metrics.scores, worker, tell):
            try:
                yield
            except BadScores as error:
                self._turns.refused(worker, number, f"its scores were refused: {wire.one_line(str(error))}")
                raise

    @contextmanager
    def _noted(
        self, counter: prometheus_client.Counter, worker: str, tell: Callable[[FedPftError], None]
    ) -> Iterator[None]:
        try:
            yield
        except FedPftError as error:
            counter.labels(type(error).__name__).inc()
            # An event takes room on disk: who is refused again and again is news only so often.
            self._times[worker, self._run.traffic.round] += 1
            if self._times[worker, self._run.traffic.round] <= _TOLD:
                tell(error)
            raise
