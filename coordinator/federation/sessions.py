"""Who is there, what each owes, and how far it has come. Lives on the event loop."""

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from common.errors import NameTaken, SessionReplaced, UnknownSession, Unreachable
from common.protocol import VALIDATION_SINCE
from common.records import (
    Activity,
    EvaluateTask,
    JoinRequest,
    ModelTask,
    Progress,
    StopTask,
    Task,
    TrainTask,
    WaitTask,
)
from common.runtime.notifier import Notifier
from common.secagg.news import SecureNews
from coordinator.federation.census import Census
from coordinator.federation.needs import negotiated

# When thousands come and go, what happens within so long is looked at together.
COALESCED_SECONDS = 0.05
# A worker silent for this many heartbeat intervals counts as lost.
MISSED_HEARTBEATS = 3
# A worker that flaps replaces its session again and again: what is remembered of that is bounded.
REMEMBERED_REPLACEMENTS = 1000
# Who asks to join under a name that is at work waits at most so long for it to be heard.
_MOST_DOUBT_SECONDS = 20.0
# That two work under one name is told again after so long, and shown for as long.
_CONTEST_SECONDS = 60.0


@dataclass
class Session:
    """A worker's connection to the run, from Join on."""

    token: str
    worker: str
    examples: int
    heard: float
    process: str = ""
    """Drawn by the worker's process; "" when it does not say."""
    restarted: bool = field(default=False, init=False)
    """Whether another process of the name was there before, and had not left."""
    progress: Progress = field(default_factory=Progress, init=False)
    replaced: bool = field(default=False, init=False)
    first_for_a_while: bool = True
    """Whether the name joined not just now; a flapping worker is news only now and then."""
    validation: int = field(default=0, init=False)
    """Examples kept aside, of a session that can be asked for scores; 0 of another."""
    tasked: Notifier = field(default_factory=Notifier, init=False)
    """Of its stream of tasks alone: another task of one worker is nothing to thousands of others."""
    spoke: float = field(default=-math.inf, init=False)
    """When its process last called; `heard` also counts that it takes what is sent."""
    streams: int = field(default=0, init=False)
    """Streams of tasks that are open. They end with the process, unless its whole host is gone."""
    doubts: int = field(default=0, init=False)
    """How many ask whether it still works."""
    signs: Notifier = field(default_factory=Notifier, init=False)
    """Of its life or end, for them."""

    @property
    def works(self) -> bool:
        """Whether it seems that its process is there."""
        return self.streams > 0 and not self.replaced and self.progress.activity.present


@dataclass(frozen=True)
class Assignment:
    """What a worker owes; it outlives a session, so that a worker that returns is told again."""

    task: Task
    closes_at: float | None = None


