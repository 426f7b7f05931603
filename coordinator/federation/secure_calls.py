"""The four calls of secure aggregation: convert, authenticate, delegate."""

from abc import ABC, abstractmethod
from typing import Any

from fedpft.v1 import secure_pb2
from google.protobuf.message import Message

from common.errors import BadShare
from common.transport import secure_wire, wire
from common.transport.rpc import answers
from coordinator.context import RunContext
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.sessions import Session
from coordinator.federation.turns import Turns


class SecureCalls(ABC):
    """A part of the federation's servicer."""

    _run: RunContext
    _turns: Turns
    _exchange: SecureExchange

    @abstractmethod
    def _session(self, token: str, context: Any) -> Session: ...

    @abstractmethod
    def _count(
        self, session: Session, kind: str, up: Message | None, down: Message | None = None
    ) -> None: ...

    @answers
    async def OfferKeys(
        self, request: secure_pb2.OfferKeysRequest, context: Any
    ) -> secure_pb2.OfferKeysResponse:
        reply = secure_pb2.OfferKeysResponse()
        reply.duplicate = self._said(request, context, reply)
        return reply

    @answers
    async def OfferShares(
        self, request: secure_pb2.OfferSharesRequest, context: Any
    ) -> secure_pb2.OfferSharesResponse:
        reply = secure_pb2.OfferSharesResponse()
        reply.duplicate = self._said(request, context, reply)
        return reply

    @answers
    async def EndorseSurvivors(
        self, request: secure_pb2.EndorseSurvivorsRequest, context: Any
    ) -> secure_pb2.EndorseSurvivorsResponse:
        reply = secure_pb2.EndorseSurvivorsResponse()
        reply.duplicate = self._said(request, context, reply)
        return reply

    @answers
    async def OpenShares(
        self, request: secure_pb2.OpenSharesRequest, context: Any
    ) -> secure_pb2.OpenSharesResponse:
        reply = secure_pb2.OpenSharesResponse()
        reply.duplicate = self._said(request, context, reply)
        return reply

    def _said(self, request: Any, context: Any, reply: Message) -> bool:
        """What a worker says, kept; whether it was here before."""
        session = self._session(request.session, context)
        said = secure_wire.said_from_pb(request, session.worker)
        try:
            duplicate = self._exchange.take(session.worker, said)
        except BadShare as error:
            text = f"round {said.round}: {wire.one_line(str(error))}"
            self._run.events.record("secure_refused", text, said.round, session.worker)
            self._turns.refused(session.worker, said.round, wire.one_line(str(error)))
            raise
        self._count(session, "secure", request, reply)
        return duplicate
