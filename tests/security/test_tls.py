"""TLS from outside, renewal and revocation without a restart, and impostors of the coordinator."""

import asyncio
import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
import torch
from fedpft.v1 import federation_pb2, federation_pb2_grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import Address
from common.errors import CertificateError, NotAllowed, Unreachable
from common.model.update import update_schema
from common.records import ArtifactKind, Chunk, StopTask, UpdateHeader, WaitTask
from common.storage.schema import schema_of
from common.storage.tensors import to_bytes
from common.transport import wire
from common.transport.rpc import call, new_channel
from common.trust import tls as tls_module
from common.trust.certificates import AUTHORITY, CERTIFICATE, KEY
from common.trust.identity import Role
from common.trust.tls import Tls, TlsFiles, open_tls
from coordinator.federation.inbox import Expected
from coordinator.federation.rounds import RoundState
from coordinator.federation.sessions import Assignment
from coordinator.owner.admin_client import Admin
from tests.security.guarded import COORDINATOR, Certificates, Guarded

# Connections that are opened at once.
BURST = 300


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certs")


@pytest.fixture
async def guarded(certificates: Certificates, tmp_path: Path) -> AsyncIterator[Guarded]:
    folder = certificates.issue(COORDINATOR.role, COORDINATOR.name)
    running = Guarded(certificates, certificates.server_files(folder))
    await running.start(tmp_path)
    yield running
    await running.stop()


async def s_client(address: Address, *options: str) -> str:
    """What OpenSSL's own client says of a connection."""
    command = ["openssl", "s_client", "-connect", str(address), "-alpn", "h2", *options]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    return told.decode(errors="replace")


# --- from outside ---


@pytest.mark.parametrize(
    ("version", "spoken"), [("tls1", False), ("tls1_1", False), ("tls1_2", True), ("tls1_3", True)]
)
async def test_nothing_older_than_tls_1_2_is_spoken(guarded: Guarded, version: str, spoken: bool) -> None:
    """OpenSSL is set to take anything, so that a refusal is the coordinator's."""
    told = await s_client(guarded.address, f"-{version}", "-cipher", "DEFAULT@SECLEVEL=0")
    assert ("Cipher is (NONE)" not in told) is spoken
    assert ("BEGIN CERTIFICATE" in told) is spoken


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
async def test_a_client_certificate_is_asked_for(
    guarded: Guarded, certificates: Certificates, version: str
) -> None:
    """Who is let in receives HTTP/2's first frame; who is not sees the connection close, and no byte."""
    folder = certificates.issue(Role.WORKER, "a")
    trusting = ["-CAfile", str(folder / AUTHORITY), "-verify_return_error", f"-{version}", "-quiet"]
    mine = ["-cert", str(folder / CERTIFICATE), "-key", str(folder / KEY)]
    for options, frame in (trusting, b""), (trusting + mine, b"\x00\x00"):
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", str(guarded.address), "-alpn", "h2", *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert client.stdout is not None
        assert await asyncio.wait_for(client.stdout.read(2), 10) == frame
        if client.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                client.kill()
        await client.communicate()


