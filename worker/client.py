"""The coordinator as a worker sees it: stubs, deadlines, resumable transfers, reconnection."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedpft.v1 import federation_pb2, federation_pb2_grpc
from google.protobuf.message import Message
from grpc import StatusCode, aio

from common.address import Address
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
from common.records import (
    PROTOCOL_MIN,
    ArtifactRef,
    Chunk,
    JoinReply,
    JoinRequest,
    Progress,
    Task,
    UpdateHeader,
)
from common.runtime.fault_points import Point, reach
from common.transport import wire
from common.transport.chunk_messages import (
    decode_download,
    encode_submission,
    encoded_bytes,
    submission,
)
from common.transport.chunks import ChunkWriter, read_chunks, verify
from common.transport.rpc import FRAME_BYTES, KEEPALIVE_SECONDS, STALL_SECONDS, domain_error, new_channel
from common.trust.tls import Tls
from worker.metrics import Metrics
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


def backoff(first: float = 0.2, most: float = 10.0) -> Iterator[float]:
    """Seconds to wait between tries: doubling up to `most`, each with up to half taken off at random."""
    draw = random.Random()
    delay = first
    while True:
        yield delay * draw.uniform(0.5, 1.0)
        delay = min(most, delay * 2)


class Outage:
    """Failures without a success between them: how long already, and how long to wait next."""

    def __init__(self) -> None:
        self.damaged = 0
        self.reached = 0
        self.progressed()

    def progressed(self) -> None:
        """Something came through."""
        self._since: float | None = None
        self.delays = backoff()

    def seconds(self) -> float:
        """Since the first failure; the first call is that failure."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since


async def _unstalled(messages: AsyncIterable[T]) -> AsyncIterator[T]:
    """The stream's messages. Raises BrokenTransfer when none follows for too long.

    The first may take its time: the coordinator serves only so many transfers at once.
    """
    stream, limit = aiter(messages), None
    while True:
        try:
            async with asyncio.timeout(limit):
                message = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BrokenTransfer(f"nothing came for {STALL_SECONDS:.0f} s") from None
        yield message
        limit = STALL_SECONDS


