"""The coordinator of one run as a process: listen, run the campaign, end cleanly on signals."""

import asyncio
import contextlib
import logging
from uuid import uuid4

import torch
from grpc import aio

from common.address import Address, require_loopback
from common.config.run import RunConfig
from common.observability.metrics_endpoint import open_metrics
from common.observability.tracing import exporting
from common.runtime.compute import ComputeThread
from common.runtime.signals import taken
from common.transport.decoding import Decoding
from common.transport.rpc import new_server
from coordinator.federation.authorization import AuthorizationInterceptor
from coordinator.federation.call_metrics import CallMetrics
from coordinator.federation.health_probe import HealthProbe
from coordinator.hosting.hosted import HostedRun, open_run
from coordinator.hosting.listening import (
    GRACE_SECONDS,
    Ending,
    on_signal,
    open_coordinator_tls,
    register,
    set_up_process,
)
from coordinator.owner.admin_service import AdminService
from coordinator.owner.page.server import Page
from coordinator.tracking.process import require_installed, tracked

log = logging.getLogger(__name__)


async def serve(config: RunConfig, again: bool = False) -> Ending:
    """Run the coordinator until the run ends or a signal comes; `again`: although it failed so before.

    Raises AddressError, CertificateError, StoreError, ModelError, DataError, RunFailed.
    """
    set_up_process()
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    address = Address.parse(config.server.listen)
    require_installed(config.tracking)
    tls = open_coordinator_tls(config.tls)
    if tls is None:
        require_loopback(address, config.server.insecure)
    with contextlib.ExitStack() as resources:
        compute = ComputeThread()
        run = await open_run(config, uuid4().hex[:12], compute, resources, again)
        if run is None:
            with tracked(config):
                log.info("the run in %s is finished; nothing to do", config.run.directory)
            compute.close()
            return Ending()
        resources.enter_context(exporting("fedpft-coordinator"))
        resources.enter_context(tracked(config))
        resources.callback(compute.close)
        calls = CallMetrics(run.metrics.called)
        # Outermost: what is not authorized is counted, too.
        interceptors = [calls, AuthorizationInterceptor(tls), Decoding()] if tls else [calls, Decoding()]
        server, address = new_server(
            address, config.server.keepalive_seconds, tls, interceptors, config.limits.calls
        )
        endpoint = open_metrics(config.server.metrics, run.metrics.registry, config.server.insecure)
        resources.callback(endpoint.close)
        probe = HealthProbe(config.server.health) if config.server.health else None
        return await _Service(HostedRun(run), server, probe).serve(address, endpoint.port)


class _Service:
    """One process's work for a run, between opening what it needs and closing it."""

    def __init__(self, hosted: HostedRun, server: aio.Server, probe: HealthProbe | None) -> None:
        self._hosted, self._config = hosted, hosted.context.config
        self._server, self._probe = server, probe
        self._stopping = asyncio.Event()
        self._ending = Ending()

    async def serve(self, address: Address, metrics_port: int) -> Ending:
        """Until the run ends or a signal comes. Raises AddressError."""
        page = self._open_page()
        self._hosted.begin()

        def stop(reason: str) -> None:
            log.info("stopping: %s", reason)
            self._ending.asked = True
            self._stopping.set()
            self._hosted.stop()

        admin = self._admin = AdminService(self._hosted.status, self._hosted.context.events, stop)
        await register(self._server, self._hosted.federation, admin)
        await self._server.start()
        if self._probe:
            await self._probe.start()
        about: dict[str, object] = {"address": str(address), "metrics_port": metrics_port}
        self._hosted.listens(about | ({"page_port": page.port} if page else {}))
        log.info("listening on %s, run directory %s", address, self._config.run.directory)
        with taken(on_signal(self._ending, asyncio.get_running_loop(), stop)):
            await self._until_over(page)
        return self._ending

    async def _until_over(self, page: Page | None) -> None:
        """See the campaign through, and close what listens. Raises what the campaign raises."""
        try:
            await self._hosted.see_through()
        finally:
            if not self._ending.asked and self._hosted.over:
                await self._hosted.farewell()
                await self._admin.seen_to_the_end()
                await self._linger()
            self._hosted.close()
            if page:
                await asyncio.to_thread(page.close)
            if self._probe:
                await self._probe.stop()
            await self._server.stop(GRACE_SECONDS)

    def _open_page(self) -> Page | None:
        """The status page, when the configuration has one. Raises AddressError."""
        server = self._config.server
        if server.page is None:
            return None
        events = self._hosted.context.store.events
        return Page(server.page, server.insecure, self._hosted.status, events.all)

    async def _linger(self) -> None:
        """Let the last figures be read."""
        if seconds := self._config.server.linger_seconds:
            log.info("answering for another %.0f s", seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
