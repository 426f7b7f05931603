"""What can be at the other end of an address: told at once, in our words, never in gRPC's."""

import asyncio
import contextlib
import os
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from fedpft.v1 import admin_pb2, admin_pb2_grpc
from grpc import StatusCode, aio
from prometheus_client import CollectorRegistry

from common.address import Address
from common.errors import BadMessage, FedPftError, PeerError, UnknownHost, Unreachable, WrongService
from common.failures import told
from common.observability.metrics_endpoint import MetricsEndpoint
from common.transport.rpc import MAX_MESSAGE_BYTES, call, new_channel, new_server
from common.trust import authority as authority_module
from common.trust.authority import Authority
from common.trust.certificates import AUTHORITY
from common.trust.identity import Identity, Role
from common.trust.tls import Tls, TlsFiles

LOOPBACK = Address("127.0.0.1", 0)
NOBODYS = "no-such-host.invalid"

# What only gRPC, OpenSSL or the C library would say.
FOREIGN = re.compile(
    r"ipv[46]:|UNAVAILABLE|INTERNAL|UNKNOWN|DEADLINE|RESOURCE_EX|UNIMPL|SSL_|TSI_|error:|recvmsg|sendmsg|errno|"
    r"failed to connect to all|Socket closed|Method not found|\bRPC\b|SETTINGS|HTTP/2|http2|lookup|Exception|"
    r"[Ss]tream removed|GOAWAY|%5B"
)


async def said(
    address: Address, tls: Tls | None = None, keepalive: float = 20.0, timeout: float = 8.0
) -> FedPftError:
    """What asking whoever is there comes to."""
    channel = new_channel(address, keepalive, tls)
    stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
    try:
        with pytest.raises(FedPftError) as caught:
            await call(stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=timeout))
    finally:
        await channel.close()
    words = str(caught.value)
    assert not FOREIGN.search(words), words
    assert "\n" not in words and len(words) < 180
    return caught.value


# --- what listens there ---


def listener(behave: Callable[[socket.socket], None]) -> Address:
    """Somebody's server: every connection is one call of `behave`."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=behaved, args=(connection,), daemon=True).start()

    def behaved(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            behave(connection)

    threading.Thread(target=serve, daemon=True).start()
    return Address("127.0.0.1", server.getsockname()[1])


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closes(connection: socket.socket) -> None:
    return


def says_nothing(connection: socket.socket) -> None:
    threading.Event().wait(30)


def is_ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    connection.recv(1000)
    connection.recv(1000)


def is_http(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.recv(1000)


def is_random(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(bytes(range(200, 256)) + os.urandom(100))
    connection.recv(1000)


SERVERS: list[tuple[Callable[[socket.socket], None], type[FedPftError], str, str]] = [
    (resets, Unreachable, "closes connections as they open", "TLS handshake"),
    (closes, Unreachable, "closes connections as they open", "TLS handshake"),
    (is_ssh, WrongService, "another service answers at", "speaks plain text, not TLS"),
    (is_http, WrongService, "another service answers at", "speaks plain text, not TLS"),
    (is_random, WrongService, "another service answers at", "speaks plain text, not TLS"),
]


@pytest.mark.parametrize(("behave", "kind", "words", "_"), SERVERS)
async def test_another_server(
    behave: Callable[[socket.socket], None], kind: type[FedPftError], words: str, _: str
) -> None:
    address = listener(behave)
    error = await said(address)
    assert type(error) is kind and words in str(error) and str(address) in str(error)


@pytest.mark.parametrize(("behave", "_", "__", "words"), SERVERS)
async def test_another_server_asked_by_tls(
    behave: Callable[[socket.socket], None], _: type[FedPftError], __: str, words: str, tmp_path: Path
) -> None:
    address = listener(behave)
    error = await said(address, Certificates(tmp_path).worker())
    # Which of the two is seen first when the connection goes is chance.
    likely = (words, "closes connections as they open") if words == "TLS handshake" else (words,)
    assert any(word in str(error) for word in likely) and str(address) in str(error)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_that_says_nothing(tls: bool, tmp_path: Path) -> None:
    address = listener(says_nothing)
    error = await said(address, Certificates(tmp_path).worker() if tls else None)
    assert f"{address} takes connections, but does not answer" in str(error) or "no answer in time" in str(
        error
    )


async def test_the_metrics_port() -> None:
    endpoint = MetricsEndpoint(CollectorRegistry(), LOOPBACK)
    error = await said(Address("127.0.0.1", endpoint.port))
    await asyncio.to_thread(endpoint.close)
    assert isinstance(error, WrongService)
    assert str(error) == (
        f"another service answers at 127.0.0.1:{endpoint.port}; "
        "name HOST:PORT of server.listen, not that of metrics or page"
    )


async def test_the_port_for_probes() -> None:
    async with serving() as address:
        assert "another service answers" in str(await said(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_nobody_listens(host: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = await said(Address(host, probe.getsockname()[1]))
    assert str(error).startswith("nothing listens at ") and type(error) is Unreachable


async def test_a_name_that_nobody_has() -> None:
    error = await said(Address(NOBODYS, 7070))
    assert isinstance(error, UnknownHost)
    assert str(error) == (
        f"the name {NOBODYS} has no address here; correct it, or add it to the DNS or to /etc/hosts"
    )


@pytest.mark.parametrize("host", ["unix", "xds", "ipv4", "dns"])
async def test_a_host_that_is_named_like_a_way_of_naming(host: str) -> None:
    assert f"the name {host} has no address" in str(await said(Address(host, 7070)))


@pytest.mark.parametrize("host", ["255.255.255.255", "224.0.0.1"])
async def test_an_address_that_is_no_hosts(host: str) -> None:
    assert f"{host}:7070" in str(await said(Address(host, 7070)))


# --- certificates ---


class Certificates:
    """Folders of two authorities."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ours = Authority.create(folder / "ours", "ours")
        self.other = Authority.create(folder / "other", "other")

    def issue(self, role: Role, authority: Authority, *names: str, name: str = "a") -> Path:
        folder = self._folder / f"{role}-{len(list(self._folder.iterdir()))}"
        authority.issue(Identity(role, name), folder, names)
        return folder

    def worker(self) -> Tls:
        return Tls(TlsFiles.in_folder(self.issue(Role.WORKER, self.ours)), Role.WORKER)

    def coordinator(self, *names: str) -> Tls:
        folder = self.issue(Role.COORDINATOR, self.ours, *names)
        return Tls(TlsFiles.in_folder(folder), Role.COORDINATOR)


