"""Where a running run stands and what it waits for: what the loop says, and others see."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from common import tracing
from common.compute import Compute
from common.config import RunConfig
from common.logs import log_about
from common.records import Activity, Phase, RunStatus
from coordinator.inbox import Inbox
from coordinator.journal import Journal
from coordinator.meter import Meter
from coordinator.metrics import Metrics
from coordinator.rounds import RoundState
from coordinator.sessions import Sessions
from coordinator.status import stored_status, worker_statuses
from coordinator.store import Store


class Standing:
    """The present phase, round, progress and what is waited for. Lives on the event loop."""

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        sessions: Sessions,
        inbox: Inbox,
        journal: Journal,
        meter: Meter,
        metrics: Metrics,
        compute: Compute,
    ) -> None:
        self._config, self._store = config, store
        self._sessions, self._inbox = sessions, inbox
        self._journal, self._meter, self._metrics = journal, meter, metrics
        self._compute = compute
        self.phase = Phase.BUILDING
        self.round = 0
        self.waiting_for = ""
        self._progress = (0, 0)
        self._traced: Phase | None = None
        self._end_span: Callable[[], None] = lambda: None
        metrics.rounds.set(config.rounds.count)
        metrics.serves(store.run_id(), store.directory, config.rounds.deadline_seconds)

    def enter(self, phase: Phase, waiting_for: str) -> None:
        """The run enters a phase, or waits for something else in it."""
        if phase is not self.phase:
            self._journal.record("phase_entered", f"phase: {phase}", self.round)
        self.phase, self.waiting_for, self._progress = phase, waiting_for, (0, 0)
        self._metrics.entered(phase)
        if phase is not self._traced:
            self._end_span()
            self._traced, self._end_span = phase, tracing.begin(phase)

    @contextmanager
    def traced(self, what: str, number: int) -> Iterator[None]:
        """A span around the work on a round, or on what comes before the first; the phases' are below it."""
        with tracing.span(what, run=self._store.run_id(), round=number):
            try:
                yield
            finally:
                self._end_span()
                self._traced = None

    def enter_round(self, number: int) -> None:
        """The run comes to a round."""
        self.round = self._meter.round = number
        self._metrics.round.set(number)
        log_about(round=number)

    def on_progress(self, step: int, steps: int) -> None:
        """From the compute thread."""
        self._progress = (step, steps)
        self._metrics.progressed()
        self._compute.check()

    def status(self) -> RunStatus:
        """Where the run stands, now."""
        step, steps = self._progress
        return replace(
            stored_status(self._store, self._config, workers=False),
            phase=self.phase,
            round=self.round,
            waiting_for=self._awaited(),
            step=step,
            steps=steps,
            workers=worker_statuses(self._store, self._sessions.all(), self._meter.of),
        )

    def _awaited(self) -> str:
        """What the run waits for; in a round, whose updates are still missing."""
        state = self._inbox.state
        if self.phase is Phase.TRAINING and state is not None and state.missing:
            return awaited_updates(state, asyncio.get_running_loop().time())
        return self.waiting_for


def awaited_updates(state: RoundState, now: float) -> str:
    """What an open round waits for, and how long at most for those that are lost."""
    names = []
    for worker in sorted(state.missing):
        if worker not in state.lost:
            names.append(worker)
        elif (left := min(state.lost[worker], state.closes_at) - now) > 0:
            names.append(f"{worker} ({Activity.LOST}, waited for another {left:.0f} s)")
    more = (state.needed or len(state.selected)) - len(state.received)
    if more < len(names):
        return f"{more} more update(s), of {', '.join(names)}"
    return f"updates of {', '.join(names)}"
