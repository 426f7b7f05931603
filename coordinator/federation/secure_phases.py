"""Secure aggregation's steps in a try at a round, as a pure state machine beside the round's own."""

from dataclasses import dataclass, replace
from enum import StrEnum


class SecurePhase(StrEnum):
    """What is due. SHORT: too few took part, before anything could be opened."""

    KEYS = "keys"
    SHARES = "shares"
    UPDATES = "updates"
    ENDORSEMENTS = "endorsements"
    OPENINGS = "openings"
    DONE = "done"
    SHORT = "short"


@dataclass(frozen=True)
class SecureState:
    """One try. Times are seconds on any one clock. The sets are workers; None: not decided yet."""

    drawn: frozenset[str]
    threshold: int
    minimum: int
    """Fewest workers of every set."""
    until: float
    """When who has brought no keys, or no shares, is left out."""
    seconds: float = 60.0
    """How long shares are waited for, from the roster on."""
    phase: SecurePhase = SecurePhase.KEYS
    brought: frozenset[str] = frozenset()
    """Who has brought what is due; of a short try, what was due last."""
    roster: frozenset[str] | None = None
    sharers: frozenset[str] | None = None
    survivors: frozenset[str] | None = None
    endorsers: frozenset[str] | None = None
    openers: frozenset[str] | None = None

    @property
    def asked(self) -> frozenset[str]:
        """From whom something is due."""
        match self.phase:
            case SecurePhase.KEYS:
                return self.drawn
            case SecurePhase.SHARES:
                return self.roster or frozenset()
            case SecurePhase.ENDORSEMENTS | SecurePhase.OPENINGS:
                return self.survivors or frozenset()
            case _:
                return frozenset()

    @property
    def missing(self) -> frozenset[str]:
        """Who has not brought it yet."""
        return self.asked - self.brought


@dataclass(frozen=True)
class Brought:
    """A worker has brought what is due, and it is on disk."""

    worker: str


@dataclass(frozen=True)
class Closed:
    """The round has closed with these updates."""

    survivors: frozenset[str]


@dataclass(frozen=True)
class Look:
    """Time has passed; the turns of these workers are over."""

    gone: frozenset[str] = frozenset()


def step(state: SecureState, event: Brought | Closed | Look, now: float) -> SecureState:
    """The state after `event` at time `now`.

    Keys and shares are waited for until all are there that may still come, or their time is over; too few end
    the try. Endorsements and openings are waited for without end: as soon as the threshold is reached there
    are enough. What comes when it is not due changes nothing.
    """
    match event:
        case Brought(worker) if worker in state.asked:
            state = replace(state, brought=state.brought | {worker})
        case Closed(survivors) if state.phase is SecurePhase.UPDATES:
            if len(survivors) < max(state.threshold, state.minimum):
                return replace(state, phase=SecurePhase.SHORT)
            return replace(state, survivors=survivors, phase=SecurePhase.ENDORSEMENTS)
        case _:
            pass
    gone = event.gone if isinstance(event, Look) else frozenset()
    match state.phase:
        case SecurePhase.KEYS if now >= state.until or not state.missing - gone:
            return _unless_short(state, replace(state, roster=state.brought, phase=SecurePhase.SHARES), now)
        case SecurePhase.SHARES if now >= state.until or not state.missing - gone:
            return _unless_short(state, replace(state, sharers=state.brought, phase=SecurePhase.UPDATES), now)
        case SecurePhase.ENDORSEMENTS if len(state.brought) >= state.threshold:
            return replace(state, endorsers=state.brought, phase=SecurePhase.OPENINGS, brought=frozenset())
        case SecurePhase.OPENINGS if len(state.brought) >= state.threshold:
            return replace(state, openers=state.brought, phase=SecurePhase.DONE, brought=frozenset())
    return state


def _unless_short(state: SecureState, following: SecureState, now: float) -> SecureState:
    """What follows; or, where too few brought what was due, the end, with nothing decided."""
    if len(state.brought) < max(state.threshold, state.minimum):
        return replace(state, phase=SecurePhase.SHORT)
    return replace(following, brought=frozenset(), until=now + state.seconds)
