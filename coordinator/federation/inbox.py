"""Hand-off of updates from RPC handlers to the loop: judged at the door, on disk before counted."""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.service import LimitsSection
from common.errors import (
    BadUpdate,
    BrokenTransfer,
    LateUpdate,
    NotSelected,
    StaleRound,
    StoreError,
    UnknownRound,
)
from common.model.apoz import from_tensors
from common.model.update import APOZ, Prefixed
from common.records import ArtifactRef, UpdateHeader
from common.runtime.compute import one_thread
from common.storage.schema import Schema, check_finite, check_specs, content_bytes
from common.storage.tensor_header import PREFIX_BYTES, header_bytes, read_header, smallest_header_bytes
from common.storage.tensors import TensorFile, header_of
from common.transport.chunks import ChunkWriter
from coordinator.federation.rounds import Event, Received, RoundPhase, RoundState, Work
from coordinator.federation.score_inbox import ScoreInbox
from coordinator.federation.turns import Turns
from coordinator.storage import retention
from coordinator.storage.store import Store, StoredUpdate

# Counts of all workers are summed as int64.
_MOST_TOKENS = 2**48

# Headers of the same tensors differ in length: by their order, padding, and what a writer notes besides.
_HEADER_SLACK, _HEADER_SLACK_PER_TENSOR = 1024, 24


@dataclass(frozen=True)
class Expected:
    """What the open round asks of an update."""

    adapter: ArtifactRef
    schema: Schema
    """Of the whole file: `delta.*`, and `apoz.*` when counts are asked for."""
    context: bytes | None = None
    """Set where it is masked: what it must be bound to. Then nothing of its values can be judged."""
    senders: Callable[[], Collection[str]] = tuple
    """Where it is masked: whose masks are agreed on. Another's would stay on the sum."""
    targets: bool = False
    """Whether it is to name its target tokens."""


