"""The AdminService as its callers see it."""

from collections.abc import AsyncIterator
from typing import Any

from fedpft.v1 import admin_pb2, admin_pb2_grpc
from grpc import StatusCode, aio

from common.address import Address
from common.run_status import Event, RunStatus
from common.transport import admin_wire
from common.transport.rpc import RUN_KEY, call, domain_error, readable
from common.trust.tls import Tls
from coordinator.owner.connection import Connection

_CALL_SECONDS = 10.0


class Admin(Connection):
    """A connection to a coordinator's AdminService; an async context. Calls raise domain errors."""

    def __init__(self, address: Address, tls: Tls | None = None, run: str = "") -> None:
        """`run` is the id of the run that is meant, of a server that holds many."""
        super().__init__(address, tls)
        self._about = ((RUN_KEY, run),) if run else ()
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(self._channel)

    async def status(self) -> RunStatus:
        """Where the run stands."""
        try:
            request = admin_pb2.ReadStatusRequest()
            return admin_wire.status_of(
                [
                    part
                    async for part in self._stub.ReadStatus(
                        request, timeout=_CALL_SECONDS, metadata=self._about
                    )
                ]
            )
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.UNIMPLEMENTED:
                raise domain_error(error) from None
        # A coordinator of an earlier version.
        whole = admin_pb2.GetStatusRequest()
        return admin_wire.status_from_pb(
            await call(self._stub.GetStatus(whole, timeout=_CALL_SECONDS, metadata=self._about))
        )

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """What has happened and what happens, until the coordinator ends."""
        try:
            async for message in self._stub.WatchEvents(
                admin_pb2.WatchEventsRequest(after=after), metadata=self._about
            ):
                yield admin_wire.event_from_pb(readable(message))
        except aio.AioRpcError as error:
            raise domain_error(error) from None

    async def stop(self) -> None:
        """End the coordinator at once; started again, it goes on from the last committed step."""
        await call(
            self._stub.StopRun(admin_pb2.StopRunRequest(), timeout=_CALL_SECONDS, metadata=self._about)
        )
