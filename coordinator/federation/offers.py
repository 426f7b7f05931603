"""What a run offers to workers that look for one, and who has declined it. Lives on the event loop."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from common.errors import TooMany, UnknownRun, Unreachable
from common.records import RunSpec
from common.run_offers import FindRequest
from common.runtime.notifier import Notifier
from common.transport.rpc import run_named
from coordinator.context import RunContext
from coordinator.federation.authorization import Admission
from coordinator.federation.needs import negotiated
from coordinator.federation.sessions import Sessions
from coordinator.storage.declined import DeclinedTable

# Answers of one worker that become events; the last one is kept.
_TOLD = 10


def require_run(run_id: str, context: Any) -> None:
    """Raises UnknownRun for a call that concerns another run; one that names none concerns this one."""
    if (named := run_named(context)) and named != run_id:
        raise UnknownRun(f"this coordinator does not hold run {named[:64]!r}")


class Offers:
    """Of one run."""

    def __init__(self, run: RunContext, sessions: Sessions) -> None:
        self.changed = Notifier()
        """Of what is offered to somebody."""
        self._run, self._sessions = run, sessions
        self._admission = Admission(run.config.admission.workers)
        self._table = DeclinedTable(run.store.database)
        self._states = self._table.states()
        self._times: Counter[str] = Counter()
        self._closed = False

    def offer(self, worker: str, state: str) -> RunSpec | None:
        """The run, for a worker in this state; None where it is over, does not admit the worker, or was
        declined by it in this state."""
        return None if self.waiting_for(worker, state) else self._run.spec

    def waiting_for(self, worker: str, state: str) -> str:
        """Why the run is not offered, for people; empty where it is."""
        if self._sessions.over:
            return "another run: this one is over"
        if not self._admission.admits(worker):
            return f"a run that admits worker {worker}"
        if self._states.get(worker) == state:
            return "another run: this worker has declined the one that there is"
        return ""

    async def found(self, asked: FindRequest) -> AsyncIterator[RunSpec | str]:
        """What there is for the worker, now and whenever that changes.

        Raises ProtocolMismatch, and Unreachable once this process is about to end.
        """
        negotiated(asked)
        told: RunSpec | str | None = None
        while True:
            if self._closed:
                raise Unreachable("the coordinator is stopping")
            now = self.offer(asked.worker, asked.state) or self.waiting_for(asked.worker, asked.state)
            if now != told:
                # While it is sent much can happen: look again before waiting.
                yield (told := now)
                continue
            await self.changed.wait()

    def decline(self, worker: str, state: str, reason: str) -> None:
        """The worker takes no part: durable, and told to the run's owner.

        Raises TooMany beyond as many workers as may join, StoreError.
        """
        if self._states.get(worker) == state:
            return
        if worker not in self._states and len(self._states) >= self._run.config.limits.workers:
            raise TooMany("limits.workers allows no more workers that decline")
        self._table.commit(worker, state, reason)
        self._states[worker] = state
        self._times[worker] += 1
        if self._times[worker] <= _TOLD:
            text = f"worker {worker} declined the run: {reason}"
            self._run.events.record("worker_declined", text, self._run.traffic.round, worker)
        self.changed.notify()

    def joined(self, worker: str) -> None:
        """The worker takes part, whatever it said before. Raises StoreError."""
        if worker in self._states:
            self._table.forget(worker)
            del self._states[worker]

    def close(self) -> None:
        """This process is about to end: who waits is to try again later."""
        self._closed = True
        self.changed.notify()
