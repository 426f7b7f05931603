"""A round's updates where only their sum is seen: keys and shares before them, endorsements and openings
after.

Once the updates of a round are decided on there is no other try at it: a worker opens once in a round, ever.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from common.config.run import RunConfig
from common.errors import BadShare, RunFailed, StoreError
from common.listing import first_workers
from common.model.ring_update import ring_schema, secure_round
from common.private_task import DpUnit
from common.records import ArtifactRef, Phase, TrainTask
from common.secagg.context import digest, threshold
from common.secagg.records import SecureRound
from common.secure_task import SecureTask
from common.storage.tensors import TensorFile
from coordinator.campaign.gathering import summed
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.worker_gathering import WorkerGathering
from coordinator.context import RunContext
from coordinator.federation.inbox import Expected, Inbox
from coordinator.federation.rounds import Abandoned, Cannot, RoundState
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.secure_phases import SecurePhase
from coordinator.federation.sessions import Sessions
from coordinator.modelling.models import Models
from coordinator.modelling.secure_sums import clip_of
from coordinator.storage.store import StoredUpdate

# Who is gone is looked at so often, in seconds.
_LOOK_SECONDS = 0.5


class SecureGathering(WorkerGathering):
    """Gathers sums. Lives on the event loop."""

    def __init__(
        self,
        run: RunContext,
        progress: RunProgress,
        sessions: Sessions,
        inbox: Inbox,
        exchange: SecureExchange,
    ) -> None:
        super().__init__(run, progress, sessions, inbox)
        self._exchange = exchange
        self._within: SecureRound | None = None
        self._left_out: frozenset[str] = frozenset()
        """Who has no part in the masks of the last try, and so left it short."""

    async def gather(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """The mean of a round's updates, as if one worker had sent it.

        Raises RunFailed, naming who is missing, also when too few open their shares: started again, the run
        waits for them.
        """
        secure = self._store.secure
        if secure.sum_of(number) is None:
            if self._store.survivors(number) is None:
                await super().gather(models, number, adapter)
            await self._sum(models, number, adapter)
        secure.forget_secrets(number)
        attempt, task = max(secure.tries(number).items())
        self._exchange.over(number, attempt, task, f"round {number} is summed")
        accepted = self._store.accepted(number)
        assert accepted is not None
        return accepted

    # --- a try ---

    async def _select(self, number: int, failed: frozenset[str]) -> list[str]:
        """As ever; but what was masked for an earlier try is of no use in another."""
        drawn = self._store.interrupted_try(number)
        if drawn is not None and self._store.last_try(number) in self._store.secure.tries(number):
            return drawn
        for update in self._store.updates(number):
            self._store.forget_update(number, update.worker)
        selected = await super()._select(number, failed)
        tries = self._store.secure.tries(number)
        return drawn_again(selected, self._sessions.present(), tries, failed) if drawn is None else selected

    def _open_try(self, number: int, selected: list[str]) -> int:
        """That in which another process was goes on."""
        if self._store.interrupted_try(number) is not None:
            return self._store.last_try(number)
        # Before anything says that there is such a try: with others there may be one.
        told(self._run, number, selected, self._store.secure.tries(number))
        return super()._open_try(number, selected)

    def _minimum(self, selected: list[str]) -> int:
        return needed_of(self._run.config, len(selected))

    def _asked(
        self, task: TrainTask, selected: list[str], counted: Mapping[int, int]
    ) -> tuple[TrainTask, Expected]:
        stored = self._store.secure.tries(task.round)
        known = stored.get(task.attempt)
        secure = known or told(self._run, task.round, selected, stored)
        task = replace(task, secure=secure)
        adapter = TensorFile(self._store.artifacts.path(task.adapter.sha256)).schema()
        schema = ring_schema(adapter, self._run.spec, counted)
        within = self._within = secure_round(self._run.spec, task, schema)
        context = digest(within)
        if known is None:
            secure = replace(secure, context=context)
            self._store.secure.open(task.round, task.attempt, secure)
        elif known.context != context:
            raise StoreError(
                f"try {task.attempt} at round {task.round} was begun by another version of this software, "
                "and cannot go on under this one; finish the round with that one, or begin anew"
            )
        return replace(task, secure=secure), Expected(task.adapter, schema, context, self._senders)

    def _senders(self) -> frozenset[str]:
        state = self._exchange.state
        due = state is not None and state.phase is SecurePhase.UPDATES
        return state.sharers or frozenset() if due and state is not None else frozenset()

    async def _collect(self, number: int, attempt: int) -> RoundState:
        """Keys and shares, then the updates of those that brought both."""
        assert self._within is not None
        self._left_out = frozenset()
        self._exchange.begin(self._within)
        collecting = asyncio.create_task(super()._collect(number, attempt))
        agreeing = asyncio.create_task(self._agree(number))

        def ended(_: asyncio.Task[None]) -> None:
            if not agreeing.cancelled() and agreeing.exception() is not None:
                # Nothing can be collected without it, and the campaign must hear why.
                collecting.cancel()

        agreeing.add_done_callback(ended)
        try:
            await asyncio.wait([collecting])
        finally:
            agreeing.cancel()
            collecting.cancel()
            with suppress(asyncio.CancelledError):
                await agreeing
        return await collecting

    async def _agree(self, number: int) -> None:
        """Until masks are agreed on; who has no part in them is not waited for."""
        exchange, drawn = self._exchange, frozenset(self._within.drawn if self._within else ())
        while (state := exchange.state) is not None and state.phase in (SecurePhase.KEYS, SecurePhase.SHARES):
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await exchange.changed.wait()
            turns = self._inbox.state
            gone = (
                frozenset() if turns is None else frozenset(turns.outcomes(asyncio.get_running_loop().time()))
            )
            exchange.look(gone)
        if state is None:
            return
        self._left_out = drawn - (state.brought if state.sharers is None else state.sharers)
        for worker in sorted(self._left_out):
            self._inbox.note(Cannot(worker, f"brought no keys or shares in time for round {number}"))
        if state.phase is SecurePhase.SHORT:
            self._inbox.note(Abandoned())

    def _who_is_missing(self, state: RoundState) -> str:
        """Where masks were not agreed on, none but those who had no part in them."""
        if state.received or not self._left_out:
            return super()._who_is_missing(state)
        return super()._who_is_missing(replace(state, selected=self._left_out))

    def _closed(self, number: int, attempt: int, state: RoundState, accepted: frozenset[str] | None) -> None:
        super()._closed(number, attempt, state, accepted)
        if accepted is None:
            task = self._store.secure.tries(number)[attempt]
            self._exchange.over(number, attempt, task, f"try {attempt} at round {number} missed its minimum")

    # --- the sum ---

    async def _sum(self, models: Models, number: int, adapter: ArtifactRef) -> None:
        """Have the sum of the accepted updates opened, and commit it."""
        survivors = self._store.survivors(number)
        attempt = self._store.last_try(number)
        drawn = self._store.secure.tries(number)[attempt].drawn
        assert survivors is not None
        if self._within is None or (self._within.round, self._within.attempt) != (number, attempt):
            task, counted = self.train_task(models, number, adapter, attempt)
            self._asked(task, list(drawn), counted)
        within = self._within
        assert within is not None
        if self._exchange.state is None:
            self._exchange.begin(within)
        self._exchange.close(survivors)
        await self._opened(number)
        try:
            masks = self._exchange.masks()
        except BadShare as error:
            raise RunFailed(
                f"round {number}: {error}; the sum cannot be opened. Look at that worker; then "
                f"`fedpft rewind {self._store.directory} --round {number - 1}` asks for this round again, of "
                "workers that are started with --forget-opening"
            ) from error
        updates = [u for u in self._store.updates(number) if u.worker in survivors]
        await summed(self._run, within, updates, masks)

    async def _opened(self, number: int) -> None:
        """Until enough workers have opened their shares."""
        exchange = self._exchange
        state = exchange.state
        assert state is not None
        if state.phase is SecurePhase.SHORT:
            raise RunFailed(f"round {number}: fewer updates than the threshold {state.threshold}")
        for _ in range(self._rounds.tries):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rounds.deadline_seconds):
                    while (state := exchange.state) is not None and state.phase is not SecurePhase.DONE:
                        waiting = f"{state.phase} of {first_workers(sorted(state.missing))}"
                        self._progress.enter(Phase.AGGREGATING, waiting)
                        await exchange.changed.wait()
                    return
        assert state is not None
        raise RunFailed(
            f"round {number} has its updates, but {len(state.brought)} of at least {state.threshold} "
            f"{state.phase} that open their sum; missing: {first_workers(sorted(state.missing))}; started "
            "again, the run waits for them"
        )


def needed_of(config: RunConfig, drawn: int) -> int:
    """Fewest updates of so many workers that a sum may be of."""
    return max(config.rounds.minimum, config.privacy.needed_of(drawn))


def drawn_again(
    selected: list[str], present: Sequence[str], earlier: Mapping[int, SecureTask], failed: frozenset[str]
) -> list[str]:
    """As many workers as were `selected`, of those of the round's earlier tries that are there first.

    Each one that was in none makes more of all of them needed. Those that failed are the last.
    """
    asked = {worker for task in earlier.values() for worker in task.electorate}
    if not asked:
        return selected
    here = sorted(asked.intersection(present) - failed)
    others = sorted(set(selected) - asked - failed)
    rest = sorted(set(selected) | asked.intersection(present))
    return sorted(list(dict.fromkeys([*here, *others, *rest]))[: len(selected)])


def told(run: RunContext, number: int, selected: list[str], earlier: Mapping[int, SecureTask]) -> SecureTask:
    """What the workers of a new try are told, but for its context. Raises RunFailed when there cannot be
    one."""
    privacy = run.config.privacy
    electorate = sorted({*selected, *(worker for task in earlier.values() for worker in task.electorate)})
    colluding = max([privacy.colluding_of(len(selected)), *(task.colluding for task in earlier.values())])
    thresholds = [task.threshold for task in earlier.values()]
    needed = threshold(len(selected), colluding, len(electorate), thresholds)
    if needed > len(selected):
        raise RunFailed(
            f"round {number} cannot be tried again with {len(selected)} workers: of {len(electorate)} "
            f"that were asked in its tries {needed} would have to take part, so that no two of its sums "
            "can be opened; wait until more are here, then start again"
        )
    minimum = max(needed_of(run.config, len(selected)), needed)
    by_worker = privacy.dp.unit is DpUnit.WORKER
    clip = privacy.dp.clip if by_worker else clip_of(run.store, privacy.clip, number)
    return SecureTask(tuple(sorted(selected)), tuple(electorate), colluding, needed, minimum, clip, b"")
