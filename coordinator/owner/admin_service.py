"""The servicer of what a run's owner calls."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fedpft.v1 import admin_pb2, admin_pb2_grpc

from common.run_status import RunStatus
from common.transport import admin_wire
from common.transport.rpc import answers
from coordinator.storage.event_log import EventLog


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """What the run's owner calls."""

    def __init__(
        self, status: Callable[[], RunStatus], events: EventLog, stop: Callable[[str], None]
    ) -> None:
        self._status, self._events, self._stop = status, events, stop

    @answers
    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: Any
    ) -> admin_pb2.GetStatusResponse:
        return admin_wire.status_to_pb(self._status())

    @answers
    async def ReadStatus(
        self, request: admin_pb2.ReadStatusRequest, context: Any
    ) -> AsyncIterator[admin_pb2.ReadStatusResponse]:
        for part in admin_wire.status_parts(self._status()):
            yield part

    @answers
    async def WatchEvents(
        self, request: admin_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[admin_pb2.WatchEventsResponse]:
        async for event in self._events.follow(request.after):
            yield admin_wire.event_to_pb(event)

    @answers
    async def StopRun(self, request: admin_pb2.StopRunRequest, context: Any) -> admin_pb2.StopRunResponse:
        self._stop("the owner asked for it")
        return admin_pb2.StopRunResponse()
