"""A round's updates from workers: choose them, have them train, and try again when too few report."""

import asyncio
from collections.abc import Mapping, Sequence

from common.errors import RunFailed
from common.listing import first_workers
from common.model.update import update_schema
from common.observability import tracing
from common.records import (
    ArtifactRef,
    ClassCounts,
    EvaluateTask,
    Phase,
    ScoreSums,
    StopTask,
    TrainTask,
    WaitTask,
)
from common.runtime.fault_points import Point, reach
from common.storage.tensors import TensorFile
from coordinator.campaign import promise, schedule
from coordinator.campaign.gathering import Gathering
from coordinator.campaign.progress import RunProgress
from coordinator.context import RunContext
from coordinator.federation.inbox import Expected, Inbox
from coordinator.federation.rounds import Cannot, Lost, Outcome, RoundPhase, RoundState, Work
from coordinator.federation.score_inbox import ExpectedScores
from coordinator.federation.sessions import COALESCED_SECONDS, Assignment, Sessions
from coordinator.modelling.models import Models
from coordinator.storage.store import StoredUpdate


class WorkerGathering(Gathering):
    """Gathers the updates of workers that are connected. Lives on the event loop."""

    def __init__(self, run: RunContext, progress: RunProgress, sessions: Sessions, inbox: Inbox) -> None:
        super().__init__(run)
        self._rounds, self._store, self._events = run.config.rounds, run.store, run.events
        self._progress, self._sessions, self._inbox = progress, sessions, inbox
        self._suspects: set[str] = set()
        """Workers that were given up because they died, since their last update."""

    async def classes(self) -> Sequence[ClassCounts]:
        """What workers tell before they join: waits for rounds.workers, as the first round does."""
        census, needed = self._sessions.census, self._rounds.workers
        known = () if self._run.config.task.asks else self._run.config.task.labels
        census.open(needed, known)
        while len(census.told) < needed:
            have = f"; {first_workers(sorted(census.told))} told theirs" if census.told else ""
            waiting = f"the classes of {needed - len(census.told)} more worker(s){have}"
            self._progress.enter(Phase.WAITING, waiting)
            await census.changed.wait()
        return [told for _, told in sorted(census.told.items())]

    def classes_known(self) -> None:
        """Those that told may join."""
        self._sessions.census.close()

    async def gather(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Have workers train, until the round closes with enough updates.

        Raises RunFailed, naming who is missing, when it missed its minimum in all of its tries.
        """
        if (accepted := self._store.accepted(number)) is not None:
            return accepted
        if number == 1:
            await promise.tell(self._run, adapter)
        missing, failed = "nobody", frozenset[str]()
        for attempt in range(1, self._rounds.tries + 1):
            selected = await self._select(number, failed)
            if len(selected) >= self._minimum(selected):
                state = await self._train(models, number, adapter, selected)
                if (accepted := self._store.accepted(number)) is not None:
                    self._run.metrics.tries.labels("closed").inc()
                    return accepted
                reported, missing = len(state.received), self._who_is_missing(state)
                failed = frozenset(w for w, over in state.over.items() if over.outcome.final)
            else:
                reported = 0
                missing = first_workers(sorted(frozenset(self._store.workers()) - frozenset(selected)))
            self._run.metrics.tries.labels("short").inc()
            self._events.record(
                "round_short",
                f"round {number}, try {attempt}: {reported} of at least "
                f"{self._rounds.minimum} updates; missing: {missing}",
                number,
            )
        raise RunFailed(
            f"round {number} missed its minimum of {self._rounds.minimum} updates {self._rounds.tries} "
            f"times; missing: {missing}"
        )

    def _who_is_missing(self, state: RoundState) -> str:
        """The workers that brought no update, and why, where that is known."""
        outcomes = state.outcomes(asyncio.get_running_loop().time())
        return first_workers(
            f"{worker} ({outcomes[worker].reason})" if worker in outcomes else worker
            for worker in sorted(state.selected - state.received)
        )

    def dismiss(self, task: StopTask) -> None:
        """Tell every worker, also those still to come."""
        self._sessions.assign_all(task)
        self._sessions.census.close("" if task.finished else task.reason)

    async def _select(self, number: int, failed: frozenset[str]) -> list[str]:
        """Wait for enough workers, then draw those of this round.

        Those that `failed` in its last try are drawn too, but others are better: they are waited for.
        A try that an earlier process began goes on with the workers that it had drawn.
        """
        # An update that holds a receipt counts, also when the try in which it came fell short.
        holders = [u.worker for u in self._store.updates(number)]
        if (drawn := self._store.interrupted_try(number)) is not None:
            return sorted({*drawn, *holders})
        present = await self._enough_workers(number == 1 and not self._store.last_selected(), failed)
        return sorted(
            {*schedule.select(self._run.config, number, present, self._rounds.over_select), *holders}
        )

    async def _enough_workers(
        self, first: bool, failed: frozenset[str] = frozenset(), scores: bool = False
    ) -> list[str]:
        """The workers that are there, once they are enough without those that failed.

        What comes first waits for rounds.workers as long as it takes. A later round waits for those that
        left it for rounds.grace_seconds, then goes on with its minimum; without that it gives up at
        its deadline, with too few. For `scores` nothing is given up: they are of those that are there then.
        """
        rounds = self._rounds
        begun = asyncio.get_running_loop().time()
        needed = max(rounds.workers, rounds.sample or 0)
        while len(set(present := self._sessions.present()) - failed) < needed:
            waited = asyncio.get_running_loop().time() - begun
            enough = scores or len(present) >= rounds.minimum
            limit = rounds.grace_seconds if enough else rounds.deadline_seconds
            if not first and waited >= limit:
                break
            self._say_who_is_missing(present, failed, needed)
            try:
                async with asyncio.timeout(None if first else limit - waited):
                    await self._sessions.changed.wait()
            except TimeoutError:
                continue
            # When thousands come, the next look sees many of them.
            await asyncio.sleep(COALESCED_SECONDS)
        return present

    def _say_who_is_missing(self, present: list[str], failed: frozenset[str], needed: int) -> None:
        here = len(set(present) - failed)
        waiting = f"{needed - here} more worker(s): {here} of {needed} are here"
        if doubtful := sorted(failed & set(present)):
            waiting += f", without {first_workers(doubtful)} that failed in the last try"
        if known := sorted(set(self._store.workers()) - set(present)):
            waiting += f"; not here: {first_workers(known)}"
        if waiting != self._progress.waiting_for:
            self._progress.enter(Phase.WAITING, waiting)
            # Without the number that are here: it changes with each that comes, and all would be told.
            self._sessions.assign_all(WaitTask(f"the run waits until {needed} worker(s) are here"))

    async def _train(
        self, models: Models, number: int, adapter: ArtifactRef, selected: list[str]
    ) -> RoundState:
        """One try at a round."""
        rounds = self._rounds
        attempt = self._open_try(number, selected)
        task, counted = self.train_task(models, number, adapter, attempt)
        task, expected = self._asked(task, selected, counted)
        minimum = self._minimum(selected) if task.secure is None else task.secure.minimum
        most = min(len(selected), rounds.sample) if rounds.sample and rounds.over_select else None
        closes_at = asyncio.get_running_loop().time() + rounds.deadline_seconds
        state = RoundState(
            number,
            frozenset(selected),
            minimum,
            closes_at,
            needed=None if most is None else max(most, minimum),
            grace=rounds.grace_seconds,
            received=frozenset(u.worker for u in self._store.updates(number)),
            attempt=attempt,
            most_deaths=rounds.deaths,
            suspects=frozenset(self._suspects),
        )
        self._progress.enter_round(number)
        self._sessions.assign_all(WaitTask(f"round {number} is under way without this worker"))
        self._inbox.open(state, expected)
        for worker in sorted(state.missing):
            self._sessions.assign(worker, Assignment(task, closes_at))
            if not self._sessions.is_present(worker):
                self._inbox.note(Lost(worker))
        self._progress.enter(Phase.TRAINING, f"updates of {first_workers(selected)}")
        self._events.record(
            "round_opened", f"round {number} of {rounds.count}: {first_workers(selected)}", number
        )
        reach(Point.STEP, "round-opened")
        state = await self._collect(number, attempt)
        self._suspects -= state.received
        self._suspects |= {w for w, over in state.over.items() if over.outcome is Outcome.DIED}
        reach(Point.STEP, "round-closed")
        self._sessions.assign_all(WaitTask(f"round {number} is being aggregated"))
        accepted = None
        if state.phase is RoundPhase.CLOSED:
            accepted = state.received - await self._set_aside_and_told(number, state.received)
        self._closed(number, attempt, state, accepted)
        return state

    # --- what is otherwise where only sums are seen ---

    def _open_try(self, number: int, selected: list[str]) -> int:
        """Record the start of a try; returns its number."""
        return self._store.open_try(number, selected)

    def _minimum(self, selected: list[str]) -> int:
        """Fewest updates of so many workers that make a round."""
        return self._rounds.minimum

    def _asked(
        self, task: TrainTask, selected: list[str], counted: Mapping[int, int]
    ) -> tuple[TrainTask, Expected]:
        """The task as workers get it, and what their updates must be."""
        schema = TensorFile(self._store.artifacts.path(task.adapter.sha256)).schema()
        spec = self._run.spec
        asked = update_schema(schema, spec.adapter, counted)
        return task, Expected(task.adapter, asked, targets=spec.asks_targets)

    async def _collect(self, number: int, attempt: int) -> RoundState:
        """Until the open round closes."""
        return await self._inbox.collect()

    def _closed(self, number: int, attempt: int, state: RoundState, accepted: frozenset[str] | None) -> None:
        """Record how a try ended."""
        self._store.close_try(number, attempt, state.phase, accepted)

    async def _set_aside_and_told(self, number: int, received: frozenset[str]) -> frozenset[str]:
        """Workers whose updates do not count although they were received; they hear why."""
        updates = [u for u in self._store.updates(number) if u.worker in received]
        reasons = await self._set_aside(number, updates)
        for worker, reason in reasons.items():
            self._sessions.assign(worker, Assignment(WaitTask(reason)))
        return frozenset(reasons)

    # --- scores ---

    async def _scores(self, models: Models, number: int, adapter: ArtifactRef) -> dict[str, ScoreSums]:
        """What the workers that were drawn have answered, or have before in an interrupted try."""
        if drawn := await self._validators(number):
            await self._score(number, adapter, drawn)
        return self._store.validations.scores(number)

    async def _validators(self, number: int) -> list[str]:
        """The workers that are to score: of those that can, who is here or has just sent an update.

        What that one's process came to since, the evaluation waits for as a round does.
        """
        validations = self._store.validations
        if (drawn := validations.interrupted_try(number)) is not None:
            return sorted({*drawn, *validations.scores(number)})
        present = await self._enough_workers(number == 0, scores=True)
        known = {*present, *(u.worker for u in self._store.accepted(number) or ())}
        able = [worker for worker in validations.validators() if worker in known]
        return schedule.validators(self._run.config, number, able)

    async def _score(self, number: int, adapter: ArtifactRef, drawn: list[str]) -> None:
        """One try: until all have answered that can, or its deadline."""
        section, spec = self._run.config.validation, self._run.spec
        stored = self._store.sub_model()
        assert stored is not None
        attempt = self._store.validations.open_try(number, drawn)
        closes_at = asyncio.get_running_loop().time() + section.deadline_seconds
        state = RoundState(
            number,
            frozenset(drawn),
            section.minimum,
            closes_at,
            grace=self._rounds.grace_seconds,
            received=frozenset(self._store.validations.scores(number)),
            attempt=attempt,
            most_deaths=self._rounds.deaths,
            suspects=frozenset(self._suspects),
            work=Work.SCORES,
        )
        task = EvaluateTask(
            number, stored[0], adapter, section.deadline_seconds, attempt, tracing.traceparent()
        )
        self._sessions.assign_all(WaitTask(f"round {number} is being scored without this worker"))
        expected = ExpectedScores(adapter.sha256, spec.task.kind, spec.task.labels)
        self._inbox.scores.open(state, expected)
        for worker in sorted(state.missing):
            self._sessions.assign(worker, Assignment(task, closes_at))
            if not self._sessions.is_present(worker):
                self._inbox.note(Lost(worker))
            elif not self._sessions.can_score(worker):
                self._inbox.note(Cannot(worker, "keeps no examples aside any more"))
        self._progress.enter(Phase.EVALUATING, f"scores of {first_workers(drawn)}")
        reach(Point.STEP, "validation-opened")
        await self._inbox.collect()
        self._sessions.assign_all(WaitTask(f"round {number} has been scored"))
