"""Secure aggregation in the open try: what workers bring, judged and on disk before it counts; what is told.

Lives on the event loop. The phases are `secure_phases`', the cryptography is `common.secagg`'s.
"""

import asyncio
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import BadShare, StaleRound
from common.runtime.fault_points import Point, reach
from common.runtime.notifier import Notifier
from common.secagg import collector
from common.secagg.context import digest
from common.secagg.news import Ended, Endorsements, Roster, Said, SecureNews, Sharers, Survivors
from common.secagg.records import (
    Endorsement,
    Kind,
    Mask,
    Opening,
    PublicKeys,
    SecureRound,
    ShareOffer,
    Verifier,
)
from common.secure_task import SecureTask
from coordinator.federation.secure_phases import Brought, Closed, Look, SecurePhase, SecureState, step
from coordinator.storage import secure as tables
from coordinator.storage.store import Store

_ORDER = tuple(SecurePhase)
_DUE = {
    tables.KEYS: SecurePhase.KEYS,
    tables.SHARES: SecurePhase.SHARES,
    tables.ENDORSEMENTS: SecurePhase.ENDORSEMENTS,
    tables.OPENINGS: SecurePhase.OPENINGS,
}
# What is due once a set is decided on.
_FOLLOWING = {
    tables.ROSTER: SecurePhase.SHARES,
    tables.SHARERS: SecurePhase.UPDATES,
    tables.SURVIVORS: SecurePhase.ENDORSEMENTS,
    tables.ENDORSERS: SecurePhase.OPENINGS,
    tables.OPENERS: SecurePhase.DONE,
}


