"""The four calls of secure aggregation: convert, authenticate, delegate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from fedpft.v1 import secure_pb2
from google.protobuf.message import Message

from common.errors import BadShare
from common.transport import secure_wire, wire
from common.transport.rpc import answers
from coordinator.context import RunContext
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.sessions import Session
from coordinator.federation.turns import Turns

T = TypeVar("T", bound=Message)


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
        return self._said(request, context, secure_pb2.OfferKeysResponse)

    @answers
    async def OfferShares(
        self, request: secure_pb2.OfferSharesRequest, context: Any
    ) -> secure_pb2.OfferSharesResponse:
        return self._said(request, context, secure_pb2.OfferSharesResponse)

    @answers
    async def EndorseSurvivors(
        self, request: secure_pb2.EndorseSurvivorsRequest, context: Any
    ) -> secure_pb2.EndorseSurvivorsResponse:
        return self._said(request, context, secure_pb2.EndorseSurvivorsResponse)

    @answers
    async def OpenShares(
        self, request: secure_pb2.OpenSharesRequest, context: Any
    ) -> secure_pb2.OpenSharesResponse:
        return self._said(request, context, secure_pb2.OpenSharesResponse)

    def _said(self, request: Any, context: Any, receipt: Callable[..., T]) -> T:
        """What a worker says, kept; and its receipt, which tells whether it was here before."""
        session = self._session(request.session, context)
        said = secure_wire.said_from_pb(request, session.worker)
        try:
            duplicate = self._exchange.take(session.worker, said)
        except BadShare as error:
            text = f"round {said.round}: {wire.one_line(str(error))}"
            self._run.events.record("secure_refused", text, said.round, session.worker)
            self._turns.refused(session.worker, said.round, wire.one_line(str(error)))
            raise
        reply = receipt(duplicate=duplicate)
        self._count(session, "secure", request, reply)
        return reply
