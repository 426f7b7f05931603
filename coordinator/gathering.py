"""A round's updates: choose workers, have them train, and try again when too few report."""

import asyncio
import statistics
from collections.abc import Iterable

from common import tracing
from common.compute import one_thread
from common.config import RunConfig
from common.errors import RunFailed
from common.faultpoints import Point, reach
from common.records import ArtifactRef, Phase, TrainTask, WaitTask
from common.tensors import Prefixed, TensorFile
from coordinator import schedule
from coordinator.algorithms.outliers import norm, outliers
from coordinator.inbox import DELTA, Expected, Inbox, update_schema
from coordinator.journal import Journal
from coordinator.metrics import Metrics
from coordinator.models import Models
from coordinator.rounds import Lost, RoundPhase, RoundState
from coordinator.sessions import Assignment, Sessions
from coordinator.standing import Standing
from coordinator.store import Store, StoredUpdate

# What happens within so long is looked at together.
COALESCED_SECONDS = 0.05


class Gathering:
    """Gathers the updates of one round after the other. Lives on the event loop."""

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        sessions: Sessions,
        inbox: Inbox,
        journal: Journal,
        metrics: Metrics,
        standing: Standing,
    ) -> None:
        self._rounds, self._config, self._store = config.rounds, config, store
        self._sessions, self._inbox = sessions, inbox
        self._journal, self._metrics, self._standing = journal, metrics, standing

    async def gather(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Have workers train, until the round closes with enough updates.

        Raises RunFailed, naming who is missing, when it missed its minimum in all of its tries.
        """
        if (accepted := self._store.accepted(number)) is not None:
            return accepted
        missing = "nobody"
        for attempt in range(1, self._rounds.tries + 1):
            selected = await self._select(number)
            if len(selected) >= self._rounds.minimum:
                state = await self._train(models, number, adapter, selected)
                if (accepted := self._store.accepted(number)) is not None:
                    self._metrics.tries.labels("closed").inc()
                    return accepted
                reported, absent = len(state.received), state.selected - state.received
            else:
                reported, absent = 0, frozenset(self._store.workers()) - frozenset(selected)
            missing = ", ".join(sorted(absent))
            self._metrics.tries.labels("short").inc()
            self._journal.record(
                "round_short",
                f"round {number}, try {attempt}: {reported} of at least "
                f"{self._rounds.minimum} updates; missing: {missing}",
                number,
            )
        raise RunFailed(
            f"round {number} missed its minimum of {self._rounds.minimum} updates {self._rounds.tries} "
            f"times; missing: {missing}"
        )

    async def _select(self, number: int) -> list[str]:
        """Wait for enough workers, then draw those of this round.

        A try that an earlier process began goes on with the workers that it had drawn.
        """
        # An update that holds a receipt counts, also when the try in which it came fell short.
        holders = [u.worker for u in self._store.updates(number)]
        if (drawn := self._store.interrupted_try(number)) is not None:
            return sorted({*drawn, *holders})
        present = await self._enough_workers(number)
        return sorted({*schedule.select(self._config, number, present, self._rounds.over_select), *holders})

    async def _enough_workers(self, number: int) -> list[str]:
        """The workers that are there, once they are enough.

        The first round waits for rounds.workers as long as it takes. A later one waits for those that
        left it for rounds.grace_seconds, then goes on with its minimum; without that it gives up at
        its deadline, with too few.
        """
        rounds = self._rounds
        begun = asyncio.get_running_loop().time()
        needed = max(rounds.workers, rounds.sample or 0)
        first = number == 1 and not self._store.last_selected()
        while len(present := self._sessions.present()) < needed:
            waited = asyncio.get_running_loop().time() - begun
            limit = rounds.grace_seconds if len(present) >= rounds.minimum else rounds.deadline_seconds
            if not first and waited >= limit:
                break
            self._say_who_is_missing(present, needed)
            try:
                async with asyncio.timeout(None if first else limit - waited):
                    await self._sessions.changed.wait()
            except TimeoutError:
                continue
            # When thousands come, the next look sees many of them.
            await asyncio.sleep(COALESCED_SECONDS)
        return present

    def _say_who_is_missing(self, present: list[str], needed: int) -> None:
        waiting = f"{needed - len(present)} more worker(s): {len(present)} of {needed} are here"
        if known := sorted(set(self._store.workers()) - set(present)):
            waiting += f"; not here: {', '.join(known[:10])}{' …' if len(known) > 10 else ''}"
        if waiting != self._standing.waiting_for:
            self._standing.enter(Phase.WAITING, waiting)
            # Without the number that are here: it changes with each that comes, and all would be told.
            self._sessions.assign_all(WaitTask(f"the run waits until {needed} worker(s) are here"))

    async def _train(
        self, models: Models, number: int, adapter: ArtifactRef, selected: list[str]
    ) -> RoundState:
        """One try at a round."""
        rounds = self._rounds
        stored = self._store.sub_model()
        assert stored is not None
        attempt = self._store.open_try(number, selected)
        counted = models.counted_layers if schedule.may_realign_after(self._config, number) else {}
        task = TrainTask(
            round=number,
            sub_model=stored[0],
            adapter=adapter,
            learning_rate_factor=schedule.learning_rate_factor(self._config, number),
            apoz_layers=tuple(counted),
            seconds_left=rounds.deadline_seconds,
            attempt=attempt,
            zero_rule=models.zero_rule,
            zero_threshold=self._config.realignment.zero_threshold,
            traceparent=tracing.traceparent(),
        )
        closes_at = asyncio.get_running_loop().time() + rounds.deadline_seconds
        state = RoundState(
            number,
            frozenset(selected),
            rounds.minimum,
            closes_at,
            needed=min(len(selected), rounds.sample) if rounds.sample and rounds.over_select else None,
            grace=rounds.grace_seconds,
            received=frozenset(u.worker for u in self._store.updates(number)),
        )
        self._standing.enter_round(number)
        schema = TensorFile(self._store.path(adapter.sha256)).schema()
        self._sessions.assign_all(WaitTask(f"round {number} is under way without this worker"))
        self._inbox.open(state, Expected(adapter, update_schema(schema, models.adapter_spec, counted)))
        for worker in sorted(state.missing):
            self._sessions.assign(worker, Assignment(task, closes_at))
            if not self._sessions.is_present(worker):
                self._inbox.note(Lost(worker))
        self._standing.enter(Phase.TRAINING, f"updates of {', '.join(selected)}")
        self._journal.record(
            "round_opened", f"round {number} of {rounds.count}: {', '.join(selected)}", number
        )
        reach(Point.STEP, "round-opened")
        state = await self._inbox.collect()
        reach(Point.STEP, "round-closed")
        self._sessions.assign_all(WaitTask(f"round {number} is being aggregated"))
        accepted = None
        if state.phase is RoundPhase.CLOSED:
            accepted = state.received - await self._set_aside(number, state.received)
        self._store.close_try(number, attempt, state.phase, accepted)
        return state

    async def _set_aside(self, number: int, received: frozenset[str]) -> frozenset[str]:
        """Workers whose updates do not count, because they are far larger than the others'; they are told.

        Judged when the round closes, not as updates come: which came first must not matter.
        """
        factor = self._config.aggregation.norm_limit
        if factor is None:
            return frozenset()
        updates = [u for u in self._store.updates(number) if u.worker in received]
        norms = await asyncio.to_thread(update_norms, self._store, updates)
        aside = outliers(norms, factor, self._rounds.minimum)
        if not aside:
            return frozenset()
        median = statistics.median(norms.values())
        for worker in aside:
            reason = (
                f"round {number}: the update of worker {worker} is set aside: its norm is "
                f"{norms[worker]:.3g}, the median {median:.3g}; aggregation.norm_limit is {factor:g}"
            )
            self._metrics.updates.labels("set-aside").inc()
            self._journal.record("update_set_aside", reason, number, worker, norm=norms[worker])
            self._sessions.assign(worker, Assignment(WaitTask(reason)))
        return frozenset(aside)


@one_thread()
def update_norms(store: Store, updates: Iterable[StoredUpdate]) -> dict[str, float]:
    """L2 norm of each worker's delta; blocking."""
    files = {u.worker: TensorFile(store.path(u.sha256)) for u in updates}
    return {worker: norm(Prefixed(file, DELTA)) for worker, file in files.items()}
