"""A worker's part in secure aggregation: keys, shares, the masked update, endorsement, opening.

Each step is on disk before anybody hears of it, and asked again it is answered from there. The rules are
`common.secagg.member`'s and `history`'s; this decides nothing. Lives on the event loop.
"""

import logging
import threading
from dataclasses import replace
from pathlib import Path

from common.errors import SecureRefused, StaleRound
from common.model.apoz import from_tensors
from common.model.ring_update import (
    as_ring,
    noise_grid,
    ring_schema,
    ring_tensors,
    secure_round,
    weight_of,
)
from common.model.update import APOZ, DELTA, Prefixed
from common.privacy.noise import SecretDraws
from common.records import RunSpec, TrainTask, UpdateHeader
from common.runtime.fault_points import Point, reach
from common.secagg import history, masks, member
from common.secagg.context import digest
from common.secagg.keys import Secrets
from common.secagg.news import Ended, Endorsements, Roster, Said, SecureNews, Sharers, Survivors
from common.secagg.records import (
    Endorsement,
    Opening,
    PublicKeys,
    SecureRound,
    ShareOffer,
)
from common.storage.schema import Schema
from common.storage.tensors import TensorFile, write_tensors
from worker.client import CoordinatorClient
from worker.outbox import Outbox
from worker.secure_files import SecureFiles
from worker.secure_policy import SecurePolicy

log = logging.getLogger(__name__)

# News of tries that this worker has not heard of yet: those of its next ones.
_MOST_WAITING = 16
_STEPS = {PublicKeys: "keys", ShareOffer: "shares", Endorsement: "endorsement", tuple: "openings"}


