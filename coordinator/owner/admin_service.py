"""The servicer of what a run's owner calls."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from fedpft.v1 import admin_pb2, admin_pb2_grpc

from common.run_status import RunStatus
from common.transport import admin_wire
from common.transport.rpc import answers
from coordinator.storage.event_log import EventLog

# Who has asked for the status twice, the last time so lately, watches; the last look is waited for as long.
_LATELY = 5.0
_PAUSE = 0.05


class _Watchers:
    """Who looks at the status again and again, and whether they have seen how the run ended."""

    def __init__(self) -> None:
        # By connection: looks, the time of the last one, and whether the run was over then.
        self._looks: dict[str, tuple[int, float, bool]] = {}

    def note(self, peer: str, over: bool) -> None:
        """A look."""
        now = asyncio.get_running_loop().time()
        looks, _, _ = self._looks.get(peer, (0, 0.0, False))
        lately = {p: look for p, look in self._looks.items() if now - look[1] < _LATELY}
        self._looks = lately | {peer: (looks + 1, now, over)}

    @property
    def waiting(self) -> bool:
        """Whether there are some who have not seen it."""
        now = asyncio.get_running_loop().time()
        return any(
            looks > 1 and now - last < _LATELY and not over for looks, last, over in self._looks.values()
        )


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """What the run's owner calls."""

    def __init__(
        self, status: Callable[[], RunStatus], events: EventLog, stop: Callable[[str], None]
    ) -> None:
        self._status, self._events, self._stop = status, events, stop
        self._watchers = _Watchers()

    def _looked_at(self, context: Any) -> RunStatus:
        status = self._status()
        self._watchers.note(context.peer(), status.phase.over)
        return status

    async def seen_to_the_end(self) -> None:
        """Once the run is over: wait, but not for long, until who watches it has seen that it is."""
        while self._watchers.waiting:
            await asyncio.sleep(_PAUSE)

    @answers
    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: Any
    ) -> admin_pb2.GetStatusResponse:
        return admin_wire.status_to_pb(self._looked_at(context))

    @answers
    async def ReadStatus(
        self, request: admin_pb2.ReadStatusRequest, context: Any
    ) -> AsyncIterator[admin_pb2.ReadStatusResponse]:
        for part in admin_wire.status_parts(self._looked_at(context)):
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
