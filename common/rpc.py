"""gRPC channels and servers, their limits, and the table between domain errors and status codes."""

import functools
import inspect
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from grpc import StatusCode, aio

from common import errors
from common.chunks import MAX_CHUNK_BYTES
from common.errors import AddressError, FedPftError, PeerError, Unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")

# A message is a chunk and its envelope, or something far smaller.
MAX_MESSAGE_BYTES = MAX_CHUNK_BYTES + 64 * 1024

# gRPC puts this many bytes before every message (compression flag and length).
FRAME_BYTES = 5

_ERROR_KEY = "fedpft-error"

_LIMITS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_SERVER_OPTIONS = [
    *_LIMITS,
    # A second server on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_CHANNEL_OPTIONS = [
    *_LIMITS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Peers are addressed directly; a proxy from the environment would only get in the way.
    ("grpc.enable_http_proxy", 0),
]

# What the peer is told. A test holds this table complete: every error that a handler can raise.
STATUS: dict[type[FedPftError], StatusCode] = {
    errors.ConfigError: StatusCode.INVALID_ARGUMENT,
    errors.DataError: StatusCode.INVALID_ARGUMENT,
    errors.ModelError: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedFamily: StatusCode.INVALID_ARGUMENT,
    errors.AddressError: StatusCode.INVALID_ARGUMENT,
    errors.RunFailed: StatusCode.FAILED_PRECONDITION,
    errors.StoreError: StatusCode.RESOURCE_EXHAUSTED,
    errors.Stopped: StatusCode.CANCELLED,
    errors.Unreachable: StatusCode.UNAVAILABLE,
    errors.ProtocolMismatch: StatusCode.FAILED_PRECONDITION,
    errors.BadMessage: StatusCode.INVALID_ARGUMENT,
    errors.UnknownSession: StatusCode.UNAUTHENTICATED,
    errors.SessionReplaced: StatusCode.ABORTED,
    errors.UnknownArtifact: StatusCode.NOT_FOUND,
    errors.BrokenTransfer: StatusCode.OUT_OF_RANGE,
    errors.BadDigest: StatusCode.DATA_LOSS,
    errors.BadUpdate: StatusCode.INVALID_ARGUMENT,
    errors.StaleRound: StatusCode.FAILED_PRECONDITION,
    errors.PeerError: StatusCode.UNKNOWN,
}
_BY_NAME = {kind.__name__: kind for kind in STATUS}

# Worth another try: the peer or the way to it was gone, which may pass.
_TRANSIENT = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}


@dataclass(frozen=True)
class Address:
    """Host and port, as HOST:PORT or [IPv6]:PORT."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises AddressError."""
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isdecimal() and int(port) < 65536):
            raise AddressError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:7070")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def require_loopback(address: Address, insecure: bool) -> None:
    """Raise AddressError for plain text that others could reach, unless the user wants that."""
    if not (address.loopback or insecure):
        raise AddressError(
            f"{address} can be reached from other machines in plain text; "
            "listen on 127.0.0.1, or say --insecure (server.insecure = true)"
        )


def new_server(address: Address) -> tuple[aio.Server, Address]:
    """A server that will listen on `address`, and where it really does (port 0 takes a free one).

    Raises AddressError when the address is taken or not this machine's.
    """
    server = aio.server(options=_SERVER_OPTIONS)
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError:
        raise AddressError(f"cannot listen on {address}: {_bind_problem(address)}") from None
    return server, Address(address.host, port)


def _bind_problem(address: Address) -> str:
    """Why binding fails; gRPC does not say."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return f"{error.strerror or error}; stop what uses it or choose another port"
    return "it was taken for a moment; try again"


def new_channel(address: Address) -> aio.Channel:
    """A channel to `address`; connects lazily."""
    return aio.insecure_channel(str(address), options=_CHANNEL_OPTIONS)


def answers(method: Callable[..., Any]) -> Callable[..., Any]:
    """Servicer methods may raise domain errors; this answers the caller with their status."""

    async def fail(context: aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        if isinstance(error, FedPftError):
            metadata = ((_ERROR_KEY, type(error).__name__),)
            await context.abort(STATUS[type(error)], str(error), metadata)
        log.error("%s failed", method.__name__, exc_info=error)
        await context.abort(StatusCode.INTERNAL, "internal error; the coordinator's log says more")

    # An abort itself travels as an exception that must pass: it is no Exception of ours.
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream(
            self: Any, request: Any, context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                async for reply in method(self, request, context):
                    yield reply
            except aio.AbortError:
                raise
            except Exception as error:
                await fail(context, error)

        return stream

    @functools.wraps(method)
    async def unary(self: Any, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(self, request, context)
        except aio.AbortError:
            raise
        except Exception as error:
            await fail(context, error)

    return unary


def domain_error(error: grpc.RpcError) -> FedPftError:
    """The domain error that a failed call stands for."""
    assert isinstance(error, aio.AioRpcError)
    details = error.details() or error.code().name
    named = dict(error.trailing_metadata() or ()).get(_ERROR_KEY)
    if isinstance(named, str) and named in _BY_NAME:
        return _BY_NAME[named](details)
    if error.code() in _TRANSIENT:
        return Unreachable(f"{error.code().name.lower().replace('_', ' ')}: {details}")
    return PeerError(f"{error.code().name}: {details}")


async def call(awaitable: Awaitable[T]) -> T:
    """Await a call, raising domain errors instead of gRPC's."""
    try:
        return await awaitable
    except aio.AioRpcError as error:
        raise domain_error(error) from None
