"""Every part that listens and every part that connects, by every kind of address, past any proxy."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fedpft.v1 import admin_pb2_grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from cli import checks
from cli.main import app
from common.address import Address, listening_socket
from common.errors import AddressError
from common.observability.health import problem
from common.observability.metrics_endpoint import open_metrics
from common.records import JoinRequest
from common.transport.rpc import new_server
from common.trust.authority import Authority
from common.trust.certificates import CERTIFICATE
from common.trust.enrolment import Candidate, Invitations
from common.trust.identity import Identity, Role
from coordinator.federation import enrolment
from coordinator.federation.health_probe import HealthProbe
from coordinator.owner.admin_service import AdminService
from coordinator.owner.page.server import Page
from tests.conftest import write_table
from tests.coordinator.owner.test_page import STATUS
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.enrolment import enrol
from worker.metrics import Metrics

# Where to listen, and by what addresses that must be reached from the same host.
HOSTS = {
    "127.0.0.1": ("127.0.0.1", "localhost"),
    "[::1]": ("[::1]",),
    "localhost": ("localhost",),
    "[::]": ("[::1]", "127.0.0.1", "localhost"),
    "0.0.0.0": ("127.0.0.1", "[::1]", "localhost"),
}
BOTH = pytest.mark.parametrize("host", HOSTS)

# A proxy that nothing listens at: who goes through it gets nowhere.
PROXIES = {
    name: "http://127.0.0.1:9"
    for lower in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    for name in (lower, lower.upper())
}


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextlib.asynccontextmanager
async def coordinator(host: str) -> AsyncIterator[int]:
    """Its admin service and health, as every coordinator has them, on a free port."""
    server, address = new_server(Address.parse(f"{host}:0"))
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    await checker.set("", health_pb2.HealthCheckResponse.SERVING)
    events: Any = None
    admin_pb2_grpc.add_AdminServiceServicer_to_server(
        AdminService(lambda: STATUS, events, lambda reason: None), server
    )
    await server.start()
    try:
        yield address.port
    finally:
        await server.stop(None)


async def well(target: str) -> None:
    assert await asyncio.to_thread(problem, target) is None


async def command(*arguments: str) -> str:
    """What a command says; it must succeed."""
    done = await asyncio.to_thread(lambda: CliRunner().invoke(app, list(arguments)))
    assert done.exit_code == 0, done.output
    return done.output


@BOTH
async def test_the_owners_commands_and_the_check_reach_the_coordinator(host: str) -> None:
    async with coordinator(host) as port:
        for by in HOSTS[host]:
            assert STATUS.run_id in await command("status", "--coordinator", f"{by}:{port}", "--json")
            await command("stop", "--coordinator", f"{by}:{port}")
            await well(f"{by}:{port}")
        # The check is of the same host, and may name what the service listens on.
        await well(f"{host}:{port}")


@BOTH
async def test_a_worker_reaches_the_coordinator(host: str) -> None:
    """As far as a coordinator that serves no workers lets it."""
    async with coordinator(host) as port:
        for by in HOSTS[host]:
            endpoint = Endpoint(Address.of_peer(f"{by}:{port}"), patience=0.1)
            client = CoordinatorClient(endpoint, JoinRequest("w", 1, 2, "test", 1), Metrics())
            stub: Any = client._connection.stub
            with pytest.raises(aio.AioRpcError, match="UNIMPLEMENTED"):
                from fedpft.v1 import federation_pb2

                await stub.Join(federation_pb2.JoinRequest(), timeout=5)
            await client.close()


@BOTH
async def test_the_metrics_are_reached(host: str) -> None:
    endpoint = open_metrics(f"{host}:0", CollectorRegistry(), insecure=True)
    for by in (*HOSTS[host], host):
        await well(f"http://{by}:{endpoint.port}/metrics")
    await asyncio.to_thread(endpoint.close)


@BOTH
async def test_the_page_is_reached(host: str) -> None:
    page = Page(f"{host}:0", True, lambda: STATUS, lambda after: [])
    for by in (*HOSTS[host], host):
        await well(f"http://{by}:{page.port}/run.json")
    await asyncio.to_thread(page.close)


@BOTH
async def test_the_health_service_is_reached(host: str) -> None:
    probe = HealthProbe(f"{host}:0")
    await probe.start()
    for by in (*HOSTS[host], host):
        await well(f"{by}:{probe.address.port}")
    await probe.stop()


@BOTH
async def test_a_guest_enrols(host: str, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", "test")
    invitations = Invitations(authority, tmp_path / "authority")
    port = free_port()
    names = ("127.0.0.1", "::1", "localhost")
    serving = asyncio.create_task(
        enrolment.serve(authority, invitations, Address.parse(f"{host}:{port}"), names)
    )
    await asyncio.sleep(0.1)
    for number, by in enumerate(HOSTS[host]):
        invited = invitations.invite(Identity(Role.WORKER, f"w{number}"), Address.of_peer(f"{by}:{port}"))
        # The service is on this loop: it listens before anybody asks.
        await enrol(invited, Candidate(invited, tmp_path / f"w{number}"))
        assert (tmp_path / f"w{number}" / CERTIFICATE).exists()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def free_port() -> int:
    with listening_socket(Address("::", 0)) as probe:
        return int(probe.getsockname()[1])


@BOTH
async def test_the_doctor_knows_what_is_open_and_what_is_free(host: str) -> None:
    async with coordinator(host) as port:
        for by in HOSTS[host]:
            address = Address.of_peer(f"{by}:{port}")
            for check in (checks.name_resolution, checks.port):
                finding = await asyncio.to_thread(check, address)
                assert finding.ok, finding
            finding = await asyncio.to_thread(checks.tls, address, None)
            assert finding.ok, finding
        taken = checks.listening("port", Address.parse(f"{host}:{port}"))
        assert not taken.ok and "in use" in taken.found and "another port" in taken.fix
    assert checks.listening("port", Address.parse(f"{host}:0")).ok


Opened = Callable[[str], object]

LISTENING: dict[str, Opened] = {
    "gRPC": lambda listen: new_server(Address.parse(listen)),
    "metrics": lambda listen: open_metrics(listen, CollectorRegistry(), insecure=True),
    "page": lambda listen: Page(listen, True, lambda: STATUS, lambda after: []),
    "health": HealthProbe,
}


@pytest.mark.parametrize("part", LISTENING)
@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ("192.0.2.1:7070", "it is no address of this machine; name one of its own, or 0.0.0.0 for all"),
        ("[2001:db8::1]:7070", "it is no address of this machine; name one of its own, or 0.0.0.0 for all"),
        ("no-such-host.invalid:7070", "the name no-such-host.invalid has no address here"),
        ("http://127.0.0.1:7070", "is a URL, not HOST:PORT"),
        ("127.0.0.1", "is not HOST:PORT"),
    ],
)
async def test_every_part_refuses_what_it_cannot_listen_on_alike(part: str, listen: str, says: str) -> None:
    with pytest.raises(AddressError) as caught:
        LISTENING[part](listen)
    assert says in str(caught.value)


@pytest.mark.parametrize("part", LISTENING)
@BOTH
async def test_every_part_says_alike_that_a_port_is_taken(part: str, host: str) -> None:
    async with coordinator(host) as port:
        with pytest.raises(
            AddressError,
            match=r"cannot (listen|serve metrics|serve the page) on .* already in use; stop what uses it",
        ):
            LISTENING[part](f"{host}:{port}")


# --- the commands, before anything heavy ---


WRONG = {
    "http://127.0.0.1:7070": "is a URL, not HOST:PORT, such as 127.0.0.1:7070; leave out what is around",
    "dns:///host:7070": "is a URL, not HOST:PORT",
    "0.0.0.0:7070": "0.0.0.0 is for listening on all addresses of a host",
    "[::]:7070": ":: is for listening on all addresses of a host",
    "127.0.0.1:0": "port 0 is for listening on a free one",
    "::1:7070": "is not HOST:PORT",
    "127.0.0.1": "is not HOST:PORT",
}


@pytest.mark.parametrize("address", WRONG)
@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--coordinator"),
        ("status", "--watch", "--coordinator"),
        ("stop", "--coordinator"),
        ("doctor", "--coordinator"),
        ("worker", "--log", "human", "--data", "private.csv", "--coordinator"),
        ("certs", "invite", "--role", "worker", "--name", "a", "--at"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_what_cannot_be_connected_to(
    arguments: tuple[str, ...], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_table(tmp_path / "private.csv", 4)
    Authority.create(tmp_path / "certs", "test")
    done = CliRunner().invoke(app, [*arguments, address])
    assert done.exit_code == 2
    (line,) = done.output.strip().splitlines()
    assert line.startswith("error: ") and WRONG[address] in line


def program(module: str, *arguments: str) -> tuple[float, str]:
    """Seconds, and the line that it ends with."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert not re.search(r"\| +(torch|transformers)$", done.stderr, re.MULTILINE)
    return time.monotonic() - begun, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("cli", ("worker", "--coordinator", "http://h:1", "--data", "d.csv"), "is a URL"),
        ("worker", ("--coordinator", "h:0", "--data", "d.csv"), "port 0"),
        ("worker", ("--coordinator", "192.0.2.1:1", "--data", "{data}"), "say --insecure"),
        (
            "worker",
            ("--coordinator", "127.0.0.1:1", "--data", "missing.csv"),
            "missing.csv: no such data file",
        ),
        ("worker", ("--coordinator", "127.0.0.1:1", "--data", "{data}", "--name", "a b"), "a b"),
        ("worker", ("--coordinator", "127.0.0.1:1", "--data", "{data}", "--metrics", "x"), "HOST:PORT"),
        ("cli", ("status", "--coordinator", "h"), "is not HOST:PORT"),
        ("cli", ("stop", "--coordinator", "[::]:7070"), "listening on all"),
        ("coordinator", ("--config", "missing.toml"), "missing.toml"),
        ("coordinator", ("--config", "{config}"), "server.page"),
    ],
)
def test_what_is_wrong_is_said_before_torch_is_imported(
    module: str, arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    from common.config.file import template

    config = tmp_path / "run.toml"
    config.write_text(template({"model.path": "m", "task.labels": ("a", "b"), "server.page": "::1:0"}))
    places = {"data": str(write_table(tmp_path / "data.csv", 4)), "config": str(config)}
    given = [a.format(**places) for a in arguments]
    if {module, given[0]} & {"worker", "coordinator"}:
        given += ["--log", "human"]
    _, line = program(module, *given)
    assert line.startswith("error: ") and says in line, line