class Coordinator:
    """A connection that outlives interruptions.

    Every call is tried again while the coordinator cannot be reached, for `patience` seconds on end
    at most; then it raises Unreachable. A session that the coordinator forgot is joined anew.
    """

    def __init__(
        self,
        address: Address,
        joining: JoinRequest,
        patience: float,
        metrics: Metrics,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
        tls: Tls | None = None,
        sent: SentLog | None = None,
    ) -> None:
        self._sent = sent
        self._address, self._joining, self._patience = address, joining, patience
        self._metrics, self._keepalive_seconds, self._tls = metrics, keepalive_seconds, tls
        self._channels: list[aio.Channel] = []
        self._connect()
        self._session = ""
        self._run_id = ""
        self._protocol = PROTOCOL_MIN
        self._joins = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection."""
        for channel in self._channels:
            await channel.close()

    def _connect(self) -> None:
        self._shown = self._tls.version() if self._tls else None
        channel: Any = new_channel(self._address, self._keepalive_seconds, self._tls)
        # An earlier one stays open: calls may be under way on it, and closing would cancel their tasks.
        self._channels.append(channel)
        self._newest: Any = federation_pb2_grpc.FederationServiceStub(channel)
        # As generated, but without copies of the chunks' content.
        path = f"/{federation_pb2.DESCRIPTOR.services_by_name['FederationService'].full_name}"
        self._newest.DownloadArtifact = channel.unary_stream(
            f"{path}/DownloadArtifact",
            federation_pb2.DownloadArtifactRequest.SerializeToString,
            decode_download,
        )
        self._newest.SubmitUpdate = channel.stream_unary(
            f"{path}/SubmitUpdate",
            encode_submission,
            federation_pb2.SubmitUpdateResponse.FromString,
        )

    @property
    def _stub(self) -> Any:
        """The stub to call by: after a renewal of the certificate, one that shows the new."""
        self._renew()
        return self._newest

    def _renew(self) -> None:
        if self._tls is not None and self._tls.version() != self._shown:
            log.info("the certificate was renewed; connecting anew")
            self._connect()

    async def join(self) -> JoinReply:
        """Enter the run. Raises ProtocolMismatch, NotAllowed, and Unreachable after `patience` seconds."""
        return await self._persist(lambda _: self._join())

    async def _call(self, name: str, kind: str, request: Message, seconds: float = _CALL_SECONDS) -> Any:
        """One call that is neither repeated nor translated."""
        self._about_to_send(name, kind, request)
        reach(Point.CALL_MADE, name)
        reply = await getattr(self._stub, name)(request, timeout=seconds, metadata=tracing.metadata())
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

    async def _rejoin(self, forgotten: str) -> None:
        """Join anew, once, however many calls noticed that the session is gone."""
        async with self._joins:
            if self._session == forgotten:
                log.info("the coordinator does not know this session any more; joining again")
                await self.join()

    async def tasks(self) -> AsyncIterator[Task]:
        """Tasks as the coordinator pushes them, across reconnections, up to the last."""
        outage = Outage()
        while True:
            session, shown = self._session, self._shown
            try:
                request = federation_pb2.WatchTasksRequest(session=session)
                self._about_to_send("WatchTasks", "control", request)
                self._count("control", request, None)
                reach(Point.CALL_MADE, "WatchTasks")
                async for message in self._stub.WatchTasks(request, timeout=_WATCH_SECONDS):
                    outage = Outage()
                    self._count("control", None, message)
                    reach(Point.REPLY_RECEIVED, "WatchTasks")
                    yield wire.task_from_pb(message)
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
                call = self._stub.DownloadArtifact(
                    request, timeout=_TRANSFER_SECONDS, metadata=tracing.metadata()
                )
                received = self._metrics.transferred.labels(artifact.kind, "down")
                async for message in _unstalled(call):
                    chunk = message if isinstance(message, Chunk) else wire.chunk_from_pb(message.chunk)
                    received.inc(encoded_bytes(chunk) + FRAME_BYTES)
                    writer.write(chunk)
                    outage.progressed()
                reach(Point.REPLY_RECEIVED, "DownloadArtifact")
                await asyncio.to_thread(writer.commit)

        await self._persist(fetch)
        return path

    async def submit(self, header: UpdateHeader, path: Path) -> bool:
        """Deliver an update; returns whether it had been delivered before.

        Raises StaleRound when its round is over, BadUpdate when the coordinator refuses it.
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
            reply = await self._stub.SubmitUpdate(
                stream(), timeout=_TRANSFER_SECONDS, metadata=tracing.metadata()
            )
            reach(Point.REPLY_RECEIVED, "SubmitUpdate")
            self._count("update", None, reply)
            return bool(reply.duplicate)

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
            session, shown = self._session, self._shown
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
        self._renew()
        if isinstance(error, NotAllowed) and shown != self._shown:
            # The old certificate was refused, and there is a new one by now.
            return
        passes = isinstance(error, Unreachable | BrokenTransfer | BadDigest)
        if not (passes or (told and isinstance(error, StoreError | TooMany))):
            raise error
        if isinstance(error, BadDigest):
            outage.damaged += 1
            if outage.damaged >= _DAMAGED_TIMES:
                raise BadDigest(f"{error}; {outage.damaged} times on end: it is damaged at its source")
        silent = outage.seconds()
        if silent > self._patience:
            raise Unreachable(
                f"coordinator {self._address} gave no usable answer for {silent:.0f} s ({error}); "
                "check the address and that it runs, or raise --join-timeout"
            )
        delay = min(next(outage.delays), self._patience - silent + 0.1)
        log.warning(
            "coordinator %s: %s; next try in %.1f s, giving up in %.0f s",
            self._address,
            " ".join(str(error).split())[:120],
            delay,
            self._patience - silent,
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
