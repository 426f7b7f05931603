"""`fedpft serve` as a process: any number of runs behind one port, until a signal comes."""

import asyncio
import contextlib
import json
import logging
import os
from pathlib import Path

from grpc import aio
from prometheus_client import CollectorRegistry

from common.address import Address, require_loopback
from common.config.serving import ServeConfig
from common.observability.metrics_endpoint import open_metrics
from common.observability.tracing import exporting
from common.runtime.signals import taken
from common.storage.files import locked, write_atomically
from common.transport.decoding import Decoding
from common.transport.rpc import new_server
from coordinator.campaign.liveness import ENDPOINT_FILE
from coordinator.federation.authorization import AuthorizationInterceptor
from coordinator.federation.call_metrics import CallMetrics
from coordinator.federation.health_probe import HealthProbe
from coordinator.hosting.catalogue import Catalogue
from coordinator.hosting.front import AdminFront, FederationFront
from coordinator.hosting.host import Host
from coordinator.hosting.listening import (
    GRACE_SECONDS,
    Ending,
    on_signal,
    open_coordinator_tls,
    register,
    set_up_process,
)
from coordinator.hosting.run_metrics import ServerMetrics
from coordinator.hosting.runs_service import RunsService
from coordinator.owner.page.runs import RunsPage

log = logging.getLogger(__name__)

_COUNTED_SECONDS = 2.0


async def serve_runs(config: ServeConfig, directory: Path) -> Ending:
    """Hold all runs of a folder until a signal comes, or an admin asks for the end.

    Raises AddressError, CertificateError, StoreError.
    """
    set_up_process()
    address = Address.parse(config.server.listen)
    tls = open_coordinator_tls(config.tls)
    if tls is None:
        require_loopback(address, config.server.insecure)
    with contextlib.ExitStack() as resources:
        resources.enter_context(locked(directory, "a server"))
        resources.enter_context(exporting("fedpft-coordinator"))
        host = Host(config, Catalogue(directory))
        metrics = ServerMetrics(lambda: _registries(host))
        calls = CallMetrics(metrics.called)
        # Outermost: what is not authorized is counted, too.
        interceptors = [calls, AuthorizationInterceptor(tls), Decoding()] if tls else [calls, Decoding()]
        server, address = new_server(
            address, config.server.keepalive_seconds, tls, interceptors, config.runs.calls
        )
        endpoint = open_metrics(config.server.metrics, metrics.registry, config.server.insecure)
        resources.callback(endpoint.close)
        host.about |= {"address": str(address), "metrics_port": endpoint.port}
        return await _Serving(host, server, metrics).serve()


def _registries(host: Host) -> dict[str, CollectorRegistry]:
    """Of the active runs; called from the endpoint's thread."""
    return {run: hosted.context.metrics.registry for run, hosted in dict(host.active).items()}


class _Serving:
    """The process, between opening what it needs and closing it."""

    def __init__(self, host: Host, server: aio.Server, metrics: ServerMetrics) -> None:
        self._host, self._server, self._metrics = host, server, metrics
        self._ending = Ending()

    async def serve(self) -> Ending:
        """Until somebody asks for the end. Raises AddressError, StoreError."""
        host, health = self._host, self._host.config.server.health

        def stop(reason: str) -> None:
            log.info("stopping: %s", reason)
            self._ending.asked = True
            host.close()

        admin = AdminFront(host, stop)
        await register(self._server, FederationFront(host).servicer(), admin, RunsService(host))
        page = self._open_page(admin)
        if page:
            host.about["page_port"] = page.port
        probe = HealthProbe(health) if health else None
        await self._server.start()
        if probe:
            await probe.start()
        about = host.about | {"pid": os.getpid()}
        file = host.catalogue.directory / ENDPOINT_FILE
        write_atomically(file, json.dumps(about).encode())
        log.info("listening on %s, runs in %s", host.about["address"], host.catalogue.directory)
        counting = asyncio.create_task(self._count())
        try:
            with taken(on_signal(self._ending, asyncio.get_running_loop(), stop)):
                await host.hold()
        finally:
            counting.cancel()
            if page:
                await asyncio.to_thread(page.close)
            file.unlink(missing_ok=True)
            if probe:
                await probe.stop()
            await self._server.stop(GRACE_SECONDS)
        return self._ending

    def _open_page(self, admin: AdminFront) -> RunsPage | None:
        """The pages, when the configuration has them. Raises AddressError."""
        server = self._host.config.server
        if server.page is None:
            return None
        return RunsPage(server.page, server.insecure, admin)

    async def _count(self) -> None:
        """Keep the gauge of runs."""
        while True:
            self._metrics.holds(kept.entry for kept in self._host.catalogue)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_COUNTED_SECONDS):
                    await self._host.changed.wait()
