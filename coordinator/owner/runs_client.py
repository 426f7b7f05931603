"""The RunsService as its callers see it."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from fedpft.v1 import runs_pb2, runs_pb2_grpc
from grpc import StatusCode, aio

from common.address import Address
from common.errors import FedPftError, Unreachable, WrongService
from common.hosted_runs import RunEntry, Submission
from common.transport import runs_wire
from common.transport.rpc import domain_error, new_channel, readable
from common.trust.tls import Tls

_CALL_SECONDS = 20.0
# An answer that was lost is asked for again: under its request id a submission is one run.
_TRIES = 3
_PAUSE_SECONDS = 1.0


class Runs:
    """A connection to a server's RunsService; an async context. Calls raise domain errors."""

    def __init__(self, address: Address, tls: Tls | None = None) -> None:
        self._channel = new_channel(address, tls=tls)
        self._stub: Any = runs_pb2_grpc.RunsServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def submit(self, submission: Submission) -> str:
        """The run's id; the run is durable."""
        for attempt in range(1, _TRIES + 1):
            try:
                request = runs_wire.submission_to_pb(submission)
                reply = readable(await self._stub.SubmitRun(request, timeout=_CALL_SECONDS))
                return str(reply.run)
            except aio.AioRpcError as error:
                found = _domain_error(error)
                if attempt == _TRIES or not isinstance(found, Unreachable) or isinstance(found, WrongService):
                    raise found from None
                await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError

    async def entries(self) -> list[RunEntry]:
        """Every run, oldest first."""
        found = self._stub.ListRuns(runs_pb2.ListRunsRequest(), timeout=_CALL_SECONDS)
        try:
            return [runs_wire.entry_from_pb(readable(message)) async for message in found]
        except aio.AioRpcError as error:
            raise _domain_error(error) from None

    async def cancel(self, run: str) -> None:
        """End a run for good."""
        try:
            await self._stub.CancelRun(runs_pb2.CancelRunRequest(run=run), timeout=_CALL_SECONDS)
        except aio.AioRpcError as error:
            raise _domain_error(error) from None

    async def resume(self, run: str) -> None:
        """Have a run that failed or was cancelled go on."""
        try:
            await self._stub.ResumeRun(runs_pb2.ResumeRunRequest(run=run), timeout=_CALL_SECONDS)
        except aio.AioRpcError as error:
            raise _domain_error(error) from None

    async def log(self, run: str, follow: bool) -> AsyncIterator[str]:
        """Pieces of the run's log; with `follow` until the run is over."""
        try:
            async for message in self._stub.ReadLog(runs_pb2.ReadLogRequest(run=run, follow=follow)):
                yield readable(message).text
        except aio.AioRpcError as error:
            raise _domain_error(error) from None


def _domain_error(error: aio.AioRpcError) -> FedPftError:
    if error.code() is StatusCode.UNIMPLEMENTED:
        return WrongService("this coordinator holds one run of its own; `fedpft serve` holds many")
    return domain_error(error)