class Inbox:
    """The open round's updates. Lives on the event loop."""

    def __init__(self, store: Store, limits: LimitsSection | None = None, turns: Turns | None = None) -> None:
        self._store, self._limits = store, limits or LimitsSection()
        self.turns = turns or Turns()
        self.scores = ScoreInbox(store, self.turns)
        """What workers bring instead between rounds."""
        self._expected: Expected | None = None
        self._one_by_one: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._receiving: dict[str, asyncio.Task[Any]] = {}
        self._superseded: set[asyncio.Task[Any]] = set()
        # Of the open round, and which that is: each worker's updates by digest, and why some were refused.
        self._admitted: defaultdict[str, set[str]] = defaultdict(set)
        self._refused: dict[tuple[str, str], str] = {}
        self._admitted_for = 0

    def open(self, state: RoundState, expected: Expected) -> None:
        """Begin to take updates."""
        if state.number != self._admitted_for:
            self._admitted.clear()
            self._refused.clear()
            self._admitted_for = state.number
        self._expected = expected
        self.turns.open(state)

    @property
    def state(self) -> RoundState | None:
        """The open round, or the last."""
        return self.turns.state

    @state.setter
    def state(self, state: RoundState | None) -> None:
        self.turns.state = state

    def note(self, event: Event) -> None:
        """Tell the open round, if there is one, of an event."""
        self.turns.note(event)

    async def collect(self) -> RoundState:
        """Until the open round closes."""
        return await self.turns.collect()

    @asynccontextmanager
    async def one_submission(self, worker: str) -> AsyncIterator[None]:
        """One submission of a worker at a time. A newer one ends an older one that still receives.

        The older one's connection is most likely dead, and it would notice only later.
        """
        task = asyncio.current_task()
        assert task is not None
        if (receiving := self._receiving.pop(worker, None)) is not None:
            self._superseded.add(receiving)
            receiving.cancel()
        async with self._one_by_one[worker]:
            self._receiving[worker] = task
            try:
                yield
            except asyncio.CancelledError:
                if task not in self._superseded:
                    raise
                task.uncancel()
                raise BrokenTransfer("a newer submission of this worker took over") from None
            finally:
                self._superseded.discard(task)
                if self._receiving.get(worker) is task:
                    del self._receiving[worker]

    # --- one submission, in the order in which it is called ---

    def admit(self, worker: str, examples: int, header: UpdateHeader) -> bool:
        """Judge a submission by its header; False when the same update is already here.

        Raises StaleRound (LateUpdate, UnknownRound, NotSelected) when it is not of the open round or not
        from one of its workers, BadUpdate when it is not the difference to the round's adapter, of a wrong
        size, of figures that are no numbers, or one of too many; StoreError when the run has as much on
        disk as it may.
        """
        for stored in self._store.updates(header.round):
            if stored.worker == worker and stored.sha256 == header.sha256:
                return False
        state = self.state
        if state is None or self._expected is None:
            raise StaleRound(f"round {header.round} is not open yet; watch for the next task")
        if header.round > state.number:
            raise UnknownRound(f"the run has not come to round {header.round}, it is at {state.number}")
        if header.round < state.number:
            raise StaleRound(f"round {header.round} is not open, round {state.number} is")
        self._require_open(state, worker)
        if header.adapter_sha256 != self._expected.adapter.sha256:
            raise BadUpdate("the update is the difference to another adapter than this round's")
        if self._expected.context is not None:
            self._require_masked(worker, header, self._expected, state)
        if header.examples != examples:
            raise BadUpdate(f"the update names {header.examples} examples, the worker joined with {examples}")
        most = self._limits.target_tokens
        if self._asks_targets and not 1 <= header.targets <= most:
            raise BadUpdate(
                f"an update of this run must name 1 to {most} target tokens (limits.target_tokens), "
                f"got {header.targets}"
            )
        if not (math.isfinite(header.loss) and math.isfinite(header.seconds) and header.seconds >= 0):
            figures = f"{header.loss} and {header.seconds}"
            raise BadUpdate(f"the update's loss and seconds must be finite, got {figures}")
        self._require_size(header, self._expected.schema)
        self._require_room(worker, header)
        if reason := self._refused.get((worker, header.sha256)):
            # Its bytes need not come again to be refused; and who was cut off while sending may not know why.
            raise BadUpdate(reason)
        return True

    def _require_masked(
        self, worker: str, header: UpdateHeader, expected: Expected, state: RoundState
    ) -> None:
        if header.context != expected.context or header.attempt != state.attempt:
            raise StaleRound(
                f"the update is masked for another try than {state.attempt} at round {state.number}"
            )
        if worker not in expected.senders():
            raise StaleRound(f"no masked update of {worker} is due: no masks are agreed on with it")
        if header.examples or header.loss or header.seconds or header.targets:
            raise BadUpdate("a masked update must not tell its examples, loss, seconds or tokens")
        if worker in state.received:
            # The difference of two under the same masks is plain.
            raise BadUpdate(f"another masked update of {worker} is here; a worker masks one only in a try")

    @property
    def _asks_targets(self) -> bool:
        return self._expected is not None and self._expected.targets

    def _require_size(self, header: UpdateHeader, schema: Schema) -> None:
        values, least = content_bytes(schema), smallest_header_bytes(schema)
        slack = _HEADER_SLACK + _HEADER_SLACK_PER_TENSOR * len(schema)
        if not values + least - slack <= header.size <= values + least + slack:
            raise BadUpdate(
                f"an update of this round has {values} bytes and a header of about {least}, got {header.size}"
            )

    def _require_room(self, worker: str, header: UpdateHeader) -> None:
        """Bounds what a worker, and all together, can make this run keep on disk."""
        digests, most = self._admitted[worker], self._limits.updates_per_round
        if header.sha256 not in digests and len(digests) >= most:
            raise BadUpdate(f"round {header.round} has {most} different updates of worker {worker} already")
        if (gigabytes := self._limits.disk_gigabytes) is not None:
            held = sum(retention.sizes(self._store).values())
            if held + header.size > gigabytes * 1e9:
                raise StoreError(
                    f"the run has {held / 1e9:.2f} GB on disk, limits.disk_gigabytes allows {gigabytes:g}"
                )
        digests.add(header.sha256)

    def _require_open(self, state: RoundState, worker: str) -> None:
        if state.work is not Work.UPDATES:
            raise LateUpdate(f"round {state.number} is not open any more: its adapter is being scored")
        if state.phase is not RoundPhase.OPEN:
            raise LateUpdate(
                f"round {state.number} is not open any more: it closed with {len(state.received)} updates"
            )
        if worker not in state.selected:
            raise NotSelected(f"worker {worker} was not drawn for round {state.number}")

    def held(self, worker: str, header: UpdateHeader) -> int:
        """How many bytes of an admitted update are here already."""
        for path in self._places(worker, header):
            if path.exists():
                return min(path.stat().st_size, header.size)
        return 0

    def receive(self, worker: str, header: UpdateHeader) -> ChunkWriter:
        """Where the update's chunks go; what an interrupted upload has left is there.

        What is left of the worker's other uploads goes: at most one takes room.
        """
        partial, complete = self._places(worker, header)
        for path in self._store.artifacts.spooled(worker):
            if path not in (partial, complete):
                path.unlink(missing_ok=True)
        if complete.exists():
            # Received, and this process's predecessor died before it took it further.
            complete.replace(partial)
        return ChunkWriter(partial, complete, header.size, header.sha256, "upload")

    def _places(self, worker: str, header: UpdateHeader) -> tuple[Path, Path]:
        names = (f"{header.sha256}{part}-{header.round}-{worker}" for part in (".part", ""))
        partial, complete = map(self._store.artifacts.spool, names)
        return partial, complete

    def header_fits(self, worker: str, header: UpdateHeader) -> bool:
        """Judge what has come of an update by its file's header; False while that is not complete.

        Raises BadUpdate when its tensors are not what the round asked for: the rest need not come.
        """
        partial = self._places(worker, header)[0]
        assert self._expected is not None
        with partial.open("rb") as file:
            begin = file.read(PREFIX_BYTES)
            if len(begin) < PREFIX_BYTES:
                return False
            try:
                begin += file.read(header_bytes(begin, header.size))
                if len(begin) < PREFIX_BYTES + header_bytes(begin, header.size):
                    return False
                check_specs(read_header(begin, header.size), self._expected.schema)
            except BadUpdate as error:
                partial.unlink(missing_ok=True)
                self._refused[worker, header.sha256] = str(error)
                raise
        return True

    def received(self, worker: str) -> None:
        """The bytes are here: from now on the worker's next submission waits instead of taking over."""
        self._receiving.pop(worker, None)

    @one_thread()
    def keep(self, worker: str, header: UpdateHeader) -> None:
        """Check the complete file and give it its place in the store, durably; blocking.

        Raises BadUpdate when its tensors are not what the round asked for; the file is dropped.
        """
        assert self._expected is not None
        received = self._places(worker, header)[1]
        try:
            check_specs(header_of(received), self._expected.schema)
            if self._expected.context is None:
                _check_values(TensorFile.foreign(received))
        except BadUpdate as error:
            received.unlink(missing_ok=True)
            self._refused[worker, header.sha256] = str(error)
            raise
        self._store.artifacts.place(received, header.sha256)

    def commit(self, worker: str, header: UpdateHeader) -> None:
        """Record a kept file as the worker's update and count it: now a receipt may be given.

        On the event loop, so that no round closes between the record and the count. Raises
        LateUpdate when it closed while the update was on its way.
        """
        state = self.state
        try:
            if state is None or state.number != header.round:
                raise LateUpdate(f"round {header.round} closed before the update was complete")
            self._require_open(state, worker)
        except StaleRound:
            self._store.artifacts.discard(header.sha256)
            raise
        figures = header.examples, header.loss, header.seconds, header.targets if self._asks_targets else 0
        update = StoredUpdate(worker, header.sha256, *figures)
        self._store.commit_update(header.round, update, header.size)
        self.note(Received(worker))


def _check_values(tensors: TensorFile) -> None:
    """Raise BadUpdate for values that are not finite, or counts that cannot be."""
    check_finite(tensors)
    for layer, c in from_tensors(Prefixed(tensors, APOZ)).items():
        if not 0 <= c.zeros.min() <= c.zeros.max() <= c.tokens <= _MOST_TOKENS:
            raise BadUpdate(f"APoZ counts of layer {layer} are not within 0 and the tokens")
