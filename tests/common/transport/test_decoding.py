"""Bytes that are no message of the protocol, sent to every kind of call."""

from collections.abc import AsyncIterator

import pytest
from fedpft.v1 import admin_pb2, admin_pb2_grpc, federation_pb2, federation_pb2_grpc
from grpc import StatusCode, aio

from common.address import Address
from common.errors import BadMessage
from common.transport.decoding import MAX_REQUEST_BYTES, Decoding
from common.transport.rpc import MAX_MESSAGE_BYTES, answers, domain_error, new_server

# A field of length 100 that is not there; a text that is not UTF-8.
BROKEN = [b"\x0a\x64abc", b"\x0a\x01\xff"]


class Servicer(federation_pb2_grpc.FederationServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Answers what it understands; counts the messages of a submission."""

    @answers
    async def Heartbeat(
        self, request: federation_pb2.HeartbeatRequest, context: object
    ) -> federation_pb2.HeartbeatResponse:
        return federation_pb2.HeartbeatResponse()

    @answers
    async def WatchTasks(
        self, request: federation_pb2.WatchTasksRequest, context: object
    ) -> AsyncIterator[federation_pb2.WatchTasksResponse]:
        yield federation_pb2.WatchTasksResponse()

    @answers
    async def SubmitUpdate(
        self, request_iterator: AsyncIterator[federation_pb2.SubmitUpdateRequest], context: object
    ) -> federation_pb2.SubmitUpdateResponse:
        async for _ in request_iterator:
            pass
        return federation_pb2.SubmitUpdateResponse()


@pytest.fixture
async def channel() -> AsyncIterator[aio.Channel]:
    server, address = new_server(Address("127.0.0.1", 0), interceptors=[Decoding()])
    federation_pb2_grpc.add_FederationServiceServicer_to_server(Servicer(), server)
    await server.start()
    async with aio.insecure_channel(str(address)) as open_channel:
        yield open_channel
    await server.stop(None)


async def call(channel: aio.Channel, name: str, content: bytes) -> None:
    path = f"/fedpft.v1.FederationService/{name}"
    match name:
        case "SubmitUpdate":
            first = federation_pb2.SubmitUpdateRequest().SerializeToString()
            await channel.stream_unary(path)(iter([first, content]), timeout=10)
        case "WatchTasks":
            async for _ in channel.unary_stream(path)(content, timeout=10):
                pass
        case _:
            await channel.unary_unary(path)(content, timeout=10)


CALLS = ["Heartbeat", "WatchTasks", "SubmitUpdate"]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", CALLS)
async def test_what_is_no_message_is_answered_as_a_bad_one(
    channel: aio.Channel, name: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel, name, content)
    assert isinstance(domain_error(caught.value), BadMessage)
    assert caplog.text == ""


@pytest.mark.parametrize("name", CALLS)
async def test_a_good_message_gets_through(channel: aio.Channel, name: str) -> None:
    await call(channel, name, b"")


async def test_what_is_not_part_of_a_stream_must_be_small(channel: aio.Channel) -> None:
    long = admin_pb2.WatchEventsResponse(text="x" * MAX_REQUEST_BYTES).SerializeToString()
    with pytest.raises(aio.AioRpcError, match=f"at most {MAX_REQUEST_BYTES} bytes") as caught:
        await call(channel, "Heartbeat", long)
    assert isinstance(domain_error(caught.value), BadMessage)


async def test_what_is_longer_than_any_message_is_not_even_read(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel, "SubmitUpdate", bytes(MAX_MESSAGE_BYTES + 1))
    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
