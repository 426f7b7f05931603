"""The coordinator as a process: listen, run the campaign, end cleanly on signals."""

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import torch
from fedpft.v1 import admin_pb2, admin_pb2_grpc, federation_pb2, federation_pb2_grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.compute import Compute
from common.config import RunConfig
from common.errors import FedPftError, Stopped
from common.files import write_atomically
from common.records import Phase, RunSpec, TaskSpec, TrainingSpec
from common.rpc import Address, new_server, require_loopback
from common.telemetry import open_metrics
from coordinator.campaign import Campaign
from coordinator.inbox import Inbox
from coordinator.journal import Journal
from coordinator.meter import Meter
from coordinator.metrics import Metrics
from coordinator.models import adapter_spec
from coordinator.service import AdminService, FederationService
from coordinator.sessions import Sessions
from coordinator.store import Store

log = logging.getLogger(__name__)

# After the run's end workers are told to stop; the server waits this long for their goodbyes.
_FAREWELL_SECONDS = 10.0
# Calls under way get this long when the server stops.
_GRACE_SECONDS = 1.0

ENDPOINT_FILE = "endpoint.json"


@dataclass
class Ending:
    """How the process was asked to end; None while it was not."""

    by: signal.Signals | None = None
    asked: bool = False


async def serve(config: RunConfig) -> Ending:
    """Run the coordinator until the run ends or a signal comes.

    Raises AddressError, StoreError, ModelError, DataError, RunFailed.
    """
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    address = Address.parse(config.server.listen)
    require_loopback(address, config.server.insecure)
    server, address = new_server(address)
    store = Store(config.run.directory)
    metrics = Metrics()
    endpoint = open_metrics(config.server.metrics, metrics.registry, config.server.insecure)
    compute = Compute()
    try:
        run_id = store.open_run(uuid4().hex[:12], identity(config))
        if store.outcome() == Phase.FINISHED:
            log.info("the run in %s is finished; nothing to do", config.run.directory)
            return Ending()
        if store.outcome() == Phase.FAILED:
            # What made it fail may have been mended; the tries of the open round begin anew.
            store.reopen_run()
        journal, meter = Journal(store), Meter(store, metrics)
        sessions, inbox = Sessions(config.server.heartbeat_seconds), Inbox(store)
        campaign = Campaign(config, store, sessions, inbox, journal, meter, metrics, compute)
        ending = Ending()
        task = asyncio.create_task(campaign.run())

        def stop(reason: str) -> None:
            log.info("stopping: %s", reason)
            ending.asked = True
            compute.stop()
            task.cancel()

        federation = FederationService(
            run_spec(run_id, config),
            store,
            sessions,
            inbox,
            journal,
            meter,
            metrics,
            config.server.max_transfers,
        )
        await _register(server, federation, AdminService(campaign.status, journal, stop))
        await server.start()
        write_atomically(
            config.run.directory / ENDPOINT_FILE,
            json.dumps({"address": str(address), "metrics_port": endpoint.port, "pid": os.getpid()}).encode(),
        )
        log.info("listening on %s, run directory %s", address, config.run.directory)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _on_signal(ending, number, stop))
        watch = asyncio.create_task(_watch_sessions(sessions, journal, metrics))
        try:
            await _see_through(task, campaign)
        finally:
            if not ending.asked:
                await _farewell(sessions)
            watch.cancel()
            (config.run.directory / ENDPOINT_FILE).unlink(missing_ok=True)
            sessions.close()
            journal.close()
            await server.stop(_GRACE_SECONDS)
        return ending
    finally:
        compute.close()
        endpoint.close()
        store.close()


async def _see_through(task: asyncio.Task[None], campaign: Campaign) -> None:
    """Wait for the campaign, and let everybody know how it ended."""
    try:
        await task
    except (asyncio.CancelledError, Stopped):
        campaign.stopped()
    except FedPftError as error:
        campaign.fail(str(error))
        raise
    except Exception:
        campaign.fail("internal error; the coordinator's log says more")
        raise


def _on_signal(ending: Ending, number: signal.Signals, stop: Callable[[str], None]) -> Callable[[], None]:
    def handle() -> None:
        if ending.by is not None:
            os._exit(128 + number)
        ending.by = number
        stop(f"{number.name}; again to end at once")

    return handle


async def _watch_sessions(sessions: Sessions, journal: Journal, metrics: Metrics) -> None:
    """Notice workers that fall silent, and keep the workers' gauge."""
    while True:
        for worker in sessions.sweep():
            journal.record("worker_lost", f"worker {worker} is silent; it counts as lost", 0, worker)
        metrics.workers_are([s.progress.activity for s in sessions.all()])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(1.0, sessions.heartbeat_seconds)):
                await sessions.changed.wait()


async def _farewell(sessions: Sessions) -> None:
    """Until every worker has said goodbye, but not for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_SECONDS):
            while sessions.present():
                await sessions.changed.wait()


async def _register(server: aio.Server, federation: FederationService, admin: AdminService) -> None:
    federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, server)
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


def identity(config: RunConfig) -> str:
    """What makes a run this run: all but where it listens and where its directory is.

    The threads count: another number of them gives other bits.
    """
    return config.model_dump_json(exclude={"server": True, "run": {"directory"}})


def run_spec(run_id: str, config: RunConfig) -> RunSpec:
    """What workers are told of a run."""
    task, t = config.task, config.training
    return RunSpec(
        run_id,
        TaskSpec(task.kind, task.labels, task.max_length, task.pairs),
        adapter_spec(config),
        TrainingSpec(
            t.epochs,
            t.batch_size,
            t.learning_rate,
            t.head_learning_rate,
            t.weight_decay,
            t.max_gradient_norm,
            t.proximal,
        ),
        config.run.seed,
    )