class Sessions:
    """All workers of a run. `clock` gives seconds on a monotonic clock."""

    def __init__(self, heartbeat_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self.changed = Notifier()
        """Who is there."""
        self.census = Census()
        self.news_for: Callable[[str], Sequence[SecureNews]] = lambda worker: ()
        """Beside tasks: what a worker must know of secure aggregation."""
        self._clock = clock
        self._by_token: dict[str, Session] = {}
        self._by_worker: dict[str, Session] = {}
        self._replaced: OrderedDict[str, str] = OrderedDict()
        self._told: dict[str, float] = {}
        self._contested: dict[str, tuple[float, float]] = {}
        """Names under which two processes worked: when that was told, and when it was last seen."""
        self._assignments: dict[str, Assignment] = {}
        self._closed = False
        self._default: Task = WaitTask("the sub-FM is being built")

    # --- coming and going ---

    async def require_only(self, request: JoinRequest) -> None:
        """Raise NameTaken when another process is at work under the name.

        A process that ended has taken its stream of tasks with it, so a worker that restarts is let in
        at once. Where the stream seems open, its process is heard soon, or counts as lost.
        """
        rival = self._by_worker.get(request.worker)
        if rival is None or (request.process and request.process == rival.process):
            return
        asked = self._clock()
        lost = rival.heard + MISSED_HEARTBEATS * self.heartbeat_seconds
        rival.doubts += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(lost - asked, _MOST_DOUBT_SECONDS))):
                    while rival.works and rival.spoke <= asked:
                        await rival.signs.wait()
        finally:
            rival.doubts -= 1
        if rival.works and rival.spoke > asked:
            raise NameTaken(
                f"a worker named {request.worker!r} is at work in this run; if it is another one, give this "
                "one its own --name and its own --folder; if it is this one, it still runs: end it first"
            )

    def contest(self, worker: str) -> bool:
        """Two processes work under the name, as it shows now; returns whether that is news."""
        now = self._clock()
        told = self._contested.get(worker, (-math.inf, now))[0]
        news = now - told >= _CONTEST_SECONDS
        self._contested[worker] = (now if news else told, now)
        return news

    def contested(self) -> list[str]:
        """Names under which two processes worked a moment ago."""
        since = self._clock() - _CONTEST_SECONDS
        return sorted(worker for worker, (_, seen) in self._contested.items() if seen > since)

    def replaced(self, token: str) -> str | None:
        """Whose session it was, if it ended because another process joined under the name."""
        return self._replaced.get(token)

    def join(self, request: JoinRequest) -> tuple[Session, int]:
        """A new session and the protocol version to speak; an earlier session of the name ends.

        Raises ProtocolMismatch.
        """
        version = negotiated(request)
        now = self._clock()
        told = self._told.get(request.worker)
        news = told is None or now - told >= self.heartbeat_seconds
        if news:
            self._told[request.worker] = now
        old = self._by_worker.get(request.worker)
        # Of a process that joins again, the answer to its first call was lost.
        same = old is not None and old.process != "" and old.process == request.process
        restarted = old is not None and not same and old.progress.activity is not Activity.LEFT
        if old is not None:
            self._replace(old)
        session = Session(
            secrets.token_urlsafe(24),
            request.worker,
            request.examples,
            now,
            request.process,
            first_for_a_while=news,
        )
        session.restarted = restarted
        session.validation = request.validation if version >= VALIDATION_SINCE else 0
        self._by_token[session.token] = session
        self._by_worker[session.worker] = session
        self.changed.notify()
        return session, version

    def _replace(self, old: Session) -> None:
        """End a session whose name joined again; of the last ones it is still known why they ended."""
        old.replaced = True
        old.tasked.notify()
        old.signs.notify()
        if self._by_token.pop(old.token, None) is not None:
            self._replaced[old.token] = old.worker
        while len(self._replaced) > REMEMBERED_REPLACEMENTS:
            self._replaced.popitem(last=False)

    @property
    def over(self) -> bool:
        """Whether all are told that no more tasks will come."""
        return isinstance(self._default, StopTask)

    def find(self, token: str, spoke: bool = True) -> Session:
        """The session, now heard of; `spoke`: by a message of its own.

        Raises UnknownSession, SessionReplaced.
        """
        session = self._by_token.get(token)
        if session is None:
            if token in self._replaced:
                raise _replaced(self._replaced[token])
            raise UnknownSession("the coordinator does not know this session; join again")
        session.heard = self._clock()
        if spoke:
            session.spoke = session.heard
            if session.doubts:
                session.signs.notify()
        return session

    def report(self, session: Session, progress: Progress) -> bool:
        """Note how far a worker has come; tells whether it was lost until now."""
        returned = not session.progress.activity.present
        session.progress = progress
        if returned:
            self.changed.notify()
        return returned

    def leave(self, session: Session, reason: str = "") -> None:
        """The worker said goodbye, and perhaps why."""
        session.progress = replace(session.progress, activity=Activity.LEFT, trouble=reason)
        self._by_token.pop(session.token, None)
        session.signs.notify()
        self.changed.notify()

    def sweep(self) -> list[str]:
        """Mark workers that have been silent too long; returns those newly lost."""
        limit = self._clock() - MISSED_HEARTBEATS * self.heartbeat_seconds
        silent = [s for s in self._present() if s.heard < limit]
        for session in silent:
            session.progress = replace(session.progress, activity=Activity.LOST)
            session.signs.notify()
        if silent:
            self.changed.notify()
        return [session.worker for session in silent]

    def is_present(self, worker: str) -> bool:
        """Whether the worker can be given a task."""
        session = self._by_worker.get(worker)
        return session is not None and session.progress.activity.present

    def can_score(self, worker: str) -> bool:
        """Whether the worker keeps examples aside, and knows an EvaluateTask."""
        session = self._by_worker.get(worker)
        return session is not None and session.validation > 0

    def knows(self, worker: str) -> bool:
        """Whether a worker of this name has joined since this process began."""
        return worker in self._by_worker

    def holds(self, token: str) -> bool:
        """Whether the session is, or was, one of these; nobody is heard by that."""
        return token in self._by_token or token in self._replaced

    def __len__(self) -> int:
        return len(self._by_worker)

    def present(self) -> list[str]:
        """Names of workers that can be given a task, sorted."""
        return sorted(session.worker for session in self._present())

    def all(self) -> list[Session]:
        """The last session of every worker that joined since this process began, by name."""
        return [self._by_worker[name] for name in sorted(self._by_worker)]

    def _present(self) -> list[Session]:
        return [s for s in self._by_worker.values() if s.progress.activity.present]

    # --- tasks ---

    def assign(self, worker: str, assignment: Assignment) -> None:
        """Give a worker its task, replacing what it owed."""
        self._assignments[worker] = assignment
        if session := self._by_worker.get(worker):
            session.tasked.notify()

    def release(self, worker: str, round_number: int, of: type[ModelTask] = TrainTask) -> None:
        """The worker has delivered what a task asked of it for this round; what it owes besides stays."""
        owed = self._assignments.get(worker)
        if owed is not None and isinstance(owed.task, of) and owed.task.round == round_number:
            self.assign(worker, Assignment(WaitTask(f"round {round_number} waits for other workers")))

    def assign_all(self, task: Task) -> None:
        """Give every worker, also those still to come, the same task."""
        if task == self._default and not self._assignments:
            return
        self._assignments.clear()
        self._default = task
        self.notify_all()

    def close(self) -> None:
        """This process is about to end: streams of tasks end, for workers to try again later."""
        self._closed = True
        self.notify_all()

    def notify_all(self) -> None:
        """There may be news for everybody."""
        for session in self._by_worker.values():
            session.tasked.notify()

    async def tasks(self, session: Session) -> AsyncIterator[Task | SecureNews]:
        """What the worker owes now, then every change, up to a StopTask; and news beside it.

        Raises SessionReplaced, and Unreachable once this process is about to end.
        """
        told: Assignment | None = None
        known: tuple[SecureNews, ...] = ()
        session.streams += 1
        try:
            while True:
                if self._closed:
                    raise Unreachable("the coordinator is stopping")
                # Not `find`: that this process wakes a stream does not mean that the worker is heard.
                if session.replaced:
                    raise _replaced(session.worker)
                owed = self._assignments.get(session.worker, Assignment(self._default))
                if owed != told:
                    told = owed
                    yield self._timed(owed, session)
                    if isinstance(owed.task, StopTask):
                        return
                    continue
                # After the task that it belongs to.
                news = tuple(self.news_for(session.worker))
                fresh, known = [n for n in news if n not in known], news
                if not fresh:
                    await session.tasked.wait()
                for one in fresh:
                    yield one
        finally:
            session.streams -= 1
            session.signs.notify()

    def _timed(self, assignment: Assignment, session: Session) -> Task:
        task = assignment.task
        if isinstance(task, EvaluateTask) and not session.validation:
            # Drawn as another process, of another version or with other data.
            return WaitTask(f"round {task.round} is scored without this worker")
        if isinstance(task, ModelTask) and assignment.closes_at is not None:
            return replace(task, seconds_left=max(0.0, assignment.closes_at - self._clock()))
        return task


def _replaced(worker: str) -> SessionReplaced:
    return SessionReplaced(
        f"another worker joined as {worker!r}; give each worker its own --name and its own --folder"
    )
