"""The coordinator as a worker sees it: stubs, deadlines, resumable transfers, reconnection."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedpft.v1 import federation_pb2
from google.protobuf.message import Message
from grpc import StatusCode, aio

from common.errors import BadDigest, SecureRefused
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
from common.run_offers import FindRequest
from common.runtime.fault_points import Point, reach
from common.secagg.news import Said, SecureNews
from common.storage.tensors import header_of
from common.transport import class_wire, offer_wire, score_wire, secure_wire, wire
from common.transport.chunk_messages import encoded_bytes, submission
from common.transport.chunks import ChunkWriter, read_chunks, verify
from common.transport.rpc import FRAME_BYTES, domain_error, readable
from worker.calls import PersistentCalls
from worker.connection import Endpoint
from worker.metrics import Metrics
from worker.retries import Outage, unstalled
from worker.secure_policy import require_same_sums
from worker.sent_log import SentLog

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that a transfer of any size may take; one that has come further goes on in another call. The stream
# of tasks is opened anew after as long.
_TRANSFER_SECONDS = 3600.0
_WATCH_SECONDS = 3600.0
_GOODBYE_SECONDS = 1.0

# The protocol in which interrupted uploads go on.
_OFFERS = 2


class CoordinatorClient(PersistentCalls):
    """What a worker asks of the coordinator, by calls that outlive interruptions."""

    def __init__(
        self, endpoint: Endpoint, joining: JoinRequest, metrics: Metrics, sent: SentLog | None = None
    ) -> None:
        super().__init__(endpoint, metrics, sent)
        # Another process of this name draws another.
        self._joining = replace(joining, process=joining.process or secrets.token_hex(8))
        self._protocol = PROTOCOL_MIN
        self._run: RunSpec | None = None
        self.known: RunSpec | None = None
        """The run as it was told before it was joined."""
        self._sealed = False
        self._joins = asyncio.Lock()

    async def found(self, state: str) -> AsyncGenerator[RunSpec | str, None]:
        """A run that this worker may take part in, or what it waits for; then every change.

        Ends where the coordinator is older than the question.
        """
        j = self._joining
        asked = FindRequest(j.worker, j.protocol_min, j.protocol_max, j.software, state)
        async for message in self._followed("FindRun", lambda: offer_wire.find_request_to_pb(asked)):
            yield offer_wire.found_from_pb(message)

    def expect(self, run_id: str) -> None:
        """The run that is spoken of from now on."""
        self._run_id = run_id

    async def decline(self, state: str, reason: str) -> None:
        """Take no part in the run, and let its owner know why, if the coordinator listens and knows how."""
        request = offer_wire.decline_to_pb(self._joining.worker, state, reason)
        try:
            await self._call("DeclineRun", "control", request, _GOODBYE_SECONDS)
        except aio.AioRpcError as error:
            log.debug("decline: %s", domain_error(error))

    @property
    def run(self) -> RunSpec | None:
        """The run that was joined."""
        return self._run

    async def join(self) -> JoinReply:
        """Enter the run.

        Raises ProtocolMismatch, NotAllowed, NameTaken, and Unreachable after `patience` seconds.
        """
        return await self._persist(lambda _: self._join())

    async def _join(self) -> JoinReply:
        request = wire.join_request_to_pb(self._joining)
        message = await self._call("Join", "control", request)
        reply = wire.join_reply_from_pb(message)
        if self._run_id and reply.run.run_id != self._run_id:
            raise self._another_run()
        if self._run is not None:
            require_same_sums(self._run, reply.run)
        self._run = reply.run
        self._session, self._run_id, self._protocol = reply.session, reply.run.run_id, reply.protocol
        return reply

    async def describe(self) -> RunSpec:
        """What the run is, before it is entered."""
        request = federation_pb2.DescribeRunRequest(worker=self._joining.worker)
        reply = await self._persist(lambda _: self._call("DescribeRun", "control", request))
        self.known = wire.run_spec_from_pb(reply.run)
        return self.known

    async def described(self) -> RunSpec | None:
        """The same; None of a coordinator that is older than the question."""

        async def ask(outage: Outage) -> RunSpec | None:
            request = federation_pb2.DescribeRunRequest(worker=self._joining.worker)
            try:
                self.known = wire.run_spec_from_pb((await self._call("DescribeRun", "control", request)).run)
                return self.known
            except aio.AioRpcError as error:
                if error.code() is not StatusCode.UNIMPLEMENTED:
                    raise
                return None

        return await self._persist(ask)

    async def tell_classes(self, told: ClassCounts) -> None:
        """Tell the names and numbers of this worker's classes; returns when it may join.

        Raises DataError when the run does not know one of them, RunFailed.
        """
        self._require_unsealed("the numbers of its classes")
        request = class_wire.class_counts_to_pb(told)
        async for message in self._followed("TellClasses", lambda: request):
            log.info("waiting: %s", message.waiting_for)

    async def _rejoin(self, forgotten: str) -> None:
        """Join anew, once, however many calls noticed that the session is gone."""
        async with self._joins:
            if self._session == forgotten:
                log.info("the coordinator does not know this session any more; joining again")
                await self.join()

    async def tasks(self) -> AsyncIterator[Task | SecureNews]:
        """Tasks, and news beside them, as the coordinator pushes them, across reconnections, up to the
        last."""

        def request() -> Message:
            return federation_pb2.WatchTasksRequest(session=self._session)

        async for message in self._followed("WatchTasks", request):
            yield wire.task_from_pb(message)

    async def _followed(self, name: str, request_now: Callable[[], Message]) -> AsyncIterator[Any]:
        """Messages of a stream as they come, across reconnections, up to its end."""
        outage = self._outage()
        while True:
            session, shown = self._session, self._connection.shown
            try:
                request = request_now()
                self._about_to_send(name, "control", request)
                self._count("control", request, None)
                reach(Point.CALL_MADE, name)
                call = getattr(self._connection.stub, name)
                async for message in call(request, timeout=_WATCH_SECONDS, metadata=self._metadata()):
                    outage = self._outage()
                    self._heard()
                    self._count("control", None, readable(message))
                    reach(Point.REPLY_RECEIVED, name)
                    yield message
                return
            except aio.AioRpcError as error:
                if name == "FindRun" and error.code() is StatusCode.UNIMPLEMENTED:
                    return
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
                    request, timeout=_TRANSFER_SECONDS, metadata=self._metadata()
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

        Raises StaleRound when its round is over, BadUpdate or BadMessage when the coordinator refuses it, and
        SecureRefused for one without masks in a run that takes sums only.
        """
        if self._sealed:
            await asyncio.to_thread(_require_masked, header, path)

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
                stream(), timeout=_TRANSFER_SECONDS, metadata=self._metadata()
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
        self._require_unsealed("its scores")

        async def send(outage: Outage) -> bool:
            request = score_wire.scores_to_pb(replace(scores, session=self._session))
            return bool((await self._call("SubmitScores", "scores", request)).duplicate)

        return await self._persist(send)

    async def say(self, said: Said) -> None:
        """Take a step of secure aggregation.

        Raises StaleRound when it is not due, BadShare or BadMessage when it is refused.
        """

        async def send(outage: Outage) -> None:
            name, request = secure_wire.said_to_pb(replace(said, session=self._session))
            await self._call(name, "secure", request)

        await self._persist(send)

    def seal(self) -> None:
        """From now on nothing goes out that is this worker's alone: no numbers of examples, no scores, and
        updates with masks only, whoever asks."""
        self._joining = replace(self._joining, examples=0, validation=0)
        self._sealed = True

    def _require_unsealed(self, what: str) -> None:
        if self._sealed:
            raise SecureRefused(f"the run takes sums only: this worker does not tell {what}")

    async def leave(self, reason: str) -> None:
        """Say goodbye, if the coordinator still listens."""
        request = federation_pb2.LeaveRequest(session=self._session, reason=reason)
        try:
            await self._call("Leave", "control", request, _GOODBYE_SECONDS)
        except aio.AioRpcError as error:
            log.debug("leave: %s", domain_error(error))


def _require_masked(header: UpdateHeader, path: Path) -> None:
    """Blocking. Raises SecureRefused for an update that could be read: by its header, or its file's."""
    told = header.examples or header.loss or header.seconds or header.targets
    plain = any(spec.dtype.is_floating_point for spec in header_of(path).values())
    if told or plain or not header.context:
        raise SecureRefused("the run takes sums only: this worker sends no update without masks")
