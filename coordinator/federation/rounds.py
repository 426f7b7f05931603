"""A round, or its scoring, as a pure state machine: state, event, time in, state out. No clock or torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class RoundPhase(StrEnum):
    """OPEN collects updates; CLOSED has enough to aggregate; SHORT missed its minimum."""

    OPEN = "open"
    CLOSED = "closed"
    SHORT = "short"


class Work(StrEnum):
    """What a round asks of its workers: updates, and after it scores."""

    UPDATES = "updates"
    SCORES = "scores"


class Outcome(StrEnum):
    """How a worker's turn can end without an update. Who comes after all is received in any case."""

    REFUSED = "refused"
    CANNOT = "cannot"
    DIED = "died"
    # It is waited for again when it comes back, comes further, or is heard.
    LEFT = "left"
    STALLED = "stalled"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether only an update undoes it."""
        return self in (Outcome.REFUSED, Outcome.CANNOT, Outcome.DIED)


@dataclass(frozen=True)
class Over:
    """How a worker's turn ended, and why, for people."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class RoundState:
    """One try at a round. Times are seconds on any one clock."""

    number: int
    selected: frozenset[str]
    minimum: int
    closes_at: float
    """The deadline."""
    needed: int | None = None
    """Updates with which it closes early; fewer than selected when more were asked. None: all of them."""
    grace: float = 0.0
    """How long a lost worker is still waited for, all its absences together, until it comes further."""
    received: frozenset[str] = frozenset()
    attempt: int = 1
    """Which try it is."""
    most_deaths: int = 3
    """A worker that has died so often, without coming further than before, is given up."""
    suspects: frozenset[str] = frozenset()
    """Workers that were given up so since their last update: once more is enough."""
    over: Mapping[str, Over] = field(default_factory=dict)
    """Selected workers whose turn ended without an update; not those that are lost."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """Selected workers that fell silent, and until when they are waited for."""
    absent: Mapping[str, float] = field(default_factory=dict)
    """Of those that returned: how much of their grace they have used."""
    deaths: Mapping[str, int] = field(default_factory=dict)
    """How often processes of a worker ended without coming further than those before."""
    phase: RoundPhase = RoundPhase.OPEN
    work: Work = Work.UPDATES

    @property
    def missing(self) -> frozenset[str]:
        """Workers whose update may still come."""
        return self.selected - self.received - self.over.keys()

    def awaited(self, now: float) -> frozenset[str]:
        """Those of them for whom the round stays open."""
        return frozenset(w for w in self.missing if w not in self.lost or now < self.lost[w])

    def next_change(self, now: float) -> float:
        """When time alone may next change it: its deadline, or the end of a lost worker's grace."""
        graces = (until for worker, until in self.lost.items() if worker in self.missing and until > now)
        return min([self.closes_at, *graces])

    def outcomes(self, now: float) -> dict[str, Over]:
        """Selected workers for whom the round does not stay open, though no update of theirs is here."""
        found = {worker: self.over[worker] for worker in self.over.keys() - self.received}
        reason = f"was lost for longer than {self.grace:g} s in round {self.number}"
        silent = (w for w in self.missing if w in self.lost and now >= self.lost[w])
        return found | {worker: Over(Outcome.LOST, reason) for worker in silent}


@dataclass(frozen=True)
class Received:
    """A worker's update is on disk."""

    worker: str


@dataclass(frozen=True)
class Refused:
    """A worker's update came and is not what the round asked for: to send it again does not help."""

    worker: str
    reason: str = ""


@dataclass(frozen=True)
class Cannot:
    """A worker says that it cannot do its task."""

    worker: str
    reason: str = ""


@dataclass(frozen=True)
class Left:
    """A worker said goodbye. `further`: its process had come further than those before it in this round."""

    worker: str
    reason: str = ""
    further: bool = False


@dataclass(frozen=True)
class Lost:
    """A worker is not heard of."""

    worker: str
    further: bool = False


@dataclass(frozen=True)
class Returned:
    """A worker that had said goodbye, or was lost, is there again."""

    worker: str


@dataclass(frozen=True)
class Restarted:
    """A worker is there as another process: the one before it ended without a word."""

    worker: str
    further: bool = False


@dataclass(frozen=True)
class Progressed:
    """A worker has come further. `further`: than any of its processes in this round."""

    worker: str
    further: bool = True


@dataclass(frozen=True)
class Stalled:
    """A worker is heard of, but has not come further for too long."""

    worker: str
    reason: str = ""


