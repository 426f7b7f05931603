"""Calls to the coordinator that outlive interruptions: tried again, logged, counted."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from common.errors import (
    BadDigest,
    BrokenTransfer,
    FedPftError,
    NotAllowed,
    RunFailed,
    StoreError,
    TooMany,
    UnknownRun,
    UnknownSession,
    Unreachable,
)
from common.observability import tracing
from common.runtime.fault_points import Point, reach
from common.transport.rpc import FRAME_BYTES, RUN_KEY, domain_error, readable
from worker.absence import LONGEST_WAIT_SECONDS
from worker.connection import Connection, Endpoint
from worker.metrics import Metrics
from worker.retries import Outage, patience_with
from worker.sent_log import SentLog

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that a short call may take.
CALL_SECONDS = 30.0
_LONGEST_ID = 64
# The same content arrives damaged so often on end: it is damaged where it comes from.
_DAMAGED_TIMES = 3


class PersistentCalls(ABC):
    """Every call is tried again while the coordinator cannot be reached, for the endpoint's patience on end
    at most; then it raises Unreachable. A session that the coordinator forgot is joined anew."""

    def __init__(self, endpoint: Endpoint, metrics: Metrics, sent: SentLog | None) -> None:
        self._endpoint = endpoint
        self._metrics, self._sent = metrics, sent
        self._connection = Connection(endpoint)
        self._session = ""
        self._run_id = ""

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    @abstractmethod
    async def _rejoin(self, forgotten: str) -> None:
        """Enter the run anew, unless that is done since this session was forgotten."""

    async def _call(self, name: str, kind: str, request: Message, seconds: float = CALL_SECONDS) -> Any:
        """One call that is neither repeated nor translated."""
        self._about_to_send(name, kind, request)
        reach(Point.CALL_MADE, name)
        method = getattr(self._connection.stub, name)
        reply = readable(await method(request, timeout=seconds, metadata=self._metadata()))
        reach(Point.REPLY_RECEIVED, name)
        self._heard()
        self._count(kind, request, reply)
        return reply

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries beside its message: which run it concerns, and below which span it hangs."""
        # A text of the other side's, which not all can stand in metadata.
        fit = self._run_id.isascii() and self._run_id.isprintable() and len(self._run_id) <= _LONGEST_ID
        run = ((RUN_KEY, self._run_id),) if self._run_id and fit else ()
        return (*run, *(tracing.metadata() or ()))

    def _heard(self) -> None:
        """The coordinator answered."""
        if self._endpoint.absence is not None:
            self._endpoint.absence.heard()

    def _outage(self) -> Outage:
        return Outage() if self._endpoint.absence is None else Outage(LONGEST_WAIT_SECONDS)

    async def _persist(self, attempt: Callable[[Outage], Awaitable[T]]) -> T:
        """Try until it works; each try makes its call anew, and tells the outage what came through."""
        outage = self._outage()
        while True:
            session, shown = self._session, self._connection.shown
            try:
                return await attempt(outage)
            except aio.AioRpcError as error:
                await self._recover(domain_error(error), session, shown, outage, told=True)
            except (BadDigest, BrokenTransfer) as error:
                await self._recover(error, session, shown, outage)

    async def _recover(
        self, error: FedPftError, session: str, shown: object, outage: Outage, told: bool = False
    ) -> None:
        """Wait, or join anew, as the error asks; raise it when it is not one that passes.

        `told` by the coordinator: a disk of its that is full may be freed again, too many calls get fewer.
        """
        if isinstance(error, UnknownSession):
            await self._rejoin(session)
            return
        if isinstance(error, UnknownRun):
            raise self._another_run() from None
        self._connection.renew()
        if isinstance(error, NotAllowed) and shown != self._connection.shown:
            # The old certificate was refused, and there is a new one by now.
            return
        passes = isinstance(error, Unreachable | BrokenTransfer | BadDigest)
        if not (passes or (told and isinstance(error, StoreError | TooMany))):
            raise error
        if isinstance(error, BadDigest):
            outage.damaged += 1
            if outage.damaged >= _DAMAGED_TIMES:
                raise BadDigest(f"{error}; {outage.damaged} times on end: it is damaged at its source")
        if (absence := self._endpoint.absence) is not None:
            absence.failed(error)
            self._metrics.reconnects.inc()
            await asyncio.sleep(next(outage.delays))
            return
        silent, patience = outage.seconds(), patience_with(error, self._endpoint.patience, bool(self._run_id))
        if silent >= patience:
            if patience < self._endpoint.patience:
                raise type(error)(f"coordinator {self._endpoint.address}: {error}")
            raise Unreachable(
                f"coordinator {self._endpoint.address} gave no usable answer for {silent:.0f} s ({error}); "
                "check the address and that it runs, or raise --join-timeout"
            )
        delay = min(next(outage.delays), patience - silent + 0.1)
        log.warning(
            "coordinator %s: %s; next try in %.1f s, giving up in %.0f s",
            self._endpoint.address,
            error,
            delay,
            patience - silent,
        )
        self._metrics.reconnects.inc()
        await asyncio.sleep(delay)

    def _another_run(self) -> RunFailed:
        again = "" if self._endpoint.absence is not None else "; start this worker again"
        return RunFailed(f"the coordinator serves another run now{again}")

    def _about_to_send(self, call: str, kind: str, message: Message | bytes, update: str = "") -> None:
        """Enter a message in the worker's own log. Raises StoreError; then it must not go out."""
        if self._sent is not None:
            content = message if isinstance(message, bytes) else message.SerializeToString()
            self._sent.record(call, kind, content, len(content) + FRAME_BYTES, update)

    def _count(self, kind: str, up: Message | None, down: Message | None) -> None:
        if up is not None:
            self._metrics.transferred.labels(kind, "up").inc(up.ByteSize() + FRAME_BYTES)
        if down is not None:
            self._metrics.transferred.labels(kind, "down").inc(down.ByteSize() + FRAME_BYTES)