class SecureDesk:
    """One worker's, in one run. Raises StoreError."""

    def __init__(
        self,
        name: str,
        run: RunSpec,
        coordinator: CoordinatorClient,
        outbox: Outbox,
        folder: Path,
        policy: SecurePolicy,
    ) -> None:
        self._name, self._run, self._coordinator, self._outbox = name, run, coordinator, outbox
        self._policy = policy
        signed = run.secure is not None and run.secure.signed
        self._signing = policy.signing if signed else None
        self._verify = policy.verify if signed else None
        self._files = SecureFiles(folder)
        self._within = self._found()
        self._context = digest(self._within) if self._within else b""
        self._one_try = threading.Lock()
        """Held while files of a try are made by another thread, or go."""
        self._waiting: list[SecureNews] = []
        self._said: set[type] = set()
        """Kinds of answers that the coordinator has of this process in this try."""
        self._survivors: tuple[str, ...] | None = None
        self.refused = ""
        """Why this worker has no part in the try any more."""

    def _found(self) -> SecureRound | None:
        """The try that an earlier process was in; of one that is damaged nothing can be used."""
        try:
            whole = None not in (self._files.secrets(), self._files.keys())
            return self._files.round() if whole else None
        except SecureRefused as error:
            log.warning("%s", error)
            self._files.clear()
            return None

    # --- a try ---

    async def begin(self, task: TrainTask, adapter: Schema) -> None:
        """Bring keys for a try; those of before, if it is known. Raises SecureRefused, BadShare,
        StaleRound."""
        counted = {layer: task.sub_model.ffn_widths[layer] for layer in task.apoz_layers}
        within = secure_round(self._run, task, ring_schema(adapter, self._run, counted))
        context = digest(within)
        assert task.secure is not None and self._run.secure is not None
        if task.secure.context != context:
            raise SecureRefused(
                f"round {task.round}: the coordinator takes the task for another than it sent to this worker"
            )
        self._policy.require_try(self._run, within)
        self.refused = ""
        if context != self._context:
            self._take_part(within)
        keys = self._files.keys()
        assert keys is not None
        await self._say(keys)
        for news in [n for n in self._waiting if n.context == context]:
            await self.hear(news)
        self._waiting.clear()

    def _take_part(self, within: SecureRound) -> None:
        """New secrets for a try that this worker hears of for the first time."""
        before = self._files.history()
        if before is not None and before.run_id != within.run_id:
            # Of an earlier run: it opens nothing any more.
            self._files.forget_history()
            before = None
        following = history.begin(before, within)
        if before is not None and following == before and before.dealt:
            # Those to whom it dealt shares of the lost ones could open what new ones hide.
            raise SecureRefused(
                f"round {within.round}: this worker has lost the keys of try {within.attempt}; it sits it out"
            )
        secrets, shown = Secrets.generate(), self._signing and self._signing()
        sign, certificate = (shown.sign, shown.certificate) if shown else (None, b"")
        with self._one_try:
            self._files.clear()
            self._files.remember(following)
            keys = member.offer_keys(secrets, within, self._name, sign, certificate)
            self._files.keep_keys(within, secrets, keys)
            self._within, self._context, self._said = within, digest(within), set()
            self._survivors = None

    @property
    def agreed(self) -> bool:
        """Whether it is known with whom masks are shared: an update may be masked."""
        return self._within is not None and self._files.held() is not None

    def masked(self, header: UpdateHeader, update: Path, examples: int) -> tuple[UpdateHeader, Path]:
        """The update of a finished training as it goes out; made once in a try. Blocking.

        Raises SecureRefused, BadUpdate.
        """
        # This try's throughout: in the event loop another may begin meanwhile.
        within, context = self._require_try(), self._context
        assert self._run.secure is not None
        if (made := self._files.masked()) is not None:
            return made
        held, secrets = self._files.held(), self._files.secrets()
        assert held is not None and secrets is not None
        roster, sharers = self._files.roster(), held.sharers
        streams = member.masks_of(secrets, within, self._name, roster, sharers)
        grid = noise_grid(self._run.dp, within)
        plain = TensorFile(update)
        tensors = ring_tensors(
            Prefixed(plain, DELTA),
            from_tensors(Prefixed(plain, APOZ)),
            weight_of(examples, self._run.secure),
            header.loss,
            within,
            None if grid is None else (grid, SecretDraws(self._outbox.noise_key())),
        )
        for name, tensor in tensors.items():
            for mask in streams:
                masks.add(as_ring(tensor), mask, name, context)
        bare = replace(header, examples=0, loss=0.0, seconds=0.0, targets=0)
        told = replace(bare, attempt=within.attempt, context=context)
        with self._one_try:
            if self._context != context:
                raise SecureRefused(f"round {within.round}: try {within.attempt} is over")
            # From here on: whatever becomes of the file, no other is made for these sharers.
            self._files.remember(history.masking(self._require_history(), sharers))
            return self._files.keep_masked(told, lambda path: write_tensors(path, tensors))

    # --- news ---

    async def hear(self, news: SecureNews) -> None:
        """What is due now is done. Raises SecureRefused, BadShare."""
        if news.context != self._context:
            if not isinstance(news.content, Ended):
                self._waiting = [*self._waiting, news][-_MOST_WAITING:]
            return
        try:
            match news.content:
                case Roster(keys):
                    await self._deal(list(keys))
                case Sharers() as sharers:
                    self._receive(sharers)
                case Survivors(workers):
                    await self._endorse(workers)
                case Endorsements(endorsements):
                    await self._open(endorsements)
                case Ended(reason):
                    log.info("round %d: %s", news.round, reason)
                    # In a thread it could come in the way of the next try, which begins meanwhile.
                    self._forget(self._files.endorsement() is not None)
        except StaleRound as error:
            # It came too late, or had come before.
            log.debug("round %d: %s", news.round, error)

    async def _deal(self, roster: list[PublicKeys]) -> None:
        within, own, secrets = self._require_try(), self._files.keys(), self._files.secrets()
        assert own is not None and secrets is not None
        dealt = self._files.dealt()
        if dealt is None:
            member.check_roster(within, self._name, own, roster, self._verify)
            self._files.remember(history.dealing(self._require_history(), roster))
            dealt = member.deal(secrets, within, self._name, roster)
            self._files.keep_roster(roster, dealt)
            log.info("round %d: masks are shared with %d workers", within.round, len(roster) - 1)
        elif roster != self._files.roster():
            raise SecureRefused(f"round {within.round}: the coordinator shows another roster than before")
        await self._say(dealt.offer)

    def _receive(self, told: Sharers) -> None:
        within, secrets, dealt = self._require_try(), self._files.secrets(), self._files.dealt()
        if dealt is None or secrets is None:
            raise SecureRefused(f"round {within.round}: shares came before the roster")
        held = self._files.held()
        if held is None:
            found = member.receive(
                secrets, within, self._name, self._files.roster(), told.sealed, told.digests, dealt
            )
            self._files.keep_held(found)
        elif set(held.sharers) != {*told.sealed, self._name}:
            raise SecureRefused(f"round {within.round}: the coordinator names other sharers than before")

    async def _endorse(self, survivors: tuple[str, ...]) -> None:
        within, held = self._require_try(), self._files.held()
        if held is None:
            raise SecureRefused(f"round {within.round}: survivors are told before sharers")
        following = history.endorsing(self._require_history(), held.sharers, survivors)
        endorsement = self._files.endorsement()
        if endorsement is None or following != self._files.history():
            endorsement = member.endorse(
                within,
                self._name,
                self._files.roster(),
                held.sharers,
                survivors,
                self._policy.floor,
                self._signing().sign if self._signing else None,
            )
            self._files.remember(following)
            self._files.keep_endorsement(endorsement)
        self._survivors = survivors
        await self._say(endorsement)

    async def _open(self, endorsements: tuple[Endorsement, ...]) -> None:
        within, held = self._require_try(), self._files.held()
        survivors = self._survivors
        if held is None or survivors is None:
            raise SecureRefused(f"round {within.round}: endorsements are told before survivors")
        openings = member.open_shares(
            within,
            self._name,
            self._files.roster(),
            held,
            held.sharers,
            survivors,
            endorsements,
            self._verify,
            self._policy.floor,
        )
        self._files.remember(history.opening(self._require_history(), held.sharers, survivors))
        await self._say(openings)
        log.info("round %d: opened the sum of %d workers", within.round, len(survivors))

    async def _say(self, content: PublicKeys | ShareOffer | Endorsement | tuple[Opening, ...]) -> None:
        if type(content) in self._said:
            return
        within = self._require_try()
        reach(Point.STEP, f"secure-{_STEPS[type(content)]}")
        await self._coordinator.say(Said("", within.round, within.attempt, self._context, content))
        self._said.add(type(content))

    def finished(self) -> None:
        """The run is: nothing of it is of use any more."""
        self._forget(summed=True)

    def _forget(self, summed: bool) -> None:
        """The try is over: its secrets go, and once it is `summed` the plain update that was masked for it.

        Before that another try at the round asks for the same update.
        """
        with self._one_try:
            self._files.clear()
            self._within, self._context = None, b""
        if summed:
            self._outbox.drop()

    def _require_try(self) -> SecureRound:
        assert self._within is not None
        return self._within

    def _require_history(self) -> history.History:
        kept = self._files.history()
        if kept is None:
            raise SecureRefused("the history of this worker's secure sums is gone; it sits the try out")
        return kept