# --- impostors ---


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ("worker-b", "no coordinator's|did not issue"),
        ("other", "did not issue"),
        ("elsewhere", "another host"),
    ],
)
async def test_a_worker_tells_nothing_to_who_is_not_its_coordinator(
    certificates: Certificates, tmp_path: Path, shown: str, told: str
) -> None:
    """Another worker of the same authority, a coordinator of another, and one that is for another host."""
    certificates.issue(Role.WORKER, "b")
    other = Certificates(tmp_path / "others").issue(Role.COORDINATOR, "hub", "other")
    with patch("common.trust.authority._OWN_HOST", ("elsewhere.example",)):
        elsewhere = certificates.issue(Role.COORDINATOR, "hub", "elsewhere")
    folder = {"worker-b": certificates.folder / "worker-b", "other": other, "elsewhere": elsewhere}[shown]
    pair = ((folder / KEY).read_bytes(), (folder / CERTIFICATE).read_bytes())
    server = aio.server()
    heard: list[str] = []

    class Impostor(federation_pb2_grpc.FederationServiceServicer):
        async def Join(self, request: Any, context: Any) -> Any:
            heard.append(request.worker)

    federation_pb2_grpc.add_FederationServiceServicer_to_server(Impostor(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    running = Guarded.__new__(Guarded)
    running.address = Address("127.0.0.1", port)
    worker = running.worker(certificates.issue(Role.WORKER, "a"), "a", patience=0.3)
    with pytest.raises(Unreachable, match=told):
        await worker.join()
    assert heard == []
    await worker.close()
    await server.stop(None)


async def test_an_admin_is_told_what_is_wrong_with_plain_text(guarded: Guarded) -> None:
    async with new_channel(guarded.address) as channel:
        with pytest.raises(aio.AioRpcError):
            await channel.unary_unary("/fedpft.v1.AdminService/StopRun")(b"", timeout=5)
    assert guarded.stops == []


# --- renewal and revocation ---


def renew(certificates: Certificates, role: Role, name: str, folder: Path) -> None:
    """Put a new pair over the old one, the certificate first, as an owner does."""
    fresh = certificates.issue(role, name, f"fresh-{role}-{name}")
    for file in (CERTIFICATE, KEY):
        shutil.copy(fresh / file, folder / file)


async def test_a_coordinators_renewed_certificate_is_shown_without_a_restart(
    guarded: Guarded, certificates: Certificates
) -> None:
    folder = certificates.folder / f"coordinator-{COORDINATOR.name}"
    worker = guarded.worker(certificates.issue(Role.WORKER, "a"), "a")
    await worker.join()
    before = await s_client(guarded.address)
    renew(certificates, Role.COORDINATOR, COORDINATOR.name, folder)
    after = await s_client(guarded.address)
    pem = (folder / CERTIFICATE).read_text().strip()
    assert pem in after and pem not in before
    # The connection from before goes on, and a new one comes about.
    assert guarded.sessions.find(worker._session).worker == "a"
    again = guarded.worker(certificates.folder / "worker-a", "a")
    await again.join()
    await worker.close()
    await again.close()


async def test_a_burst_of_connections_is_let_in(guarded: Guarded, certificates: Certificates) -> None:
    """Handshakes at the same time share what gRPC holds of the certificate; it may not go under them."""
    tls = open_tls(certificates.issue(Role.WORKER, "a"), Role.WORKER)
    channels = [new_channel(guarded.address, tls=tls) for _ in range(BURST)]
    request = health_pb2.HealthCheckRequest()
    checks = (health_pb2_grpc.HealthStub(channel).Check(request, timeout=60) for channel in channels)
    answers = await asyncio.gather(*(call(check) for check in checks))
    assert {answer.status for answer in answers} == {health_pb2.HealthCheckResponse.SERVING}
    for channel in channels:
        await channel.close()


async def test_a_half_renewed_pair_leaves_the_old_in_use(
    guarded: Guarded, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    folder = certificates.folder / f"coordinator-{COORDINATOR.name}"
    old = (folder / CERTIFICATE).read_text().strip()
    fresh = certificates.issue(Role.COORDINATOR, COORDINATOR.name, "fresh")
    shutil.copy(fresh / CERTIFICATE, folder / CERTIFICATE)
    assert old in await s_client(guarded.address)
    assert "is not the key of" in caplog.text
    shutil.copy(fresh / KEY, folder / KEY)
    assert (fresh / CERTIFICATE).read_text().strip() in await s_client(guarded.address)


async def test_a_revoked_worker_is_refused_at_its_next_call_and_a_new_certificate_lets_it_go_on(
    guarded: Guarded, certificates: Certificates
) -> None:
    folder = certificates.issue(Role.WORKER, "a")
    worker = guarded.worker(folder, "a")
    await worker.join()
    artifact = guarded.store.artifacts.add(ArtifactKind.ADAPTER, b"for workers")
    certificates.authority.revoke("worker/a")
    with pytest.raises(NotAllowed, match="certificate of worker/a is revoked"):
        await worker.download(artifact, certificates.folder)
    renew(certificates, Role.WORKER, "a", folder)
    assert (await worker.download(artifact, certificates.folder)).read_bytes() == b"for workers"
    await worker.close()


async def test_a_stream_that_is_open_tells_a_revoked_worker_nothing_more(
    guarded: Guarded, certificates: Certificates
) -> None:
    worker = guarded.worker(certificates.issue(Role.WORKER, "a"), "a")
    await worker.join()
    tasks = worker.tasks()
    assert isinstance(await anext(tasks), WaitTask)
    certificates.authority.revoke("worker/a")
    guarded.sessions.assign("a", Assignment(WaitTask("a secret")))
    with pytest.raises(NotAllowed, match="is revoked"):
        await anext(tasks)
    await worker.close()


async def test_an_upload_under_way_ends_when_its_worker_is_revoked(
    guarded: Guarded, certificates: Certificates
) -> None:
    expected = Expected(
        guarded.adapter, update_schema(schema_of({"x": torch.zeros(4)}), guarded.run.spec.adapter, {})
    )
    guarded.inbox.open(RoundState(1, frozenset({"a"}), 1, closes_at=1e12), expected)
    worker = guarded.worker(certificates.issue(Role.WORKER, "a"), "a")
    await worker.join()
    content = to_bytes({"delta.x": torch.ones(4)})
    digest = hashlib.sha256(content).hexdigest()
    header = UpdateHeader(worker._session, 1, guarded.adapter.sha256, len(content), digest, 5, 0.5, 1.0)

    async def messages() -> AsyncIterator[federation_pb2.SubmitUpdateRequest]:
        yield federation_pb2.SubmitUpdateRequest(header=wire.header_to_pb(header))
        async with asyncio.timeout(10):
            while not list((guarded.store.directory / "spool").iterdir()):
                await asyncio.sleep(0.01)
        certificates.authority.revoke("worker/a")
        yield federation_pb2.SubmitUpdateRequest(chunk=wire.chunk_to_pb(Chunk(0, content)))

    with pytest.raises(NotAllowed, match="is revoked"):
        await call(worker._connection.stub.SubmitUpdate(messages(), timeout=20))
    assert guarded.store.updates(1) == []
    await worker.close()


async def test_a_watch_goes_on_when_its_certificate_was_renewed_before_the_old_one_is_refused(
    guarded: Guarded, certificates: Certificates
) -> None:
    folder = certificates.issue(Role.WORKER, "a")
    worker = guarded.worker(folder, "a")
    await worker.join()
    tasks = worker.tasks()
    await anext(tasks)
    certificates.authority.revoke("worker/a")
    renew(certificates, Role.WORKER, "a", folder)
    guarded.sessions.assign("a", Assignment(StopTask(True, "over")))
    assert await anext(tasks) == StopTask(True, "over")
    await worker.close()


async def test_a_certificate_that_runs_out_ends_what_its_connection_may_do(
    guarded: Guarded, certificates: Certificates
) -> None:
    folder = certificates.issue(Role.ADMIN, "owner")
    async with Admin(guarded.address, open_tls(folder, Role.ADMIN)) as admin:
        await admin.status()
        later = datetime.now(UTC) + timedelta(days=2)
        clock = patch.object(tls_module, "datetime", **{"now.return_value": later})
        with clock, pytest.raises(NotAllowed, match="has expired"):
            await admin.status()
        await admin.status()


async def test_a_broken_revocation_list_does_not_bring_back_who_was_revoked(
    guarded: Guarded, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    folder = certificates.issue(Role.WORKER, "a")
    certificates.authority.revoke("worker/a")
    worker = guarded.worker(folder, "a")
    with pytest.raises(NotAllowed):
        await worker.join()
    certificates.revoked.write_text("nothing")
    with pytest.raises(NotAllowed):
        await worker.join()
    assert "stays in use" in caplog.text
    await worker.close()


# --- files ---


def test_files_that_do_not_fit_are_refused_at_once(certificates: Certificates, tmp_path: Path) -> None:
    good = certificates.issue(Role.WORKER, "a")
    expired = certificates.issue(Role.WORKER, "a", "expired", lived=True)
    other = Certificates(tmp_path / "others").issue(Role.WORKER, "a", "other")
    cases = {
        "is not the key of": TlsFiles(good / CERTIFICATE, other / KEY, good / AUTHORITY),
        "was not issued by": TlsFiles(good / CERTIFICATE, good / KEY, other / AUTHORITY),
        "expired on": TlsFiles.in_folder(expired),
        "cannot be read: No such file": TlsFiles.in_folder(tmp_path / "nowhere"),
        "holds no private key": TlsFiles(good / CERTIFICATE, good / CERTIFICATE, good / AUTHORITY),
        "holds no certificate": TlsFiles(good / KEY, good / KEY, good / AUTHORITY),
        "holds no revocation list": TlsFiles(
            good / CERTIFICATE, good / KEY, good / AUTHORITY, good / CERTIFICATE
        ),
    }
    for told, files in cases.items():
        with pytest.raises(CertificateError, match=told):
            Tls(files, Role.WORKER)
    with pytest.raises(CertificateError, match="worker/a's; a certificate of role admin is needed"):
        open_tls(good, Role.ADMIN)
    assert open_tls(None, Role.WORKER) is None


async def test_two_authorities_are_trusted_while_one_follows_the_other(
    certificates: Certificates, tmp_path: Path
) -> None:
    folder = certificates.issue(COORDINATOR.role, COORDINATOR.name)
    successor = Certificates(tmp_path / "successor")
    new_worker = successor.issue(Role.WORKER, "b")
    both = (folder / AUTHORITY).read_bytes() + (new_worker / AUTHORITY).read_bytes()
    for trusting in (folder, new_worker):
        (trusting / AUTHORITY).write_bytes(both)
    running = Guarded(certificates, certificates.server_files(folder))
    await running.start(tmp_path)
    for worker_folder, name in ((certificates.issue(Role.WORKER, "a"), "a"), (new_worker, "b")):
        worker = running.worker(worker_folder, name)
        await worker.join()
        await worker.close()
    await running.stop()
