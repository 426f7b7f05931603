"""How far a running run has come and what it waits for: what the loop says, and others see."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.observability import tracing
from common.observability.logs import log_about
from common.records import Phase
from coordinator.campaign.time_left import Pace
from coordinator.context import RunContext


class RunProgress:
    """The present phase, round, steps of a computation and what is waited for.

    `on_change` is called after each change of these, by whoever makes it.
    """

    def __init__(self, run: RunContext, on_change: Callable[[], None] = lambda: None) -> None:
        self._run, self._on_change = run, on_change
        self.phase = Phase.BUILDING
        self.round = 0
        self.waiting_for = ""
        self.steps = (0, 0)
        """Of the present computation: done, and in all."""
        self._pace = Pace()
        self._traced: Phase | None = None
        self._end_span: Callable[[], None] = lambda: None
        store, rounds = run.store, run.config.rounds
        run.metrics.rounds.set(rounds.count)
        run.metrics.serves(store.run_id(), store.directory, rounds.deadline_seconds)

    def enter(self, phase: Phase, waiting_for: str) -> None:
        """The run enters a phase, or waits for something else in it."""
        if phase is not self.phase:
            self._run.events.record("phase_entered", f"phase: {phase}", self.round)
        self.phase, self.waiting_for, self.steps = phase, waiting_for, (0, 0)
        self._pace = Pace()
        self._run.metrics.entered(phase)
        if phase is not self._traced:
            self._end_span()
            self._traced, self._end_span = phase, tracing.begin(phase)
        self._on_change()

    @contextmanager
    def traced(self, what: str, number: int) -> Iterator[None]:
        """A span around the work on a round, or on what comes before the first; the phases' are below it."""
        with tracing.span(what, run=self._run.store.run_id(), round=number):
            try:
                yield
            finally:
                self._end_span()
                self._traced = None

    @property
    def seconds_left(self) -> float:
        """Until the present computation's last step, as far as can be told; else 0."""
        return self._pace.left(time.monotonic())

    def enter_round(self, number: int) -> None:
        """The run comes to a round."""
        self.round = number
        self._run.traffic.enter_round(number)
        self._run.metrics.round.set(number)
        log_about(round=number)

    def on_step(self, step: int, steps: int) -> None:
        """From the compute thread, between steps. Raises Stopped when the computation is to end."""
        self.steps = (step, steps)
        self._pace.on_step(step, steps, time.monotonic())
        self._run.metrics.progressed()
        self._on_change()
        self._run.compute.check()
