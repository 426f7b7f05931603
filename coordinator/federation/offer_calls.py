"""The calls by which workers find a run, or decline it: convert, authenticate, delegate."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from fedpft.v1 import federation_pb2

from common.transport import offer_wire
from common.transport.rpc import FRAME_BYTES, answers
from coordinator.context import RunContext
from coordinator.federation.authorization import require_speaker
from coordinator.federation.offers import Offers
from coordinator.federation.rate_limits import RateLimiter


class OfferCalls(ABC):
    """A part of the federation's servicer."""

    offers: Offers
    _run: RunContext
    _rate_limiter: RateLimiter

    @abstractmethod
    def _require(self, worker: str, context: Any) -> None: ...

    @answers
    async def FindRun(
        self, request: federation_pb2.FindRunRequest, context: Any
    ) -> AsyncIterator[federation_pb2.FindRunResponse]:
        asked = offer_wire.find_request_from_pb(request)
        require_speaker(asked.worker, context)
        self._rate_limiter.call(asked.worker)
        self._run.traffic.up(asked.worker, "control", request.ByteSize() + FRAME_BYTES)
        with self._rate_limiter.stream(asked.worker):
            async for found in self.offers.found(asked):
                message = offer_wire.found_to_pb(found)
                self._run.traffic.down(asked.worker, "control", message.ByteSize() + FRAME_BYTES)
                yield message

    @answers
    async def DeclineRun(
        self, request: federation_pb2.DeclineRunRequest, context: Any
    ) -> federation_pb2.DeclineRunResponse:
        worker, state, reason = offer_wire.decline_from_pb(request)
        self._require(worker, context)
        self.offers.decline(worker, state, reason)
        reply = federation_pb2.DeclineRunResponse()
        self._run.traffic.up(worker, "control", request.ByteSize() + FRAME_BYTES)
        self._run.traffic.down(worker, "control", reply.ByteSize() + FRAME_BYTES)
        return reply
