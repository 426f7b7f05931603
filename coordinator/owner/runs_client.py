"""The RunsService as its callers see it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fedpft.v1 import runs_pb2, runs_pb2_grpc
from grpc import StatusCode, aio

from common.address import Address
from common.errors import Unreachable, WrongService
from common.hosted_runs import RunEntry, Submission
from common.transport import runs_wire
from common.transport.rpc import domain_error, readable
from common.trust.tls import Tls
from coordinator.owner.connection import Connection

_CALL_SECONDS = 20.0
# An answer that was lost is asked for again: under its request id a submission is one run.
_TRIES = 3
_PAUSE_SECONDS = 1.0


class Runs(Connection):
    """A connection to a server's RunsService; an async context. Calls raise domain errors."""

    def __init__(self, address: Address, tls: Tls | None = None) -> None:
        super().__init__(address, tls)
        self._stub: Any = runs_pb2_grpc.RunsServiceStub(self._channel)

    async def submit(self, submission: Submission) -> str:
        """The run's id; the run is durable."""
        for attempt in range(1, _TRIES + 1):
            try:
                with _domain_errors():
                    request = runs_wire.submission_to_pb(submission)
                    reply = readable(await self._stub.SubmitRun(request, timeout=_CALL_SECONDS))
                    return str(reply.run)
            except Unreachable as error:
                if attempt == _TRIES or isinstance(error, WrongService):
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError

    async def entries(self) -> list[RunEntry]:
        """Every run, oldest first."""
        found = self._stub.ListRuns(runs_pb2.ListRunsRequest(), timeout=_CALL_SECONDS)
        with _domain_errors():
            return [runs_wire.entry_from_pb(readable(message)) async for message in found]

    async def cancel(self, run: str) -> None:
        """End a run for good."""
        with _domain_errors():
            await self._stub.CancelRun(runs_pb2.CancelRunRequest(run=run), timeout=_CALL_SECONDS)

    async def resume(self, run: str) -> None:
        """Have a run that failed or was cancelled go on."""
        with _domain_errors():
            await self._stub.ResumeRun(runs_pb2.ResumeRunRequest(run=run), timeout=_CALL_SECONDS)

    async def log(self, run: str, follow: bool) -> AsyncIterator[str]:
        """Pieces of the run's log; with `follow` until the run is over."""
        with _domain_errors():
            async for message in self._stub.ReadLog(runs_pb2.ReadLogRequest(run=run, follow=follow)):
                yield readable(message).text


@contextmanager
def _domain_errors() -> Iterator[None]:
    """Around calls: domain errors instead of gRPC's."""
    try:
        yield
    except aio.AioRpcError as error:
        if error.code() is StatusCode.UNIMPLEMENTED:
            what = "this coordinator holds one run of its own; `fedpft serve` holds many"
            raise WrongService(what) from None
        raise domain_error(error) from None