@contextlib.asynccontextmanager
async def serving(tls: Any = None, at: Address = LOOPBACK) -> AsyncIterator[Address]:
    """A gRPC server that has no service at all."""
    server, address = new_server(at, tls=tls)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_tls_works_by_every_kind_of_address(host: str, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(
        certificates.coordinator("::1", "127.0.0.1", "localhost"), Address(host, 0)
    ) as address:
        assert "another service answers" in str(await said(address, certificates.worker()))


async def test_plain_text_where_tls_is_spoken_and_the_other_way_round(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(certificates.coordinator()) as address:
        assert "see that both sides speak TLS (--tls) or none" in str(await said(address))
    async with serving() as address:
        error = await said(address, certificates.worker())
        assert f"{address} speaks plain text, not TLS" in str(error)


async def test_a_certificate_of_another_host(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(certificates.coordinator("elsewhere.example"), Address("127.0.0.1", 0)) as address:
        error = await said(Address("127.0.0.2", address.port), certificates.worker())
    # 127.0.0.2 is loopback, too; nobody listens there, unless the kernel says otherwise.
    assert "nothing listens" in str(error) or "for another host" in str(error)
    async with serving(certificates.coordinator("elsewhere.example"), Address("127.0.0.2", 0)) as address:
        error = await said(address, certificates.worker())
    assert f"the certificate at {address} is for another host" in str(error)


async def test_a_certificate_of_another_authority(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    stranger = Tls(TlsFiles.in_folder(certificates.issue(Role.WORKER, certificates.other)), Role.WORKER)
    async with serving(certificates.coordinator()) as address:
        error = await said(address, stranger)
    assert f"the authority in ca.crt did not issue the certificate at {address}" in str(error)


async def test_a_certificate_that_the_other_side_refuses(tmp_path: Path) -> None:
    """This side trusts both authorities, the other one only its own."""
    certificates = Certificates(tmp_path)
    folder = certificates.issue(Role.WORKER, certificates.other)
    both = (folder / AUTHORITY).read_bytes() + (tmp_path / "ours" / AUTHORITY).read_bytes()
    (folder / AUTHORITY).chmod(0o600)
    (folder / AUTHORITY).write_bytes(both)
    async with serving(certificates.coordinator()) as address:
        error = await said(address, Tls(TlsFiles.in_folder(folder), Role.WORKER))
    assert f"{address} closes connections" in str(error) and "trusts this side's certificate" in str(error)


@pytest.mark.parametrize(("days", "words"), [(-400, "has expired"), (400, "is not valid yet")])
async def test_a_certificate_out_of_its_time(days: int, words: str, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    begins = datetime.now(UTC) + timedelta(days=days)
    with patch.object(authority_module, "_period", lambda _: (begins, begins + timedelta(days=1))):
        folder = certificates.issue(Role.COORDINATOR, certificates.ours)
    files = TlsFiles.in_folder(folder)
    key, shown = files.key.read_bytes(), files.certificate.read_bytes()

    class OutOfTime:
        def server_credentials(self) -> grpc.ServerCredentials:
            return grpc.ssl_server_credentials([(key, shown)])

    async with serving(OutOfTime()) as address:
        error = await said(address, certificates.worker())
    assert f"the certificate at {address} {words}" in str(error)


# --- what comes through a connection ---


Answer = Callable[[], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[tuple[Address, aio.Server]]:
    """A server that answers the call for the status by `answer`."""

    async def handle(request: bytes, context: Any) -> bytes:
        return await answer()

    handler = grpc.unary_unary_rpc_method_handler(handle)
    server, address = new_server(LOOPBACK)
    service = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"GetStatus": handler})])
    await server.start()
    try:
        yield address, server
    finally:
        await server.stop(None)


async def test_an_answer_that_is_too_large() -> None:
    async def large() -> bytes:
        return bytes(MAX_MESSAGE_BYTES + 1)

    async with answering(large) as (address, _):
        error = await said(address)
    assert isinstance(error, BadMessage) and "larger than" in str(error)


async def test_an_answer_that_is_no_message() -> None:
    async def garbage() -> bytes:
        return b"\xff\xff\xff"

    async with answering(garbage) as (address, _):
        error = await said(address)
    assert isinstance(error, BadMessage) and "cannot be read" in str(error)


async def test_a_handler_that_fails_without_a_name() -> None:
    async def failing() -> bytes:
        raise KeyError("/home/owner/secret")

    async with answering(failing) as (address, _):
        error = await said(address)
    assert type(error) is PeerError and "secret" not in str(error)


async def test_a_server_that_ends_during_a_call() -> None:
    begun = asyncio.Event()

    async def waits() -> bytes:
        begun.set()
        await asyncio.sleep(20)
        return b""

    async with answering(waits) as (address, server):
        asking = asyncio.create_task(said(address))
        await begun.wait()
        await server.stop(None)
        assert isinstance(await asking, Unreachable)


async def test_an_answer_that_does_not_come() -> None:
    async def waits() -> bytes:
        await asyncio.sleep(20)
        return b""

    async with answering(waits) as (address, _):
        error = await said(address, timeout=0.5)
    assert isinstance(error, Unreachable) and "no answer in time" in str(error)


def frame(kind: int, flags: int, content: bytes, stream: int = 1) -> bytes:
    """Of HTTP/2."""
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def literal(name: bytes, value: bytes) -> bytes:
    """A header, in HPACK."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def http2(*frames: bytes, then: Callable[[socket.socket], None] = says_nothing) -> Address:
    """A server that answers the first request with these frames, and then does something else."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(frame(4, 0, b"", 0) + frame(4, 1, b"", 0))
        got = b""
        while b"GetStatus" not in got and b"\x00\x00\x00\x00\x00" not in got[-5:]:
            got += connection.recv(4096)
        connection.sendall(b"".join(frames))
        then(connection)

    return listener(behave)


OK = b"\x88" + literal(b"content-type", b"application/grpc")


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([frame(1, 5, literal(b":status", b"502"))], WrongService),
        ([frame(1, 5, literal(b":status", b"404"))], WrongService),
        ([frame(1, 5, literal(b":status", b"403"))], WrongService),
        ([frame(1, 4, b"\x88"), frame(0, 1, b"<html>hello</html>")], FedPftError),
        (
            [
                frame(1, 4, OK + literal(b"grpc-encoding", b"gzip")),
                frame(0, 0, b"\x01\x00\x00\x00\x04\xde\xad\xbe\xef"),
                frame(1, 5, literal(b"grpc-status", b"0")),
            ],
            FedPftError,
        ),
        (
            [
                frame(1, 4, OK + literal(b"grpc-encoding", b"zstd")),
                frame(0, 0, b"\x01\x00\x00\x00\x04\xde\xad\xbe\xef"),
                frame(1, 5, literal(b"grpc-status", b"0")),
            ],
            FedPftError,
        ),
        ([frame(1, 5, OK + literal(b"grpc-status", b"99"))], FedPftError),
        ([frame(3, 0, struct.pack(">I", 2))], Unreachable),
        ([frame(3, 0, struct.pack(">I", 11))], FedPftError),
        ([frame(7, 0, struct.pack(">II", 0, 2) + b"bye", 0)], Unreachable),
        ([frame(7, 0, struct.pack(">II", 0, 11) + b"too_many_pings", 0)], Unreachable),
        ([frame(1, 4, b"\xff\xff\xff\xff")], FedPftError),
    ],
    ids=[
        "502",
        "404",
        "403",
        "a page",
        "compressed garbage",
        "another compression",
        "another status",
        "stream reset",
        "calm down",
        "goaway",
        "too many pings",
        "broken headers",
    ],
)
async def test_what_a_proxy_or_a_stranger_answers(frames: list[bytes], kind: type[FedPftError]) -> None:
    error = await said(http2(*frames))
    assert isinstance(error, kind), error


@pytest.mark.parametrize("then", [resets, closes])
async def test_a_connection_that_breaks_during_a_call(then: Callable[[socket.socket], None]) -> None:
    assert isinstance(await said(http2(then=then)), Unreachable)


async def test_a_connection_that_dies_without_a_word() -> None:
    error = await said(http2(), keepalive=1.0)
    assert isinstance(error, Unreachable) and "probes of it were not answered" in str(error)


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_every_status_has_words_of_ours(code: StatusCode) -> None:
    words = str(told(code, "Some text of gRPC's from tomorrow"))
    assert "gRPC" not in words and code.name not in words
