"""A round as a pure state machine: state, event and time in, state out. No clock, network or torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class RoundPhase(StrEnum):
    """OPEN collects updates; CLOSED has enough to aggregate; SHORT missed its minimum."""

    OPEN = "open"
    CLOSED = "closed"
    SHORT = "short"


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
    """How long a lost worker is still waited for."""
    received: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    """Selected workers that said goodbye."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """Selected workers that fell silent, and until when they are waited for."""
    phase: RoundPhase = RoundPhase.OPEN

    @property
    def missing(self) -> frozenset[str]:
        """Workers whose update may still come."""
        return self.selected - self.received - self.gone

    def awaited(self, now: float) -> frozenset[str]:
        """Those of them for whom the round stays open."""
        return frozenset(w for w in self.missing if w not in self.lost or now < self.lost[w])

    def next_change(self, now: float) -> float:
        """When time alone may next change it: its deadline, or the end of a lost worker's grace."""
        graces = (until for worker, until in self.lost.items() if worker in self.missing and until > now)
        return min([self.closes_at, *graces])


@dataclass(frozen=True)
class Received:
    """A worker's update is on disk."""

    worker: str


@dataclass(frozen=True)
class Left:
    """A worker said goodbye."""

    worker: str


@dataclass(frozen=True)
class Lost:
    """A worker is not heard of."""

    worker: str


@dataclass(frozen=True)
class Returned:
    """A worker that had said goodbye, or was lost, is there again."""

    worker: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Received | Left | Lost | Returned | Tick


class IllegalTransition(Exception):
    """The event cannot happen in this state: a mistake in this program."""


def step(state: RoundState, event: Event, now: float) -> RoundState:
    """The state after `event` at time `now`.

    A round closes with as many updates as it needs. Otherwise it ends at its deadline, or when nobody is
    left to wait for: workers that said goodbye are not waited for, lost ones until their grace is over.
    It then has its minimum or is short. Raises IllegalTransition.
    """
    match event:
        case Received(worker) if state.phase is RoundPhase.OPEN and worker in state.selected:
            state = replace(state, received=state.received | {worker})
        case Left(worker) if worker in state.selected:
            state = replace(state, gone=state.gone | {worker})
        case Lost(worker) if worker in state.selected:
            # Lost twice, it is waited for from the first time on.
            state = replace(state, lost={worker: now + state.grace, **state.lost})
        case Returned(worker) if worker in state.selected:
            lost = {name: until for name, until in state.lost.items() if name != worker}
            state = replace(state, gone=state.gone - {worker}, lost=lost)
        case Left() | Lost() | Returned() | Tick():
            pass
        case _:
            raise IllegalTransition(f"{event} in round {state.number}, which is {state.phase}")
    needed = len(state.selected) if state.needed is None else state.needed
    over = len(state.received) >= needed or now >= state.closes_at or not state.awaited(now)
    if state.phase is RoundPhase.OPEN and over:
        enough = len(state.received) >= state.minimum
        return replace(state, phase=RoundPhase.CLOSED if enough else RoundPhase.SHORT)
    return state
