"""The servicer of what admins call of a server that holds many runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fedpft.v1 import runs_pb2, runs_pb2_grpc

from common.transport import runs_wire
from common.transport.rpc import answers
from common.trust.tls import peer_of
from coordinator.hosting.catalogue import LOG_FILE
from coordinator.hosting.host import Host

_LOOK_SECONDS = 0.3
# Of a message's size, far below its limit.
_MOST_READ = 128 * 1024


class RunsService(runs_pb2_grpc.RunsServiceServicer):
    """Submit, list, cancel, resume, read the log."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @answers
    async def SubmitRun(self, request: runs_pb2.SubmitRunRequest, context: Any) -> runs_pb2.SubmitRunResponse:
        run = self._host.submit(runs_wire.submission_from_pb(request), _caller(context))
        return runs_pb2.SubmitRunResponse(run=run)

    @answers
    async def ListRuns(
        self, request: runs_pb2.ListRunsRequest, context: Any
    ) -> AsyncIterator[runs_pb2.ListRunsResponse]:
        for entry in self._host.entries():
            yield runs_wire.entry_to_pb(entry)

    @answers
    async def CancelRun(self, request: runs_pb2.CancelRunRequest, context: Any) -> runs_pb2.CancelRunResponse:
        self._host.cancel(request.run, _caller(context))
        return runs_pb2.CancelRunResponse()

    @answers
    async def ResumeRun(self, request: runs_pb2.ResumeRunRequest, context: Any) -> runs_pb2.ResumeRunResponse:
        self._host.resume(request.run, _caller(context))
        return runs_pb2.ResumeRunResponse()

    @answers
    async def ReadLog(
        self, request: runs_pb2.ReadLogRequest, context: Any
    ) -> AsyncIterator[runs_pb2.ReadLogResponse]:
        kept = self._host.catalogue.get(request.run)
        path, read = self._host.catalogue.folder(kept.entry.run) / LOG_FILE, 0
        while True:
            # Asked before: what is logged on the way to the end is read once more after it.
            goes_on = request.follow and not self._over(kept.entry.run)
            while text := await asyncio.to_thread(_lines, path, read):
                read += len(text)
                yield runs_pb2.ReadLogResponse(text=text.decode("utf-8", "replace"))
            if not goes_on:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _over(self, run: str) -> bool:
        over = self._host.catalogue.get(run).entry.state.over and run not in self._host.active
        return over or self._host.closed


def _lines(path: Path, begin: int) -> bytes:
    """Whole lines from a byte on, not too many; none where there are none yet."""
    try:
        with path.open("rb") as file:
            file.seek(begin)
            piece = file.read(_MOST_READ)
    except FileNotFoundError:
        return b""
    end = piece.rfind(b"\n") + 1
    # A single line larger than that is told in pieces.
    return piece[:end] if end else piece if len(piece) == _MOST_READ else b""


def _caller(context: Any) -> str:
    """Who calls, by its certificate; empty without TLS."""
    peer = peer_of(context)
    return "" if peer is None else str(peer.identity)
