"""The open round and its workers' turns: what happens to a worker becomes an event of the round."""

import asyncio
import math
from collections.abc import Callable

from common.records import Activity, Progress
from common.runtime.notifier import Notifier
from coordinator.federation.rounds import (
    Abandoned,
    Cannot,
    Event,
    Left,
    Lost,
    Outcome,
    Over,
    Progressed,
    Refused,
    Restarted,
    Returned,
    RoundPhase,
    RoundState,
    Stalled,
    Tick,
    step,
)
from coordinator.federation.worker_progress import WorkerProgress

# Told of every turn that ended without an update: the round, the worker, how.
OnOver = Callable[[int, str, Over], None]


class Turns:
    """Who is waited for. Lives on the event loop."""

    def __init__(self, on_over: OnOver = lambda number, worker, over: None, stall: float = math.inf) -> None:
        self._on_over, self._stall = on_over, stall
        """A worker that is heard, but has come no further for so many seconds, is not waited for."""
        self._progress = WorkerProgress()
        self._changed = Notifier()
        self._told: dict[str, Over] = {}
        self.state: RoundState | None = None

    def open(self, state: RoundState) -> None:
        """A try at a round begins."""
        self.state, self._told = state, {}
        self._progress.begin(state.missing, _now())
        self.note(Tick())

    @property
    def number(self) -> int | None:
        """The open round's, if there is one."""
        return self.state.number if self.state and self.state.phase is RoundPhase.OPEN else None

    def note(self, event: Event) -> None:
        """Tell the open round, if there is one, of an event."""
        if self.state is None or self.state.phase is not RoundPhase.OPEN:
            return
        self.state = step(self.state, event, _now())
        self._changed.notify()
        if isinstance(event, Tick | Abandoned) or self.state.phase is not RoundPhase.OPEN:
            ended = self.state.outcomes(_now())
        else:
            found = self.state.over.get(event.worker)
            ended = {} if found is None else {event.worker: found}
            if found is None:
                self._told.pop(event.worker, None)
        for worker, over in ended.items():
            if self._told.get(worker) != over:
                self._told[worker] = over
                self._on_over(self.state.number, worker, over)

    async def collect(self) -> RoundState:
        """Until the open round closes."""
        assert self.state is not None
        while self.state.phase is RoundPhase.OPEN:
            until = self.state.next_change(_now())
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                self.note(Tick())
        return self.state

    # --- what becomes of a worker ---

    def joined(self, worker: str, restarted: bool) -> None:
        """A worker joined; `restarted`: while another process of it was there."""
        further = self._progress.is_further(worker)
        self._progress.restart(worker, _now())
        self.note(Restarted(worker, further) if restarted else Returned(worker))

    def left(self, worker: str, reason: str) -> None:
        """A worker said goodbye."""
        self.note(Left(worker, reason, self._progress.is_further(worker)))

    def lost(self, worker: str) -> None:
        """A worker fell silent."""
        self.note(Lost(worker, self._progress.is_further(worker)))

    def refused(self, worker: str, number: int, reason: str) -> None:
        """What a worker brings for this round is refused, and to send it again does not help."""
        if number == self.number:
            self.note(Refused(worker, reason))

    def heard(self, worker: str, progress: Progress) -> None:
        """A worker told how far it has come, or that it cannot go on."""
        state = self.state
        if state is None or progress.round != state.number:
            return
        if progress.trouble and progress.attempt == state.attempt:
            self.note(Cannot(worker, progress.trouble))
        elif progress.activity in (Activity.TRAINING, Activity.SCORING):
            self.advanced(worker, progress.activity, progress.step)

    def advanced(self, worker: str, what: str, amount: int) -> None:
        """A worker has come so far with its steps, or with the bytes of a file."""
        here, ever = self._progress.advance(worker, what, amount, _now())
        state = self.state
        if not here or state is None:
            return
        stalled = worker in state.over and state.over[worker].outcome is Outcome.STALLED
        # All others change nothing, and there are many.
        if stalled or (ever and worker in state.absent):
            self.note(Progressed(worker, ever))

    def queued(self, worker: str) -> None:
        """A worker waits for this coordinator."""
        self._progress.queue(worker)

    def look(self) -> None:
        """Notice workers that come no further, though they are heard. To be called now and then."""
        state = self.state
        if state is None or state.phase is not RoundPhase.OPEN:
            return
        reason = f"has come no further in round {state.number} for {self._stall:g} s"
        for worker in self._progress.standing(self._stall, _now()):
            if worker in state.missing and worker not in state.lost:
                self.note(Stalled(worker, reason))


def _now() -> float:
    return asyncio.get_running_loop().time()
