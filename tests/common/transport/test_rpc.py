"""Addresses, servers, and domain errors on their way through gRPC."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fedpft.v1 import admin_pb2, admin_pb2_grpc
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common import errors
from common.address import Address, require_loopback
from common.errors import (
    AddressError,
    BadUpdate,
    FedPftError,
    PeerError,
    RunFailed,
    Unreachable,
    WrongService,
)
from common.transport.rpc import STATUS, answers, call, domain_error, new_channel, new_server

DOMAIN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FedPftError) and kind is not FedPftError
]
LOOPBACK = Address("127.0.0.1", 0)


class Failing(admin_pb2_grpc.AdminServiceServicer):
    """Answers every call with `error`; the stream first yields one event."""

    error: Exception

    @answers
    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: object
    ) -> admin_pb2.GetStatusResponse:
        raise self.error

    @answers
    async def WatchEvents(
        self, request: admin_pb2.WatchEventsRequest, context: object
    ) -> AsyncIterator[admin_pb2.WatchEventsResponse]:
        yield admin_pb2.WatchEventsResponse(sequence=1)
        raise self.error


@pytest.fixture
async def failing() -> AsyncIterator[tuple[Failing, admin_pb2_grpc.AdminServiceStub]]:
    """A servicer behind a real server, and a stub that calls it."""
    servicer = Failing()
    server, address = new_server(LOOPBACK)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    await server.start()
    channel = new_channel(address)
    yield servicer, admin_pb2_grpc.AdminServiceStub(channel)
    await channel.close()
    await server.stop(None)


Failure = tuple[Failing, admin_pb2_grpc.AdminServiceStub]


def test_every_domain_error_has_a_status() -> None:
    assert len(DOMAIN) > 15
    assert set(STATUS) == set(DOMAIN)
    assert StatusCode.OK not in STATUS.values()


@pytest.mark.parametrize("kind", DOMAIN)
async def test_a_domain_error_arrives_as_the_same_class(failing: Failure, kind: type[FedPftError]) -> None:
    servicer, stub = failing
    servicer.error = kind("what is wrong, and where")
    with pytest.raises(kind) as caught:
        await call(stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=5))
    assert type(caught.value) is kind
    assert str(caught.value) == "what is wrong, and where"


async def test_a_domain_error_ends_a_stream_after_what_came_before(failing: Failure) -> None:
    servicer, stub = failing
    servicer.error = BadUpdate("tensor w is missing")
    received = []
    with pytest.raises(aio.AioRpcError) as caught:
        async for message in stub.WatchEvents(admin_pb2.WatchEventsRequest(), timeout=5):
            received.append(message.sequence)
    assert received == [1]
    assert caught.value.code() is STATUS[BadUpdate]
    assert isinstance(domain_error(caught.value), BadUpdate)


async def test_a_bug_tells_the_peer_nothing(failing: Failure, caplog: pytest.LogCaptureFixture) -> None:
    servicer, stub = failing
    servicer.error = KeyError("/home/owner/secret")
    with pytest.raises(PeerError) as caught:
        await call(stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=5))
    assert "secret" not in str(caught.value)
    assert "GetStatus failed" in caplog.text and "secret" in caplog.text


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    server, address = new_server(LOOPBACK)
    await server.start()
    await server.stop(None)
    channel = new_channel(address)
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(Unreachable, match=f"^nothing listens at {address}; start it there"):
        await call(stub.Check(health_pb2.HealthCheckRequest(), timeout=5))
    await channel.close()


async def test_a_method_that_is_not_there_is_another_services(failing: Failure) -> None:
    _, stub = failing
    with pytest.raises(WrongService, match="another service answers"):
        await call(stub.StopRun(admin_pb2.StopRunRequest(), timeout=5))


async def test_a_second_server_on_the_same_port_is_refused() -> None:
    first, address = new_server(LOOPBACK)
    await first.start()
    with pytest.raises(AddressError, match=f"cannot listen on {address}: .*in use.*choose another port"):
        new_server(address)
    await first.stop(None)


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1:7070"):
        new_server(Address("192.0.2.1", 7070))


async def test_port_zero_takes_a_free_port_for_each_server() -> None:
    pairs = [new_server(LOOPBACK) for _ in range(2)]
    assert len({address.port for _, address in pairs} - {0}) == 2
    await asyncio.gather(*(server.stop(None) for server, _ in pairs))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7070", "127.0.0.1", 7070),
        ("localhost:0", "localhost", 0),
        ("coordinator.example.org:65535", "coordinator.example.org", 65535),
        ("[::1]:7070", "::1", 7070),
        ("[2001:db8::1]:1", "2001:db8::1", 1),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("worker_1.compose:1", "worker_1.compose", 1),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert str(Address(host, port)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7070",
        ":7070",
        "host",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "host:٧٠٧٠",
        "[::1]",
        "::1:7070",
        "[127.0.0.1]:7070",
        "[host]:7070",
        "[::1:7070",
        "1.2.3:7070",
        "256.1.1.1:7070",
        "127.0.0.01:7070",
        "user@host:7070",
        "a host:7070",
        " host:7070",
        "host :7070",
        "host,other:7070",
        "-host:7070",
        "a..b:7070",
        "http://host:7070",
        "https://host:7070/metrics",
        "dns:///host:7070",
        "ipv4:1.2.3.4:7070",
        "unix:/tmp/socket:7070",
        "host:70 70",
        "host:7070/",
        "host:7070\n",
    ],
)
def test_what_is_not_host_and_port_is_an_address_error(text: str) -> None:
    for read in (Address.parse, Address.of_peer):
        with pytest.raises(AddressError, match=r"not HOST:PORT, such as 127\.0\.0\.1:7070") as caught:
            read(text)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.0.0.0:7070", "to connect, name one of them, such as 127.0.0.1:7070 on the same host"),
        ("[::]:7070", "to connect, name one of them, such as [::1]:7070 on the same host"),
        ("host:0", "port 0 is for listening on a free one"),
    ],
)
def test_what_is_for_listening_alone_is_not_connected_to(text: str, says: str) -> None:
    assert str(Address.parse(text)) == text
    with pytest.raises(AddressError) as caught:
        Address.of_peer(text)
    assert says in str(caught.value)


def test_a_name_beyond_ascii_is_the_one_that_the_dns_knows() -> None:
    assert str(Address.parse("bücher.example:7070")) == "xn--bcher-kva.example:7070"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LocalHost", "localhost.", "::1"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert Address(host, 1).loopback
    require_loopback(Address(host, 1), insecure=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "2001:db8::1", "example.org", "localhost.x"]
)
def test_an_address_others_can_reach_must_be_wanted(host: str) -> None:
    address = Address(host, 1)
    with pytest.raises(AddressError, match="--insecure"):
        require_loopback(address, insecure=False)
    require_loopback(address, insecure=True)


async def test_answers_keeps_the_methods_name_for_the_log() -> None:
    assert Failing.GetStatus.__name__ == "GetStatus"
    assert Failing.WatchEvents.__name__ == "WatchEvents"


def test_run_failed_is_not_worth_another_try() -> None:
    """A worker tries again what is Unreachable only; a failed run must not look like that."""
    assert STATUS[RunFailed] not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
