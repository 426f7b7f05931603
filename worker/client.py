"""The coordinator as a worker sees it: stubs, deadlines, resumable transfers, reconnection."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedpft.v1 import federation_pb2, federation_pb2_grpc
from google.protobuf.message import Message
from grpc import aio

from common import wire
from common.chunks import ChunkWriter, read_chunks, verify
from common.errors import (
    BadDigest,
    BrokenTransfer,
    FedPftError,
    RunFailed,
    UnknownSession,
    Unreachable,
)
from common.records import ArtifactRef, JoinReply, JoinRequest, Progress, Task, UpdateHeader
from common.rpc import FRAME_BYTES, Address, domain_error, new_channel
from worker.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that a short call may take, and a transfer of any size.
_CALL_SECONDS = 30.0
_TRANSFER_SECONDS = 3600.0
_GOODBYE_SECONDS = 1.0


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
        self._since: float | None = None
        self.delays = backoff()

    def seconds(self) -> float:
        """Since the first failure; the first call is that failure."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since


class Coordinator:
    """A connection that outlives interruptions.

    Every call is tried again while the coordinator cannot be reached, for `patience` seconds on end
    at most; then it raises Unreachable. A session that the coordinator forgot is joined anew.
    """

    def __init__(self, address: Address, joining: JoinRequest, patience: float, metrics: Metrics) -> None:
        self._address, self._joining, self._patience = address, joining, patience
        self._metrics = metrics
        self._channel = new_channel(address)
        self._stub: Any = federation_pb2_grpc.FederationServiceStub(self._channel)
        self._session = ""
        self._run_id = ""
        self._joins = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def join(self) -> JoinReply:
        """Enter the run. Raises ProtocolMismatch, and Unreachable after `patience` seconds."""
        return await self._persist(self._join)

    async def _join(self) -> JoinReply:
        request = wire.join_request_to_pb(self._joining)
        message = await self._stub.Join(request, timeout=_CALL_SECONDS)
        self._count("control", request, message)
        reply = wire.join_reply_from_pb(message)
        if self._run_id and reply.run.run_id != self._run_id:
            raise RunFailed("the coordinator serves another run now; start this worker again")
        self._session, self._run_id = reply.session, reply.run.run_id
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
            session = self._session
            try:
                request = federation_pb2.WatchTasksRequest(session=session)
                self._count("control", request, None)
                async for message in self._stub.WatchTasks(request):
                    outage = Outage()
                    self._count("control", None, message)
                    yield wire.task_from_pb(message)
                return
            except aio.AioRpcError as error:
                await self._recover(domain_error(error), session, outage)

    async def heartbeat(self, progress: Progress) -> None:
        """Say "alive"; a failure is for the other calls to notice."""
        request = federation_pb2.HeartbeatRequest(
            session=self._session, progress=wire.progress_to_pb(progress)
        )
        try:
            reply = await self._stub.Heartbeat(request, timeout=_CALL_SECONDS)
            self._count("control", request, reply)
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

        async def fetch() -> None:
            partial = folder / f"{artifact.sha256}.part"
            with ChunkWriter(partial, path, artifact.size, artifact.sha256) as writer:
                request = federation_pb2.DownloadArtifactRequest(
                    session=self._session, sha256=artifact.sha256, offset=writer.offset
                )
                self._count(artifact.kind, request, None)
                call = self._stub.DownloadArtifact(request, timeout=_TRANSFER_SECONDS)
                async for message in call:
                    self._count(artifact.kind, None, message)
                    writer.write(wire.chunk_from_pb(message.chunk))
                await asyncio.to_thread(writer.commit)

        await self._persist(fetch)
        return path

    async def submit(self, header: UpdateHeader, path: Path) -> bool:
        """Deliver an update; returns whether it had been delivered before.

        Raises StaleRound when its round is over, BadUpdate when the coordinator refuses it.
        """

        def messages() -> Iterator[federation_pb2.SubmitUpdateRequest]:
            named = wire.header_to_pb(replace(header, session=self._session))
            yield federation_pb2.SubmitUpdateRequest(header=named)
            for chunk in read_chunks(path):
                yield federation_pb2.SubmitUpdateRequest(chunk=wire.chunk_to_pb(chunk))

        async def stream() -> AsyncIterator[federation_pb2.SubmitUpdateRequest]:
            for message in messages():
                self._count("update", message, None)
                yield message

        async def send() -> bool:
            reply = await self._stub.SubmitUpdate(stream(), timeout=_TRANSFER_SECONDS)
            self._count("update", None, reply)
            return bool(reply.duplicate)

        return await self._persist(send)

    async def leave(self, reason: str) -> None:
        """Say goodbye, if the coordinator still listens."""
        request = federation_pb2.LeaveRequest(session=self._session, reason=reason)
        try:
            reply = await self._stub.Leave(request, timeout=_GOODBYE_SECONDS)
            self._count("control", request, reply)
        except aio.AioRpcError as error:
            log.debug("leave: %s", domain_error(error))

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works; each try makes its call anew."""
        outage = Outage()
        while True:
            session = self._session
            try:
                return await attempt()
            except aio.AioRpcError as error:
                await self._recover(domain_error(error), session, outage)
            except (BadDigest, BrokenTransfer) as error:
                await self._recover(error, session, outage)

    async def _recover(self, error: FedPftError, session: str, outage: Outage) -> None:
        """Wait, or join anew, as the error asks; raise it when it is not one that passes."""
        if isinstance(error, UnknownSession):
            await self._rejoin(session)
            return
        if not isinstance(error, Unreachable | BrokenTransfer | BadDigest):
            raise error
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

    def _count(self, kind: str, up: Message | None, down: Message | None) -> None:
        if up is not None:
            self._metrics.transferred.labels(kind, "up").inc(up.ByteSize() + FRAME_BYTES)
        if down is not None:
            self._metrics.transferred.labels(kind, "down").inc(down.ByteSize() + FRAME_BYTES)