class SecureExchange:
    """One try at a time. Raises StoreError."""

    def __init__(
        self,
        store: Store,
        keys_seconds: float,
        verify: Verifier | None = None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`verify` is None where keys are not signed; `tell` is called when there is news for workers."""
        self._store, self._keys_seconds, self._verify, self._tell = store, keys_seconds, verify, tell
        self.changed = Notifier()
        self.state: SecureState | None = None
        self._within: SecureRound | None = None
        self._context = b""
        self._ended: tuple[frozenset[str], SecureNews] | None = None
        self._forget()

    def _forget(self) -> None:
        self._keys: dict[str, PublicKeys] = {}
        self._shares: dict[str, ShareOffer] = {}
        self._endorsements: dict[str, Endorsement] = {}
        self._openings: dict[str, tuple[Opening, ...]] = {}

    # --- a try from beginning to end ---

    def begin(self, within: SecureRound) -> None:
        """Open a try, or go on with one where an earlier process was."""
        number, attempt = within.round, within.attempt
        self._within, self._context = within, digest(within)
        secure = self._store.secure
        self._keys, self._shares = secure.keys(number, attempt), secure.shares(number, attempt)
        self._endorsements = secure.endorsements(number, attempt)
        self._openings = secure.openings(number, attempt)
        self.state = self._found(within)
        self._advance(Look())
        self._tell()

    def _found(self, within: SecureRound) -> SecureState:
        """The state that the store speaks of."""
        until = _now() + self._keys_seconds
        drawn = frozenset(within.drawn)
        state = SecureState(drawn, within.threshold, within.minimum, until, self._keys_seconds)
        decided = self._store.secure.decided(within.round, within.attempt)
        for which, phase in _FOLLOWING.items():
            if which in decided:
                state = _with(replace(state, phase=phase), which, frozenset(decided[which]))
        here: dict[SecurePhase, Collection[str]] = {
            SecurePhase.KEYS: self._keys,
            SecurePhase.SHARES: self._shares,
            SecurePhase.ENDORSEMENTS: self._endorsements,
            SecurePhase.OPENINGS: self._openings,
        }
        return replace(state, brought=frozenset(here.get(state.phase, ())))

    def look(self, gone: frozenset[str] = frozenset()) -> None:
        """Time has passed; these workers' turns are over."""
        self._advance(Look(gone))

    def close(self, survivors: Collection[str]) -> None:
        """The round has closed with these workers' updates."""
        self._advance(Closed(frozenset(survivors)))

    def over(self, number: int, attempt: int, task: SecureTask, reason: str) -> None:
        """A try is over, for good: its workers may forget its secrets."""
        self._ended = frozenset(task.drawn), SecureNews(number, attempt, task.context, Ended(reason))
        self.state = self._within = None
        self._forget()
        self._tell()

    def masks(self) -> tuple[Mask, ...]:
        """What makes the sum of the masked updates the plain sum, once enough shares are open.

        Raises BadShare that names the worker whose shares do not fit.
        """
        sharers, survivors = self._sets()
        digests = {worker: self._shares[worker].digests for worker in sharers}
        return collector.recover(self._try(), self._roster(), digests, sharers, survivors, self._openings)

    # --- what workers bring ---

    def take(self, worker: str, said: Said) -> bool:
        """Judge what a worker brings, and keep it; returns whether it was here before.

        Raises StaleRound when it is not due, BadShare when it does not fit or is another than before.
        """
        within = self._within
        if within is None or (said.round, said.attempt) != (within.round, within.attempt):
            raise StaleRound(f"try {said.attempt} at round {said.round} is not under way")
        if said.context != self._context:
            raise BadShare(f"{worker} and the coordinator take round {said.round} for different ones", worker)
        what, here = self._kept(said.content)
        if worker in here:
            if here[worker] != said.content:
                raise BadShare(f"{worker} has brought other {what} before in this try", worker)
            if self.state is not None and self.state.phase is _DUE[what]:
                # It is on disk, but what follows from it may not have been: the disk was full.
                self._advance(Brought(worker))
            return True
        self._require_due(worker, what)
        self._judge(worker, said.content)
        self._store.secure.say(within.round, within.attempt, what, worker, said.content)
        here[worker] = said.content
        self._advance(Brought(worker))
        return False

    def _kept(self, content: object) -> tuple[str, MutableMapping[str, Any]]:
        """Where what is like this is kept: in the store under this name, and here."""
        match content:
            case PublicKeys():
                return tables.KEYS, self._keys
            case ShareOffer():
                return tables.SHARES, self._shares
            case Endorsement():
                return tables.ENDORSEMENTS, self._endorsements
            case _:
                return tables.OPENINGS, self._openings

    def _require_due(self, worker: str, what: str) -> None:
        within, state = self._try(), self.state
        assert state is not None
        if _ORDER.index(state.phase) > _ORDER.index(_DUE[what]):
            raise StaleRound(f"the {what} of round {within.round} are complete without {worker}'s")
        if state.phase is not _DUE[what] or worker not in state.asked:
            raise StaleRound(f"no {what} of {worker} are due in round {within.round}")

    def _judge(self, worker: str, content: PublicKeys | ShareOffer | Endorsement | Sequence[Opening]) -> None:
        within, verify = self._try(), self._verify
        match content:
            case PublicKeys():
                collector.check_keys(within, content, verify, list(self._keys.values()))
            case ShareOffer():
                collector.check_offer(within, self._roster(), content)
            case Endorsement():
                collector.check_endorsement(within, self._roster(), *self._sets(), content, verify)
            case _:
                sharers, survivors = self._sets()
                digests = {sharer: self._shares[sharer].digests for sharer in sharers}
                collector.check_openings(within, worker, content, digests, sharers, survivors)

    # --- what workers are told ---

    def news(self, worker: str) -> tuple[SecureNews, ...]:
        """All that a worker must know of the try and of the end of the last one, oldest first."""
        within, state = self._within, self.state
        ended = (self._ended[1],) if self._ended is not None and worker in self._ended[0] else ()
        if within is None or state is None:
            return ended
        contents: list[Roster | Sharers | Survivors | Endorsements] = []
        if state.roster and worker in state.roster:
            contents.append(Roster(tuple(self._roster())))
        if state.sharers and worker in state.sharers:
            contents.append(self._sharers_for(worker, state.sharers))
        if state.survivors and worker in state.survivors:
            contents.append(Survivors(tuple(sorted(state.survivors))))
            if state.endorsers:
                endorsed = tuple(self._endorsements[name] for name in sorted(state.endorsers))
                contents.append(Endorsements(endorsed))
        about = within.round, within.attempt, self._context
        return (*ended, *(SecureNews(*about, content) for content in contents))

    def _sharers_for(self, worker: str, sharers: frozenset[str]) -> Sharers:
        offers = [self._shares[sender] for sender in sorted(sharers - {worker})]
        return Sharers(
            {offer.worker: offer.sealed[worker] for offer in offers},
            {
                offer.worker: (offer.digests[worker, Kind.SELF], offer.digests[worker, Kind.MASK])
                for offer in offers
            },
        )

    # --- parts ---

    def _advance(self, event: Brought | Closed | Look) -> None:
        """Take the machine as far as it comes; each set is on disk before anybody hears of it."""
        assert self.state is not None
        before, state = self.state, step(self.state, event, _now())
        moved = state.phase is not before.phase
        while state.phase is not before.phase:
            self._decided(before, state)
            before, state = state, step(state, Look(), _now())
        self.state = state
        self.changed.notify()
        if moved:
            self._tell()

    def _decided(self, before: SecureState, state: SecureState) -> None:
        within = self._try()
        if state.phase is SecurePhase.SHORT:
            return
        for which in _FOLLOWING:
            if (workers := getattr(state, which)) is not None and getattr(before, which) is None:
                self._store.secure.decide(within.round, within.attempt, which, workers)
                reach(Point.STEP, f"secure-{which}")

    def _roster(self) -> list[PublicKeys]:
        assert self.state is not None and self.state.roster is not None
        return [self._keys[worker] for worker in sorted(self.state.roster)]

    def _sets(self) -> tuple[frozenset[str], frozenset[str]]:
        state = self.state
        assert state is not None and state.sharers is not None and state.survivors is not None
        return state.sharers, state.survivors

    def _try(self) -> SecureRound:
        assert self._within is not None
        return self._within


def _with(state: SecureState, which: str, workers: frozenset[str]) -> SecureState:
    return replace(state, **{which: workers})  # type: ignore[arg-type]  # its sets alone are named


def _now() -> float:
    return asyncio.get_running_loop().time()
