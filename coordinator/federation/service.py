"""The servicers: convert, authenticate, delegate. No maths here."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from fedpft.v1 import federation_pb2, federation_pb2_grpc
from google.protobuf.message import Message
from grpc import aio

from common.errors import (
    BadMessage,
    BrokenTransfer,
    SessionReplaced,
    UnknownArtifact,
)
from common.records import Chunk, EvaluateTask, JoinReply, UpdateHeader
from common.runtime.fault_points import Point, reach
from common.transport import class_wire, score_wire, wire
from common.transport.chunk_messages import decode_submission, encode_download, encoded_bytes
from common.transport.chunks import read_chunks
from common.transport.rpc import FRAME_BYTES, STALL_SECONDS, answers
from coordinator.context import RunContext
from coordinator.federation.authorization import PUBLISHED, Admission
from coordinator.federation.contest import require_only, tell_replaced
from coordinator.federation.inbox import Inbox
from coordinator.federation.joining import require_able
from coordinator.federation.offer_calls import OfferCalls
from coordinator.federation.offers import Offers, require_run
from coordinator.federation.outcomes import tell_received
from coordinator.federation.rate_limits import RateLimiter
from coordinator.federation.refusals import Refusals
from coordinator.federation.rounds import Returned
from coordinator.federation.secure_calls import SecureCalls
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.sessions import Session, Sessions
from coordinator.federation.transfer_slots import TransferSlots

log = logging.getLogger(__name__)

Submission = federation_pb2.SubmitUpdateRequest | Chunk


class FederationService(OfferCalls, SecureCalls, federation_pb2_grpc.FederationServiceServicer):
    """What workers call."""

    def __init__(
        self, run: RunContext, sessions: Sessions, inbox: Inbox, exchange: SecureExchange | None = None
    ) -> None:
        self._run, self._sessions, self._inbox, self._turns = run, sessions, inbox, inbox.turns
        self._exchange = exchange or SecureExchange(run.store, run.config.privacy.keys_seconds)
        self._store, self._events = run.store, run.events
        self._traffic, self._metrics = run.traffic, run.metrics
        self._limits = limits = run.config.limits
        self._admission = Admission(run.config.admission.workers)
        self.offers = Offers(run, sessions)
        self._rate_limiter = RateLimiter(limits.calls_per_second, limits.streams)
        # Memory grows with concurrent streams, so their number is capped and the rest waits.
        self._slots = TransferSlots(run.config.server.max_transfers, STALL_SECONDS)
        self._refusals = Refusals(run, self._turns)

    @answers
    async def Join(self, request: federation_pb2.JoinRequest, context: Any) -> federation_pb2.JoinResponse:
        joining = wire.join_request_from_pb(request)
        self._require(joining.worker, context)
        require_able(self._run, self._sessions, joining)
        await require_only(self._run, self._sessions, joining, context)
        session, version = self._sessions.join(joining)
        self.offers.joined(joining.worker)
        self._store.remember_worker(joining.worker, joining.examples, joining.software)
        self._store.validations.remember(joining.worker, session.validation)
        self._turns.joined(joining.worker, session.restarted)
        self._inbox.scores.joined(joining.worker, session.validation > 0)
        self._metrics.joins.inc()
        if session.first_for_a_while:
            with_what = "" if self._run.spec.secure else f" with {joining.examples} examples"
            self._events.record(
                "worker_joined",
                f"worker {joining.worker} joined{with_what}",
                self._traffic.round,
                joining.worker,
                examples=joining.examples,
            )
        reply = JoinReply(session.token, version, self._run.spec, self._sessions.heartbeat_seconds)
        message = wire.join_reply_to_pb(reply)
        self._count(session, "control", request, message)
        return message

    @answers
    async def DescribeRun(
        self, request: federation_pb2.DescribeRunRequest, context: Any
    ) -> federation_pb2.DescribeRunResponse:
        self._require(wire.worker_name(request.worker), context)
        return federation_pb2.DescribeRunResponse(run=wire.run_spec_to_pb(self._run.spec))

    @answers
    async def TellClasses(
        self, request: federation_pb2.TellClassesRequest, context: Any
    ) -> AsyncIterator[federation_pb2.TellClassesResponse]:
        told = class_wire.class_counts_from_pb(request)
        self._require(told.worker, context)
        self._traffic.up(told.worker, "control", request.ByteSize() + FRAME_BYTES)
        if not self._run.spec.asks_classes:
            return
        with self._rate_limiter.stream(told.worker):
            async for waiting_for in self._sessions.census.take(told, self._limits.workers):
                message = federation_pb2.TellClassesResponse(waiting_for=waiting_for)
                self._traffic.down(told.worker, "control", message.ByteSize() + FRAME_BYTES)
                yield message

    @answers
    async def WatchTasks(
        self, request: federation_pb2.WatchTasksRequest, context: Any
    ) -> AsyncIterator[federation_pb2.WatchTasksResponse]:
        session = self._session(request.session, context)
        self._count(session, "control", request)
        with self._rate_limiter.stream(session.worker):
            async for task in self._sessions.tasks(session):
                message = wire.task_to_pb(task)
                self._count(session, "control", None, message)
                yield message

    @answers
    async def Heartbeat(
        self, request: federation_pb2.HeartbeatRequest, context: Any
    ) -> federation_pb2.HeartbeatResponse:
        session = self._session(request.session, context)
        reply = federation_pb2.HeartbeatResponse()
        self._count(session, "control", request, reply)
        progress = wire.progress_from_pb(request.progress)
        if self._sessions.report(session, progress):
            self._inbox.note(Returned(session.worker))
            self._events.record(
                "worker_returned",
                f"worker {session.worker} is heard again",
                self._traffic.round,
                session.worker,
            )
        self._turns.heard(session.worker, progress)
        return reply

    @answers
    async def DownloadArtifact(
        self, request: federation_pb2.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[bytes]:
        """Answers are encoded already: see `serve_federation`."""
        session = self._session(request.session, context)
        artifact = self._store.artifacts.get(request.sha256)
        if artifact.kind not in PUBLISHED:
            raise UnknownArtifact(f"there is no artifact {request.sha256[:12]}…")
        self._store.artifacts.record_served(artifact.sha256)
        self._count(session, artifact.kind, request)
        self._turns.queued(session.worker)
        with self._rate_limiter.stream(session.worker):
            async with self._slots.slot() as slot:
                for chunk in read_chunks(self._store.artifacts.path(artifact.sha256), request.offset):
                    message = encode_download(chunk)
                    self._traffic.down(session.worker, artifact.kind, len(message) + FRAME_BYTES)
                    reach(Point.CHUNK_SENT, artifact.kind)
                    with slot.taking():
                        yield message
                    # A worker that takes its chunks is alive, also when nothing else of it gets through.
                    self._sessions.find(session.token, spoke=False)
                    reached = chunk.offset + len(chunk.data)
                    self._turns.advanced(session.worker, artifact.sha256, reached)

    @answers
    async def OfferUpdate(
        self, request: federation_pb2.OfferUpdateRequest, context: Any
    ) -> federation_pb2.OfferUpdateResponse:
        header = wire.header_from_pb(request.header)
        session = self._session(header.session, context)
        reply = federation_pb2.OfferUpdateResponse()
        with self._refusals.of_update(session.worker, header.round):
            if self._inbox.admit(session.worker, session.examples, header):
                reply.offset = self._inbox.held(session.worker, header)
            else:
                reply.duplicate = True
                self._metrics.updates.labels("duplicate").inc()
                self._sessions.release(session.worker, header.round)
        self._count(session, "update", request, reply)
        return reply

    @answers
    async def SubmitUpdate(
        self, request_iterator: AsyncIterator[Submission], context: Any
    ) -> federation_pb2.SubmitUpdateResponse:
        messages = aiter(request_iterator)
        first = await _next(messages)
        if first is None or isinstance(first, Chunk) or first.WhichOneof("part") != "header":
            raise BadMessage("a submission begins with its header")
        header = wire.header_from_pb(first.header)
        session = self._session(header.session, context)
        self._count(session, "update", first)
        with self._rate_limiter.stream(session.worker):
            duplicate = await self._take(session, header, messages)
        self._metrics.updates.labels("duplicate" if duplicate else "accepted").inc()
        self._sessions.release(session.worker, header.round)
        if not duplicate:
            tell_received(self._run, session.worker, header)
        reply = federation_pb2.SubmitUpdateResponse(duplicate=duplicate)
        self._count(session, "update", None, reply)
        return reply

    @answers
    async def SubmitScores(
        self, request: federation_pb2.SubmitScoresRequest, context: Any
    ) -> federation_pb2.SubmitScoresResponse:
        told = score_wire.scores_from_pb(request)
        session = self._session(told.session, context)
        with self._refusals.of_scores(session.worker, told.round):
            duplicate = not self._inbox.scores.admit(session.worker, session.validation, told)
            if not duplicate:
                self._inbox.scores.commit(session.worker, told.round, told.scores)
        self._metrics.scores.labels("duplicate" if duplicate else "accepted").inc()
        self._sessions.release(session.worker, told.round, EvaluateTask)
        if not duplicate:
            text = (
                f"round {told.round}: scores of worker {session.worker}, on {told.scores.examples} examples"
            )
            self._events.record("scores_received", text, told.round, session.worker)
        reply = federation_pb2.SubmitScoresResponse(duplicate=duplicate)
        self._count(session, "scores", request, reply)
        return reply

    async def _take(
        self,
        session: Session,
        header: UpdateHeader,
        messages: AsyncIterator[Submission],
    ) -> bool:
        """From the header to the record; returns whether the same update was here before."""
        async with self._inbox.one_submission(session.worker):
            with self._refusals.of_update(session.worker, header.round):
                duplicate = not self._inbox.admit(session.worker, session.examples, header)
                if not duplicate:
                    await self._receive(session, header, messages)
                    await asyncio.to_thread(self._inbox.keep, session.worker, header)
                    self._inbox.commit(session.worker, header)
        return duplicate

    async def _receive(
        self,
        session: Session,
        header: UpdateHeader,
        messages: AsyncIterator[Submission],
    ) -> None:
        """Spool an update's chunks, durably; they end when its header does not fit or it is too slow."""
        with self._inbox.receive(session.worker, header) as writer:
            rate = self._limits.upload_bytes_per_second
            begun = fits = False
            try:
                async with asyncio.timeout(STALL_SECONDS + header.size / rate):
                    while (message := await _next(messages)) is not None:
                        chunk = message if isinstance(message, Chunk) else wire.chunk_from_pb(message.chunk)
                        self._traffic.up(session.worker, "update", encoded_bytes(chunk) + FRAME_BYTES)
                        if not begun:
                            writer.go_back(chunk.offset)
                            begun = True
                            # What an interrupted upload left may be damaged: its digest will tell.
                            fits = chunk.offset > 0
                        writer.write(chunk)
                        fits = fits or self._inbox.header_fits(session.worker, header)
                        self._sessions.find(session.token)
                        reached = chunk.offset + len(chunk.data)
                        self._turns.advanced(session.worker, header.sha256, reached)
            except TimeoutError:
                raise BrokenTransfer(
                    f"slower than {rate:g} bytes a second; go on where it broke off"
                ) from None
            self._inbox.received(session.worker)
            await asyncio.to_thread(writer.commit)

    @answers
    async def Leave(self, request: federation_pb2.LeaveRequest, context: Any) -> federation_pb2.LeaveResponse:
        session = self._session(request.session, context)
        reply = federation_pb2.LeaveResponse()
        self._count(session, "control", request, reply)
        reason = wire.one_line(request.reason)
        self._sessions.leave(session, reason)
        self._turns.left(session.worker, f"left: {reason}")
        told = f"worker {session.worker} left: {reason}", self._traffic.round, session.worker
        if self._sessions.over:
            self._events.record("worker_left", *told)
        else:
            self._events.record("worker_quit", *told)
        return reply

    def _require(self, worker: str, context: Any) -> None:
        """Raise UnknownRun, NotAllowed or TooMany unless the worker may call now, of this run."""
        require_run(self._run.spec.run_id, context)
        self._admission.require(worker, context)
        self._rate_limiter.call(worker)

    def _session(self, token: str, context: Any) -> Session:
        """The caller's session. Raises UnknownRun, UnknownSession, SessionReplaced, TooMany, NotAllowed for
        another's."""
        require_run(self._run.spec.run_id, context)
        try:
            session = self._sessions.find(token)
        except SessionReplaced:
            tell_replaced(self._run, self._sessions, token, context)
            raise
        self._admission.require(session.worker, context)
        self._rate_limiter.call(session.worker)
        return session

    def _count(self, session: Session, kind: str, up: Message | None, down: Message | None = None) -> None:
        if up is not None:
            self._traffic.up(session.worker, kind, up.ByteSize() + FRAME_BYTES)
        if down is not None:
            self._traffic.down(session.worker, kind, down.ByteSize() + FRAME_BYTES)


def serve_federation(server: aio.Server, service: Any) -> None:
    """Have `server` answer what workers call; calls that carry chunks without protobuf's copies of them.

    `service` has every call as a method.
    """
    federation_pb2_grpc.add_FederationServiceServicer_to_server(service, server)
    request = federation_pb2.DownloadArtifactRequest.FromString
    reply: Any = federation_pb2.SubmitUpdateResponse.SerializeToString
    # In place of those that were just generated.
    server.add_registered_method_handlers(
        federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name,
        {
            "DownloadArtifact": grpc.unary_stream_rpc_method_handler(service.DownloadArtifact, request),
            "SubmitUpdate": grpc.stream_unary_rpc_method_handler(
                service.SubmitUpdate, decode_submission, reply
            ),
        },
    )


async def _next(
    messages: AsyncIterator[Submission],
) -> Submission | None:
    """The stream's next message, None at its end. Raises BrokenTransfer when none comes for too long."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            return await anext(messages, None)
    except TimeoutError:
        raise BrokenTransfer(f"nothing came for {STALL_SECONDS:.0f} s") from None
