"""The coordinator as a process: listen, run the campaign, end cleanly on signals."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import torch
from fedpft.v1 import admin_pb2, admin_pb2_grpc, federation_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.address import Address, require_loopback
from common.config.run import RunConfig
from common.config.service import TlsSection
from common.errors import FedPftError, Stopped, StoreError
from common.observability.logs import log_about
from common.observability.metrics_endpoint import open_metrics
from common.observability.tracing import exporting
from common.records import Phase
from common.runtime import fault_points
from common.runtime.allocator import set_up_allocator
from common.runtime.compute import ComputeThread
from common.runtime.fault_points import Point, reach
from common.runtime.signals import taken
from common.storage.files import locked, write_atomically
from common.transport.decoding import Decoding
from common.transport.rpc import new_server
from common.trust.identity import Role
from common.trust.signing import Verifier, verifier
from common.trust.tls import Tls, TlsFiles
from coordinator.campaign.best import kept_rounds
from coordinator.campaign.liveness import ENDPOINT_FILE, require_no_repetition, tell_death
from coordinator.campaign.loop import Campaign
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.secure_gathering import SecureGathering
from coordinator.campaign.status import live_status
from coordinator.campaign.worker_gathering import WorkerGathering
from coordinator.context import RunContext, identity
from coordinator.federation.authorization import AuthorizationInterceptor
from coordinator.federation.call_metrics import CallMetrics
from coordinator.federation.health_probe import HealthProbe
from coordinator.federation.inbox import Inbox
from coordinator.federation.outcomes import telling
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.service import FederationService, serve_federation
from coordinator.federation.sessions import COALESCED_SECONDS, Sessions
from coordinator.federation.turns import Turns
from coordinator.modelling.content import require_same
from coordinator.owner.admin_service import AdminService
from coordinator.owner.page.server import Page
from coordinator.storage import retention
from coordinator.storage.store import Store

log = logging.getLogger(__name__)

# After the run's end workers are told to stop; the server waits this long for their goodbyes.
_FAREWELL_SECONDS = 10.0
# Calls under way get this long when the server stops.
_GRACE_SECONDS = 1.0


@dataclass
class Ending:
    """How the process was asked to end; None while it was not."""

    by: signal.Signals | None = None
    asked: bool = False


async def serve(config: RunConfig, again: bool = False) -> Ending:
    """Run the coordinator until the run ends or a signal comes; `again`: although it failed so before.

    Raises AddressError, CertificateError, StoreError, ModelError, DataError, RunFailed.
    """
    set_up_allocator()
    # Every worker is an open file, and the limit that a shell sets is often 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fault_points.arm(os.environ)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    address = Address.parse(config.server.listen)
    tls = _tls(config.tls)
    if tls is None:
        require_loopback(address, config.server.insecure)
    with contextlib.ExitStack() as resources:
        resources.enter_context(locked(config.run.directory, "a coordinator"))
        store = Store(config.run.directory)
        resources.callback(store.close)
        run_id = store.open_run(uuid4().hex[:12], identity(config))
        log_about(run=run_id)
        if store.outcome() == Phase.FINISHED and store.dismissed():
            log.info("the run in %s is finished; nothing to do", config.run.directory)
            return Ending()
        if not again:
            require_no_repetition(store)
        # Before anybody is let in: what is read from now on is what the run was begun with.
        await asyncio.to_thread(require_same, store, config)
        resources.enter_context(exporting("fedpft-coordinator"))
        compute = ComputeThread()
        resources.callback(compute.close)
        run = RunContext.of(config, store, compute)
        calls = CallMetrics(run.metrics.called)
        # Outermost: what is not authorized is counted, too.
        interceptors = [calls, AuthorizationInterceptor(tls), Decoding()] if tls else [calls, Decoding()]
        server, address = new_server(
            address, config.server.keepalive_seconds, tls, interceptors, config.limits.calls
        )
        endpoint = open_metrics(config.server.metrics, run.metrics.registry, config.server.insecure)
        resources.callback(endpoint.close)
        probe = HealthProbe(config.server.health) if config.server.health else None
        verify = _verifier(config)
        return await _Service(run, server, probe, verify).serve(address, endpoint.port)


class _Service:
    """One process's work on a run, between opening what it needs and closing it."""

    def __init__(
        self, run: RunContext, server: aio.Server, probe: HealthProbe | None, verify: Verifier | None
    ) -> None:
        self._run, self._config, self._store = run, run.config, run.store
        self._server, self._probe = server, probe
        self._stopping = asyncio.Event()
        self._sessions = Sessions(run.config.server.heartbeat_seconds)
        turns = Turns(telling(run, self._sessions), run.config.rounds.stall_seconds)
        self._inbox = Inbox(run.store, run.config.limits, turns)
        progress = RunProgress(run)
        self._status = partial(live_status, run, progress, self._sessions, self._inbox)
        keys_seconds = run.config.privacy.keys_seconds
        exchange = SecureExchange(run.store, keys_seconds, verify, self._sessions.notify_all)
        self._sessions.news_for = exchange.news
        gathering = (
            SecureGathering(run, progress, self._sessions, self._inbox, exchange)
            if run.config.privacy.secure
            else WorkerGathering(run, progress, self._sessions, self._inbox)
        )
        self._campaign = Campaign(run, progress, gathering)
        self._federation = FederationService(run, self._sessions, self._inbox, exchange)
        self._ending = Ending()

    async def serve(self, address: Address, metrics_port: int) -> Ending:
        """Until the run ends or a signal comes. Raises AddressError."""
        page = self._open_page()
        self._recover()
        finished = self._store.outcome() == Phase.FINISHED
        work = self._dismiss() if finished else self._campaign.run()
        task = asyncio.create_task(work)

        def stop(reason: str) -> None:
            log.info("stopping: %s", reason)
            self._ending.asked = True
            self._stopping.set()
            self._run.compute.stop()
            task.cancel()

        admin = self._admin = AdminService(self._status, self._run.events, stop)
        await _register(self._server, self._federation, admin)
        await self._server.start()
        if self._probe:
            await self._probe.start()
        directory = self._config.run.directory
        about = {"address": str(address), "metrics_port": metrics_port, "pid": os.getpid()}
        about |= {"page_port": page.port} if page else {}
        write_atomically(directory / ENDPOINT_FILE, json.dumps(about).encode())
        log.info("listening on %s, run directory %s", address, directory)
        with taken(_on_signal(self._ending, asyncio.get_running_loop(), stop)):
            await self._until_over(task, page)
        return self._ending

    async def _until_over(self, task: asyncio.Task[None], page: Page | None) -> None:
        """See the campaign through, and close what listens. Raises what the campaign raises."""
        directory = self._config.run.directory
        watch = asyncio.create_task(self._watch_sessions())
        try:
            await self._see_through(task)
        finally:
            if not self._ending.asked and self._campaign.over:
                await self._farewell()
                await self._admin.seen_to_the_end()
                await self._linger()
            watch.cancel()
            (directory / ENDPOINT_FILE).unlink(missing_ok=True)
            self._sessions.close()
            self._federation.offers.close()
            self._run.events.close()
            if page:
                await asyncio.to_thread(page.close)
            if self._probe:
                await self._probe.stop()
            await self._server.stop(_GRACE_SECONDS)

    def _open_page(self) -> Page | None:
        """The status page, when the configuration has one. Raises AddressError."""
        server = self._config.server
        if server.page is None:
            return None
        return Page(server.page, server.insecure, self._status, self._store.events.all)

    async def _linger(self) -> None:
        """Let the last figures be read."""
        if seconds := self._config.server.linger_seconds:
            log.info("answering for another %.0f s", seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    def _recover(self) -> None:
        """Find out what an earlier process left, and whether it is whole. Raises StoreError."""
        if death := tell_death(self._store.directory):
            self._run.events.record("run_crashed", f"going on: {death}", self._run.traffic.round)
        retention.sweep(self._store)
        for number, worker in retention.verify(self._store, kept_rounds(self._store, self._config)):
            self._run.events.record(
                "update_damaged",
                f"round {number}: the update of worker {worker} is damaged; it is asked for again",
                number,
                worker,
            )
        if self._store.outcome() == Phase.FAILED:
            # What made it fail may have been mended; the tries of the open round begin anew.
            self._store.reopen_run()

    async def _see_through(self, task: asyncio.Task[None]) -> None:
        """Wait for the campaign, and let everybody know how it ended."""
        try:
            await task
        except (asyncio.CancelledError, Stopped):
            self._campaign.stopped()
        except StoreError as error:
            # The run is as good as its disk: mended, the same command goes on, and workers wait for that.
            self._campaign.stopped(str(error))
            raise
        except FedPftError as error:
            self._campaign.fail(str(error))
            raise
        except Exception:
            self._campaign.fail("internal error; the coordinator's log says more")
            raise

    async def _watch_sessions(self) -> None:
        """Notice workers that fall silent or come no further, and keep the workers' gauge."""
        sessions = self._sessions
        while True:
            for worker in sessions.sweep():
                self._inbox.turns.lost(worker)
                self._run.events.record(
                    "worker_lost",
                    f"worker {worker} is silent; it counts as lost",
                    self._run.traffic.round,
                    worker,
                )
            self._inbox.turns.look()
            with contextlib.suppress(OSError):
                # Should this process die, others see until when it lived.
                os.utime(self._store.directory / ENDPOINT_FILE)
            self._run.metrics.workers_are([s.progress.activity for s in sessions.all()])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, sessions.heartbeat_seconds)):
                    await sessions.changed.wait()
            await asyncio.sleep(COALESCED_SECONDS)

    async def _dismiss(self) -> None:
        """The run was finished when its process died: its workers may not know."""
        self._campaign.finished_before()

    async def _farewell(self) -> None:
        """Until every worker has heard of the end and said goodbye, but not for ever.

        Workers of the last round that have not joined since this process began may still come.
        """
        expected = set(self._store.last_selected())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self._sessions.present() or expected - {s.worker for s in self._sessions.all()}:
                    await self._sessions.changed.wait()
        reach(Point.STEP, "farewell")
        self._run.events.record(
            "workers_dismissed", "workers know that the run is over", self._run.traffic.round
        )


def _on_signal(
    ending: Ending, loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]
) -> Callable[[signal.Signals], None]:
    def handle(number: signal.Signals) -> None:
        ending.by = number
        loop.call_soon_threadsafe(stop, f"{number.name}; again to end at once")

    return handle


async def _register(server: aio.Server, federation: FederationService, admin: AdminService) -> None:
    serve_federation(server, federation)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [
        federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name,
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    ]
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflected = (*names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(reflected, server)


def _tls(section: TlsSection) -> Tls | None:
    """The coordinator's end of TLS, where the configuration names its files."""
    if section.certificate is None or section.key is None or section.ca is None:
        return None
    return Tls(TlsFiles(section.certificate, section.key, section.ca, section.revoked), Role.COORDINATOR)


def _verifier(config: RunConfig) -> Verifier | None:
    """What tells whether a worker's keys are its own; None where they are not signed."""
    tls = config.tls
    if tls.ca is None or config.privacy.insecure_keys or not config.privacy.secure:
        return None
    return verifier(tls.ca, tls.revoked)
