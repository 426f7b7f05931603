"""The servicers of a server that holds many runs: each call goes to the run that it concerns."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

from fedpft.v1 import admin_pb2, federation_pb2

from common.config.service import LimitsSection
from common.errors import FedPftError, NotAllowed, UnknownRun
from common.hosted_runs import RunEntry
from common.observability.logs import enter_subject
from common.run_status import Event, RunStatus
from common.transport import admin_wire, offer_wire, wire
from common.transport.rpc import answers, refuse, run_named
from coordinator.campaign.liveness import resting_status
from coordinator.campaign.status import open_run
from coordinator.federation.authorization import require_speaker
from coordinator.federation.rate_limits import RateLimiter
from coordinator.federation.service import FederationService
from coordinator.hosting.host import Host
from coordinator.hosting.hosted import HostedRun
from coordinator.hosting.routing import Routing
from coordinator.storage.store import Store
from coordinator.tracking.figures import Parameter, parameters


class FederationFront:
    """What of the workers' calls is not one run's own."""

    def __init__(self, host: Host) -> None:
        self._host, self._routing = host, Routing(host)
        limits = LimitsSection()
        self._rate_limiter = RateLimiter(limits.calls_per_second, limits.streams)

    def servicer(self) -> Any:
        """An object with every call of the service as a method."""
        calls = SimpleNamespace(FindRun=self.FindRun, Join=self.Join)
        for method in federation_pb2.DESCRIPTOR.services_by_name["FederationService"].methods:
            if not hasattr(calls, method.name):
                behaviour = getattr(FederationService, method.name)
                streams = inspect.isasyncgenfunction(behaviour)
                setattr(calls, method.name, (self._stream if streams else self._unary)(method.name))
        return calls

    @answers
    async def FindRun(
        self, request: federation_pb2.FindRunRequest, context: Any
    ) -> AsyncIterator[federation_pb2.FindRunResponse]:
        asked = offer_wire.find_request_from_pb(request)
        require_speaker(asked.worker, context)
        self._rate_limiter.call(asked.worker)
        with self._rate_limiter.stream(asked.worker):
            async for found in self._routing.found(asked):
                yield offer_wire.found_to_pb(found)

    async def Join(self, request: federation_pb2.JoinRequest, context: Any) -> federation_pb2.JoinResponse:
        """A worker takes part in one run at a time."""
        try:
            joining = wire.join_request_from_pb(request)
            require_speaker(joining.worker, context)
            hosted = self._routing.to_join(joining, context)
            others = [h for h in self._host.active.values() if h is not hosted]
            for other in others:
                await other.sessions.require_only(joining)
        except FedPftError as error:
            await refuse(context, error)
        reply: federation_pb2.JoinResponse = await self._within(hosted, "Join", request, context)
        for other in others:
            other.moved_on(joining.worker)
        return reply

    def _unary(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            return await self._within(await self._of(name, request, context), name, request, context)

        return call

    def _stream(self, name: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            hosted = await self._of(name, request, context)
            enter_subject(self._host.subjects[hosted.context.store.run_id()])
            hosted.calls += 1
            try:
                async for reply in getattr(hosted.federation, name)(request, context):
                    yield reply
            finally:
                hosted.calls -= 1

        return stream

    async def _within(self, hosted: HostedRun, name: str, request: Any, context: Any) -> Any:
        enter_subject(self._host.subjects[hosted.context.store.run_id()])
        hosted.calls += 1
        try:
            return await getattr(hosted.federation, name)(request, context)
        finally:
            hosted.calls -= 1

    async def _of(self, name: str, request: Any, context: Any) -> HostedRun:
        """The run that the call concerns, or the caller is refused."""
        try:
            if name in ("DescribeRun", "TellClasses"):
                return self._routing.to_describe(wire.worker_name(request.worker), context)
            token = getattr(request, "session", "") or getattr(
                getattr(request, "header", None), "session", ""
            )
            return self._routing.of(context, token)
        except FedPftError as error:
            await refuse(context, error)


class AdminFront:
    """What owners call of one run of many: while it is held open, before and after."""

    def __init__(self, host: Host, stop: Callable[[str], None]) -> None:
        self._host, self._stop = host, stop

    @answers
    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: Any
    ) -> admin_pb2.GetStatusResponse:
        return admin_wire.status_to_pb(await self._status(context))

    @answers
    async def ReadStatus(
        self, request: admin_pb2.ReadStatusRequest, context: Any
    ) -> AsyncIterator[admin_pb2.ReadStatusResponse]:
        for part in admin_wire.status_parts(await self._status(context)):
            yield part

    @answers
    async def WatchEvents(
        self, request: admin_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[admin_pb2.WatchEventsResponse]:
        run = self._named(context)
        if (hosted := self._host.active.get(run)) is not None:
            async for event in hosted.context.events.follow(request.after):
                yield admin_wire.event_to_pb(event)
            return
        for event in await asyncio.to_thread(self.events, run, request.after):
            yield admin_wire.event_to_pb(event)

    @answers
    async def StopRun(self, request: admin_pb2.StopRunRequest, context: Any) -> admin_pb2.StopRunResponse:
        if run := run_named(context):
            raise NotAllowed(
                f"run {run[:64]} is one of several: `fedpft cancel` ends it for good, `fedpft stop` without "
                "--run ends the server, which goes on with all of them when it is started again"
            )
        self._stop("an admin asked for it")
        return admin_pb2.StopRunResponse()

    def entries(self) -> list[RunEntry]:
        """For the page: every run, oldest first."""
        return self._host.entries()

    def settings(self, run: str) -> dict[str, Parameter]:
        """For the page: what a run is set to. Raises UnknownRun, StoreError, ConfigError."""
        return parameters(self._host.configured(run))

    async def look(self, run: str, after: int) -> tuple[RunStatus, list[Event]]:
        """For the page. Raises UnknownRun, StoreError."""
        if (hosted := self._host.active.get(run)) is not None:
            return hosted.status(), hosted.context.store.events.all(after)
        self._host.catalogue.get(run)
        status = await asyncio.to_thread(self.at_rest, run)
        return status, await asyncio.to_thread(self.events, run, after)

    async def _status(self, context: Any) -> RunStatus:
        run = self._named(context)
        if (hosted := self._host.active.get(run)) is not None:
            return hosted.status()
        return await asyncio.to_thread(self.at_rest, run)

    def at_rest(self, run: str) -> RunStatus:
        """Where a run stands that is not held open. Raises UnknownRun before it has begun, StoreError."""
        self._require_begun(run)
        store, config = open_run(self._host.catalogue.folder(run))
        with closing(store):
            return resting_status(store, config)

    def events(self, run: str, after: int) -> list[Event]:
        """What has happened in a run that is not held open. Raises UnknownRun, StoreError."""
        self._require_begun(run)
        with closing(Store.existing(self._host.catalogue.folder(run))) as store:
            return store.events.all(after)

    def _require_begun(self, run: str) -> None:
        entry = self._host.catalogue.get(run).entry
        if not (self._host.catalogue.folder(run) / "run.sqlite").is_file():
            reason = f": {entry.reason}" if entry.reason else ""
            raise UnknownRun(f"there is nothing to tell of run {run} yet; it is {entry.state}{reason}")

    def _named(self, context: Any) -> str:
        """The run that a call names, or the only one. Raises UnknownRun."""
        if named := run_named(context):
            return self._host.catalogue.get(named).entry.run
        runs = list(self._host.active) or [kept.entry.run for kept in self._host.catalogue]
        if len(runs) != 1:
            raise UnknownRun(
                f"this coordinator holds {len(runs) or 'no'} runs; say which by --run ID"
                f"{': ' + ', '.join(runs[-5:]) if runs else ''}"
            )
        return runs[0]