@dataclass(frozen=True)
class Abandoned:
    """No updates can come of this try any more."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    Received | Refused | Cannot | Left | Lost | Returned | Restarted | Progressed | Stalled | Abandoned | Tick
)


class IllegalTransition(Exception):
    """The event cannot happen in this state: a mistake in this program."""


def step(state: RoundState, event: Event, now: float) -> RoundState:
    """The state after `event` at time `now`.

    A round closes with as many updates as it needs. Otherwise it ends at its deadline, or when nobody is
    left to wait for: those whose turn ended in any other way are not waited for, lost ones until their
    grace is over. It then has its minimum or is short. Raises IllegalTransition.
    """
    match event:
        case Received(worker) if state.phase is RoundPhase.OPEN and worker in state.selected:
            received, others = state.received | {worker}, _without(state.over, worker)
            state = replace(state, received=received, over=others)
        case Received():
            raise IllegalTransition(f"{event} in round {state.number}, which is {state.phase}")
        case Tick():
            pass
        case Abandoned():
            short = state.phase is RoundPhase.OPEN
            return replace(state, phase=RoundPhase.SHORT) if short else state
        case _ if event.worker in state.selected - state.received:
            state = _turned(state, event, now)
    needed = len(state.selected) if state.needed is None else state.needed
    over = len(state.received) >= needed or now >= state.closes_at or not state.awaited(now)
    if state.phase is RoundPhase.OPEN and over:
        enough = len(state.received) >= state.minimum
        return replace(state, phase=RoundPhase.CLOSED if enough else RoundPhase.SHORT)
    return state


def _turned(
    state: RoundState,
    event: Refused | Cannot | Left | Lost | Returned | Restarted | Progressed | Stalled,
    now: float,
) -> RoundState:
    """The state after something became of a worker's turn."""
    worker = event.worker
    match event:
        case Refused(_, reason):
            return _ended(state, worker, Outcome.REFUSED, reason)
        case Cannot(_, reason):
            return _ended(state, worker, Outcome.CANNOT, reason)
        case Stalled(_, reason):
            return _ended(state, worker, Outcome.STALLED, reason)
        case Left(_, reason, further):
            return _ended(_died(state, worker, further, "left"), worker, Outcome.LEFT, reason)
        case Lost(_, further):
            deaths = state.deaths.get(worker, 0)
            if deaths == _most_deaths(state, worker) - 1 and (deaths or worker in state.suspects):
                # The last of its deaths, as it seems: who knows when it comes back from it.
                state = _died(state, worker, further, "died")
            # Lost twice, it is waited for from the first time on.
            until = now + max(0.0, state.grace - state.absent.get(worker, 0.0))
            return replace(state, lost={worker: until, **state.lost})
        case Returned():
            return _is_there(state, worker, now, Outcome.LEFT)
        case Restarted(_, further):
            there = _is_there(state, worker, now, Outcome.LEFT, Outcome.STALLED)
            return _died(there, worker, further, "died")
        case Progressed(_, further):
            absent = _without(state.absent, worker) if further else dict(state.absent)
            return replace(_resumed(state, worker, Outcome.STALLED), absent=absent)


def _ended(state: RoundState, worker: str, outcome: Outcome, reason: str) -> RoundState:
    """The worker's turn is over; what was final before stays the reason."""
    if worker in state.over and state.over[worker].outcome.final:
        return state
    return replace(state, over={**state.over, worker: Over(outcome, reason)})


def _resumed(state: RoundState, worker: str, *outcomes: Outcome) -> RoundState:
    """The worker's turn goes on, if it had ended in one of these ways."""
    if worker in state.over and state.over[worker].outcome in outcomes:
        return replace(state, over=_without(state.over, worker))
    return state


def _is_there(state: RoundState, worker: str, now: float, *undone: Outcome) -> RoundState:
    """The worker is heard; what it used of its grace stays used."""
    if worker in state.lost:
        used = state.grace - max(0.0, state.lost[worker] - now)
        lost, absent = _without(state.lost, worker), {**state.absent, worker: used}
        state = replace(state, lost=lost, absent=absent)
    return _resumed(state, worker, *undone)


def _most_deaths(state: RoundState, worker: str) -> int:
    return 1 if worker in state.suspects else state.most_deaths


def _died(state: RoundState, worker: str, further: bool, how: str) -> RoundState:
    """A process of the worker ended. That counts, unless it had come further than those before it."""
    before = state.deaths.get(worker, 0)
    if before and further:
        return state
    times = before + 1
    state = replace(state, deaths={**state.deaths, worker: times})
    if times < _most_deaths(state, worker):
        return state
    often = f"{times} times" if times > 1 else "again"
    return _ended(state, worker, Outcome.DIED, f"has {how} {often} in round {state.number}")


def _without(of: Mapping[str, T], worker: str) -> dict[str, T]:
    return {name: value for name, value in of.items() if name != worker}
