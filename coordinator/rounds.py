"""A round as a pure state machine: state, event and time in, state out. No clock, network or torch."""

from dataclasses import dataclass, replace
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
    received: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    phase: RoundPhase = RoundPhase.OPEN

    @property
    def missing(self) -> frozenset[str]:
        """Workers whose update may still come."""
        return self.selected - self.received - self.gone


@dataclass(frozen=True)
class Received:
    """A worker's update is on disk."""

    worker: str


@dataclass(frozen=True)
class Left:
    """A worker said goodbye."""

    worker: str


@dataclass(frozen=True)
class Returned:
    """A worker that had said goodbye is there again."""

    worker: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Received | Left | Returned | Tick


class IllegalTransition(Exception):
    """The event cannot happen in this state: a mistake in this program."""


def step(state: RoundState, event: Event, now: float) -> RoundState:
    """The state after `event` at time `now`.

    A round closes when every selected worker that has not left has reported, or at its deadline;
    with fewer updates than its minimum it is short. Raises IllegalTransition.
    """
    match event:
        case Received(worker) if state.phase is RoundPhase.OPEN and worker in state.selected:
            state = replace(state, received=state.received | {worker})
        case Left(worker) if worker in state.selected:
            state = replace(state, gone=state.gone | {worker})
        case Returned(worker) if worker in state.selected:
            state = replace(state, gone=state.gone - {worker})
        case Left() | Returned() | Tick():
            pass
        case _:
            raise IllegalTransition(f"{event} in round {state.number}, which is {state.phase}")
    if state.phase is RoundPhase.OPEN and (not state.missing or now >= state.closes_at):
        enough = len(state.received) >= state.minimum
        return replace(state, phase=RoundPhase.CLOSED if enough else RoundPhase.SHORT)
    return state
