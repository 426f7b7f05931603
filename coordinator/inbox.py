"""Hand-off of updates from RPC handlers to the loop: judged at the door, on disk before counted."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from common.chunks import ChunkWriter
from common.errors import BadUpdate, StaleRound
from common.model.adapter import trained
from common.model.apoz import from_tensors
from common.records import AdapterSpec, ArtifactRef, UpdateHeader
from common.schema import Schema, TensorSpec, check, content_bytes
from common.tensors import Prefixed, TensorFile
from common.wakeup import Wakeup
from coordinator.rounds import Event, Received, RoundPhase, RoundState, Tick, step
from coordinator.store import Store, StoredUpdate

DELTA, APOZ = "delta.", "apoz."

# A safetensors header takes about 100 bytes a tensor; this is generous.
_HEADER_BYTES = 256 * 1024


@dataclass(frozen=True)
class Expected:
    """What the open round asks of an update."""

    adapter: ArtifactRef
    schema: Schema
    """Of the whole file: `delta.*`, and `apoz.*` when counts are asked for."""


def update_schema(adapter: Schema, spec: AdapterSpec, counted: Mapping[int, int]) -> dict[str, TensorSpec]:
    """Schema of an update's file; `counted` maps the layers to count to their FFN widths."""
    schema = {DELTA + name: tensor for name, tensor in adapter.items() if trained(name, spec)}
    for layer, width in counted.items():
        schema[f"{APOZ}{layer}.zeros"] = TensorSpec((width,), torch.int64)
        schema[f"{APOZ}{layer}.tokens"] = TensorSpec((), torch.int64)
    return schema


class Inbox:
    """The open round's updates. Lives on the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = Wakeup()
        self._expected: Expected | None = None
        self.state: RoundState | None = None

    def open(self, state: RoundState, expected: Expected) -> None:
        """Begin to take updates."""
        self.state, self._expected = state, expected
        self.note(Tick())

    def note(self, event: Event) -> None:
        """Tell the open round, if there is one, of an event."""
        if self.state is not None and self.state.phase is RoundPhase.OPEN:
            self.state = step(self.state, event, asyncio.get_running_loop().time())
            self._changed.notify()

    async def collect(self) -> RoundState:
        """Until the open round closes."""
        assert self.state is not None
        while self.state.phase is RoundPhase.OPEN:
            try:
                async with asyncio.timeout_at(self.state.closes_at):
                    await self._changed.wait()
            except TimeoutError:
                self.note(Tick())
        return self.state

    # --- one submission, in the order in which it is called ---

    def admit(self, worker: str, examples: int, header: UpdateHeader) -> bool:
        """Judge a submission by its header; False when the same update is already here.

        Raises StaleRound when it is not of the open round or not from one of its workers,
        BadUpdate when it is not the difference to the round's adapter, or of a wrong size.
        """
        for stored in self._store.updates(header.round):
            if stored.worker == worker and stored.sha256 == header.sha256:
                return False
        state = self.state
        if state is None or self._expected is None or state.phase is not RoundPhase.OPEN:
            raise StaleRound(f"round {header.round} is not open; watch for the next task")
        if header.round != state.number:
            raise StaleRound(f"round {header.round} is not open, round {state.number} is")
        if worker not in state.selected:
            raise StaleRound(f"worker {worker} was not drawn for round {state.number}")
        if header.adapter_sha256 != self._expected.adapter.sha256:
            raise BadUpdate("the update is the difference to another adapter than this round's")
        if header.examples != examples:
            raise BadUpdate(f"the update names {header.examples} examples, the worker joined with {examples}")
        least = content_bytes(self._expected.schema)
        if not least < header.size <= least + _HEADER_BYTES:
            raise BadUpdate(f"an update of this round has {least} bytes and a header, got {header.size}")
        return True

    def receive(self, worker: str, header: UpdateHeader) -> ChunkWriter:
        """Where the update's chunks go. Uploads begin anew: what an interrupted one left is dropped."""
        name = f"{header.round}-{worker}-{header.sha256}"
        partial, complete = self._store.spool(f"{name}.part"), self._store.spool(name)
        partial.unlink(missing_ok=True)
        return ChunkWriter(partial, complete, header.size, header.sha256)

    def keep(self, worker: str, header: UpdateHeader) -> None:
        """Check the complete file and give it its place in the store, durably; blocking.

        Raises BadUpdate when its tensors are not what the round asked for; the file is dropped.
        """
        assert self._expected is not None
        received = self._store.spool(f"{header.round}-{worker}-{header.sha256}")
        try:
            tensors = TensorFile(received)
            check(tensors, self._expected.schema)
            for layer, c in from_tensors(Prefixed(tensors, APOZ)).items():
                if c.zeros.min() < 0 or c.zeros.max() > c.tokens:
                    raise BadUpdate(f"APoZ counts of layer {layer} are not within 0 and the tokens")
        except BadUpdate:
            received.unlink(missing_ok=True)
            raise
        self._store.place(received, header.sha256)

    def commit(self, worker: str, header: UpdateHeader) -> None:
        """Record a kept file as the worker's update and count it: now a receipt may be given.

        On the event loop, so that no round closes between the record and the count. Raises
        StaleRound when it closed while the update was on its way.
        """
        state = self.state
        if (
            state is None
            or state.phase is not RoundPhase.OPEN
            or state.number != header.round
            or worker not in state.selected
        ):
            raise StaleRound(f"round {header.round} closed before the update was complete")
        update = StoredUpdate(worker, header.sha256, header.examples, header.loss, header.seconds)
        self._store.commit_update(header.round, update, header.size)
        self.note(Received(worker))
