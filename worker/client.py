"""The coordinator as a worker sees it: stubs, deadlines, resumable transfers, reconnection."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedpft.v1 import federation_pb2
from google.protobuf.message import Message
from grpc import StatusCode, aio

from common.errors import (
    BadDigest,
    BrokenTransfer,
    FedPftError,
    NotAllowed,
    RunFailed,
    StoreError,
    TooMany,
    UnknownSession,
    Unreachable,
)
from common.observability import tracing
from common.protocol import PROTOCOL_MIN
from common.records import (
    ArtifactRef,
    Chunk,
    ClassCounts,
    JoinReply,
    JoinRequest,
    Progress,
    RunSpec,
    SubmittedScores,
    Task,
    UpdateHeader,
)
from common.runtime.fault_points import Point, reach
from common.transport import class_wire, score_wire, wire
from common.transport.chunk_messages import (
    encoded_bytes,
    submission,
)
from common.transport.chunks import ChunkWriter, read_chunks, verify
from common.transport.rpc import FRAME_BYTES, domain_error, readable
from worker.connection import Connection, Endpoint
from worker.metrics import Metrics
from worker.retries import Outage, patience_with, unstalled
from worker.sent_log import SentLog

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that a short call may take, and a transfer of any size; one that has come further goes on in
# another call. The stream of tasks is opened anew after as long.
_CALL_SECONDS = 30.0
_TRANSFER_SECONDS = 3600.0
_WATCH_SECONDS = 3600.0
_GOODBYE_SECONDS = 1.0

# The same content arrives damaged so often on end: it is damaged where it comes from.
_DAMAGED_TIMES = 3
# The protocol in which interrupted uploads go on.
_OFFERS = 2


class CoordinatorClient:
    """A connection that outlives interruptions.

    Every call is tried again while the coordinator cannot be reached, for the endpoint's patience on end
    at most; then it raises Unreachable. A session that the coordinator forgot is joined anew.
    """

    def __init__(
        self, endpoint: Endpoint, joining: JoinRequest, metrics: Metrics, sent: SentLog | None = None
    ) -> None:
        self._endpoint = endpoint
        self._metrics, self._sent = metrics, sent
        self._connection = Connection(endpoint)
        # Another process of this name draws another.
        self._joining = replace(joining, process=joining.process or secrets.token_hex(8))
        self._session = ""
        self._run_id = ""
        self._protocol = PROTOCOL_MIN
        self._joins = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def join(self) -> JoinReply:
        """Enter the run.

        Raises ProtocolMismatch, NotAllowed, NameTaken, and Unreachable after `patience` seconds.
        """
        return await self._persist(lambda _: self._join())

    async def _call(self, name: str, kind: str, request: Message, seconds: float = _CALL_SECONDS) -> Any:
        """One call that is neither repeated nor translated."""
        self._about_to_send(name, kind, request)
        reach(Point.CALL_MADE, name)
        method = getattr(self._connection.stub, name)
        reply = readable(await method(request, timeout=seconds, metadata=tracing.metadata()))
        reach(Point.REPLY_RECEIVED, name)
        self._count(kind, request, reply)
        return reply

    async def _join(self) -> JoinReply:
        request = wire.join_request_to_pb(self._joining)
        message = await self._call("Join", "control", request)
        reply = wire.join_reply_from_pb(message)
        if self._run_id and reply.run.run_id != self._run_id:
            raise RunFailed("the coordinator serves another run now; start this worker again")
        self._session, self._run_id, self._protocol = reply.session, reply.run.run_id, reply.protocol
        return reply

    async def describe(self) -> RunSpec:
        """What the run is, before it is entered."""
        request = federation_pb2.DescribeRunRequest(worker=self._joining.worker)
        reply = await self._persist(lambda _: self._call("DescribeRun", "control", request))
        return wire.run_spec_from_pb(reply.run)

    async def tell_classes(self, told: ClassCounts) -> None:
        """Tell the names and numbers of this worker's classes; returns when it may join.

        Raises DataError when the run does not know one of them, RunFailed.
        """
        request = class_wire.class_counts_to_pb(told)
        async for message in self._followed("TellClasses", lambda: request):
            log.info("waiting: %s", message.waiting_for)

    async def _rejoin(self, forgotten: str) -> None:
        """Join anew, once, however many calls noticed that the session is gone."""
        async with self._joins:
            if self._session == forgotten:
                log.info("the coordinator does not know this session any more; joining again")
                await self.join()

    async def tasks(self) -> AsyncIterator[Task]:
        """Tasks as the coordinator pushes them, across reconnections, up to the last."""

        def request() -> Message:
            return federation_pb2.WatchTasksRequest(session=self._session)

        async for message in self._followed("WatchTasks", request):
            yield wire.task_from_pb(message)

    async def _followed(self, name: str, request_now: Callable[[], Message]) -> AsyncIterator[Any]:
        """Messages of a stream as they come, across reconnections, up to its end."""
        outage = Outage()
        while True:
            session, shown = self._session, self._connection.shown
            try:
                request = request_now()
                self._about_to_send(name, "control", request)
                self._count("control", request, None)
                reach(Point.CALL_MADE, name)
                async for message in getattr(self._connection.stub, name)(request, timeout=_WATCH_SECONDS):
                    outage = Outage()
                    self._count("control", None, readable(message))
                    reach(Point.REPLY_RECEIVED, name)
                    yield message
                return
            except aio.AioRpcError as error:
                if error.code() is not StatusCode.DEADLINE_EXCEEDED:
                    await self._recover(domain_error(error), session, shown, outage, told=True)

    async def heartbeat(self, progress: Progress) -> None:
        """Say "alive"; a failure is for the other calls to notice."""
        request = federation_pb2.HeartbeatRequest(
            session=self._session, progress=wire.progress_to_pb(progress)
        )
        try:
            await self._call("Heartbeat", "control", request)
            self._metrics.contact.set_to_current_time()
        except aio.AioRpcError as error:
            log.debug("heartbeat: %s", domain_error(error))

    async def download(self, artifact: ArtifactRef, folder: Path) -> Path:
        """The artifact's file in `folder`: at once when it is there, else from where it broke off."""
        path = folder / artifact.sha256
        if path.exists():
            try:
                await asyncio.to_thread(verify, path, artifact.sha256)
                return path
            except BadDigest as error:
                log.warning("%s; fetching it anew", error)
                path.unlink()

        async def fetch(outage: Outage) -> None:
            partial = folder / f"{artifact.sha256}.part"
            with ChunkWriter(partial, path, artifact.size, artifact.sha256, artifact.kind) as writer:
                request = federation_pb2.DownloadArtifactRequest(
                    session=self._session, sha256=artifact.sha256, offset=writer.offset
                )
                self._about_to_send("DownloadArtifact", artifact.kind, request)
                self._count(artifact.kind, request, None)
                reach(Point.CALL_MADE, "DownloadArtifact")
                call = self._connection.stub.DownloadArtifact(
                    request, timeout=_TRANSFER_SECONDS, metadata=tracing.metadata()
                )
                received = self._metrics.transferred.labels(artifact.kind, "down")
                async for message in unstalled(call):
                    chunk = (
                        message if isinstance(message, Chunk) else wire.chunk_from_pb(readable(message).chunk)
                    )
                    received.inc(encoded_bytes(chunk) + FRAME_BYTES)
                    writer.write(chunk)
                    outage.progressed()
                reach(Point.REPLY_RECEIVED, "DownloadArtifact")
                await asyncio.to_thread(writer.commit)

        await self._persist(fetch)
        return path

    async def submit(self, header: UpdateHeader, path: Path) -> bool:
        """Deliver an update; returns whether it had been delivered before.

        Raises StaleRound when its round is over, BadUpdate or BadMessage when the coordinator refuses it.
        """

        async def send(outage: Outage) -> bool:
            named = wire.header_to_pb(replace(header, session=self._session))
            offset = 0
            if self._protocol >= _OFFERS:
                offer = federation_pb2.OfferUpdateRequest(header=named)
                answer = await self._call("OfferUpdate", "update", offer)
                if answer.duplicate:
                    return True
                offset = answer.offset
            if offset > outage.reached:
                outage.reached = offset
                outage.progressed()

            async def stream() -> AsyncIterator[federation_pb2.SubmitUpdateRequest | bytes]:
                first = federation_pb2.SubmitUpdateRequest(header=named)
                self._about_to_send("SubmitUpdate", "update", first, header.sha256)
                self._count("update", first, None)
                yield first
                sent = self._metrics.transferred.labels("update", "up")
                for chunk in read_chunks(path, offset):
                    message = submission(chunk)
                    self._about_to_send("SubmitUpdate", "update", message)
                    sent.inc(len(message) + FRAME_BYTES)
                    reach(Point.CHUNK_SENT, "update")
                    yield message

            reach(Point.CALL_MADE, "SubmitUpdate")
            reply = await self._connection.stub.SubmitUpdate(
                stream(), timeout=_TRANSFER_SECONDS, metadata=tracing.metadata()
            )
            reply = readable(reply)
            reach(Point.REPLY_RECEIVED, "SubmitUpdate")
            self._count("update", None, reply)
            return bool(reply.duplicate)

        return await self._persist(send)

    async def submit_scores(self, scores: SubmittedScores) -> bool:
        """Deliver scores; returns whether they had been delivered before.

        Raises StaleRound when they are not waited for, BadScores or BadMessage when they are refused.
        """

        async def send(outage: Outage) -> bool:
            request = score_wire.scores_to_pb(replace(scores, session=self._session))
            return bool((await self._call("SubmitScores", "scores", request)).duplicate)

        return await self._persist(send)

    async def leave(self, reason: str) -> None:
        """Say goodbye, if the coordinator still listens."""
        request = federation_pb2.LeaveRequest(session=self._session, reason=reason)
        try:
            await self._call("Leave", "control", request, _GOODBYE_SECONDS)
        except aio.AioRpcError as error:
            log.debug("leave: %s", domain_error(error))

    async def _persist(self, attempt: Callable[[Outage], Awaitable[T]]) -> T:
        """Try until it works; each try makes its call anew, and tells the outage what came through."""
        outage = Outage()
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
