"""What every coordinator's process does alike: TLS, what is served, how it is asked to end."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedpft.v1 import admin_pb2, admin_pb2_grpc, federation_pb2, runs_pb2, runs_pb2_grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.config.service import TlsSection
from common.runtime import fault_points
from common.runtime.allocator import set_up_allocator
from common.trust.identity import Role
from common.trust.tls import Tls, TlsFiles
from coordinator.federation.service import serve_federation

# Calls under way get this long when the server stops.
GRACE_SECONDS = 1.0


@dataclass
class Ending:
    """How the process was asked to end; None while it was not."""

    by: signal.Signals | None = None
    asked: bool = False


def set_up_process() -> None:
    """Memory, open files and fault points, as a service needs them."""
    set_up_allocator()
    # Every worker is an open file, and the limit that a shell sets is often 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fault_points.arm(os.environ)


def open_coordinator_tls(section: TlsSection) -> Tls | None:
    """The coordinator's end of TLS, where the configuration names its files. Raises CertificateError."""
    if section.certificate is None or section.key is None or section.ca is None:
        return None
    return Tls(TlsFiles(section.certificate, section.key, section.ca, section.revoked), Role.COORDINATOR)


def on_signal(
    ending: Ending, loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]
) -> Callable[[signal.Signals], None]:
    """What a signal calls: `stop`, on the loop, with the reason."""

    def handle(number: signal.Signals) -> None:
        ending.by = number
        loop.call_soon_threadsafe(stop, f"{number.name}; again to end at once")

    return handle


async def register(
    server: aio.Server, federation: Any, admin: Any, runs: runs_pb2_grpc.RunsServiceServicer | None = None
) -> None:
    """Have the server answer workers, owners, and who asks whether it is well or what it serves.

    `federation` and `admin` have every call of their services as a method; `runs` is there for many runs.
    """
    serve_federation(server, federation)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    services = [
        federation_pb2.DESCRIPTOR.services_by_name["FederationService"],
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
    ]
    if runs is not None:
        runs_pb2_grpc.add_RunsServiceServicer_to_server(runs, server)
        services.append(runs_pb2.DESCRIPTOR.services_by_name["RunsService"])
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [service.full_name for service in services]
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflected = (*names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(reflected, server)
