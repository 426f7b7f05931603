"""gRPC channels and servers, their limits, and the table between domain errors and status codes."""

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

import grpc
from grpc import StatusCode, aio

from common import errors
from common.address import Address, require_free
from common.errors import AddressError, BadMessage, FedPftError, PeerError
from common.failures import told
from common.observability import tracing
from common.runtime.fault_points import Point, armed, reach
from common.transport.chunks import MAX_CHUNK_BYTES
from common.trust.tls import GuestTls, ServerOnlyTls, Tls

log = logging.getLogger(__name__)
# Of an answer that cannot be decoded the library makes None, and a traceback; `readable` tells it.
logging.getLogger("grpc._common").setLevel(logging.CRITICAL)

T = TypeVar("T")

# A message is a chunk and its envelope, or something far smaller.
MAX_MESSAGE_BYTES = MAX_CHUNK_BYTES + 64 * 1024

# gRPC puts this many bytes before every message (compression flag and length).
FRAME_BYTES = 5

# A stream of chunks on which nothing comes for so long is given up, though its connection lives.
STALL_SECONDS = 60.0

# After so many seconds of silence on a connection the other side is pinged. No answer for as long again,
# and the connection counts as dead: what waits on it fails.
KEEPALIVE_SECONDS = 20.0
# Who pings more often than this is cut off.
_LEAST_KEEPALIVE_SECONDS = 0.4

_ERROR_KEY = "fedpft-error"
# Metadata of a worker's call: the id of the run that it concerns.
RUN_KEY = "fedpft-run"

Options = list[tuple[str, int]]


def _limits(keepalive_seconds: float) -> Options:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(1000 * keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", int(1000 * keepalive_seconds)),
        # Without this the former has no effect below a minute.
        ("grpc.http2.ping_timeout_ms", int(1000 * keepalive_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Otherwise pings stop after two on a silent connection, and its death goes unnoticed.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _server_options(keepalive_seconds: float) -> Options:
    return [
        *_limits(keepalive_seconds),
        # More calls than these one connection of an honest caller never has under way; a new one must come
        # to its first call soon.
        ("grpc.max_concurrent_streams", 128),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A second server on the same port must fail, not share it.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * _LEAST_KEEPALIVE_SECONDS)),
    ]


def _channel_options(keepalive_seconds: float) -> Options:
    return [
        *_limits(keepalive_seconds),
        # A connection that does not come about is tried anew after this time, with backoff between.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Several workers in one process have a connection each, as in processes of their own.
        ("grpc.use_local_subchannel_pool", 1),
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
    errors.CertificateError: StatusCode.INVALID_ARGUMENT,
    errors.RunFailed: StatusCode.FAILED_PRECONDITION,
    errors.StoreError: StatusCode.RESOURCE_EXHAUSTED,
    errors.Stopped: StatusCode.CANCELLED,
    errors.Unreachable: StatusCode.UNAVAILABLE,
    errors.UnknownHost: StatusCode.UNAVAILABLE,
    errors.WrongService: StatusCode.UNAVAILABLE,
    errors.ProtocolMismatch: StatusCode.FAILED_PRECONDITION,
    errors.NotAllowed: StatusCode.PERMISSION_DENIED,
    errors.AgainstPolicy: StatusCode.PERMISSION_DENIED,
    errors.BudgetSpent: StatusCode.FAILED_PRECONDITION,
    errors.TooMany: StatusCode.RESOURCE_EXHAUSTED,
    errors.BadMessage: StatusCode.INVALID_ARGUMENT,
    errors.UnknownSession: StatusCode.UNAUTHENTICATED,
    errors.SessionReplaced: StatusCode.ABORTED,
    errors.ClassesWanted: StatusCode.FAILED_PRECONDITION,
    errors.NameTaken: StatusCode.ALREADY_EXISTS,
    errors.UnknownArtifact: StatusCode.NOT_FOUND,
    errors.UnknownRun: StatusCode.NOT_FOUND,
    errors.BrokenTransfer: StatusCode.OUT_OF_RANGE,
    errors.BadDigest: StatusCode.DATA_LOSS,
    errors.BadUpdate: StatusCode.INVALID_ARGUMENT,
    errors.BadScores: StatusCode.INVALID_ARGUMENT,
    errors.CannotTrain: StatusCode.ABORTED,
    errors.SecureRefused: StatusCode.FAILED_PRECONDITION,
    errors.BadShare: StatusCode.INVALID_ARGUMENT,
    errors.StaleRound: StatusCode.FAILED_PRECONDITION,
    errors.LateUpdate: StatusCode.FAILED_PRECONDITION,
    errors.UnknownRound: StatusCode.FAILED_PRECONDITION,
    errors.NotSelected: StatusCode.FAILED_PRECONDITION,
    errors.PeerError: StatusCode.UNKNOWN,
}
_BY_NAME = {kind.__name__: kind for kind in STATUS}


def new_server(
    address: Address,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
    tls: Tls | ServerOnlyTls | None = None,
    interceptors: Sequence[aio.ServerInterceptor] = (),
    most_calls: int | None = None,
) -> tuple[aio.Server, Address]:
    """A server that will listen on `address`, and where it really does (port 0 takes a free one).

    `most_calls` are served at the same time; more are turned away before anything of them is read.
    Raises AddressError when the address is taken or not this machine's.
    """
    server = aio.server(
        options=_server_options(keepalive_seconds),
        interceptors=interceptors,
        maximum_concurrent_rpcs=most_calls,
    )
    try:
        if tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), tls.server_credentials())
    except RuntimeError:
        # gRPC does not say why.
        require_free(address)
        raise AddressError(f"cannot listen on {address}: it was taken for a moment; try again") from None
    return server, Address(address.host, port)


def new_channel(
    address: Address, keepalive_seconds: float = KEEPALIVE_SECONDS, tls: Tls | GuestTls | None = None
) -> aio.Channel:
    """A channel to `address`; connects lazily."""
    options = _channel_options(keepalive_seconds)
    if tls is None:
        return aio.insecure_channel(address.target, options=options)
    return aio.secure_channel(address.target, tls.channel_credentials(), options=options)


def _named(kind: type[FedPftError]) -> tuple[tuple[str, str]]:
    """Metadata by which the caller knows the error's class, and that it comes from a handler at all."""
    return ((_ERROR_KEY, kind.__name__),)


def run_named(context: aio.ServicerContext[Any, Any]) -> str:
    """The id of the run that a call says it concerns; empty where it says none."""
    named = dict(context.invocation_metadata() or ()).get(RUN_KEY, "")
    return named if isinstance(named, str) else ""


async def refuse(context: aio.ServicerContext[Any, Any], error: FedPftError) -> NoReturn:
    """Answer a call with a domain error, which arrives as the same class."""
    await context.abort(STATUS[type(error)], str(error), _named(type(error)))


def _begin(method: Callable[..., Any], context: aio.ServicerContext[Any, Any]) -> None:
    """The fault points of a call."""
    if armed():
        reach(Point.CALL_RECEIVED, method.__name__)
        ended: Any = lambda _: reach(Point.CALL_ENDED, method.__name__)  # noqa: E731  # mistyped in its stubs
        context.add_done_callback(ended)


def answers(method: Callable[..., Any]) -> Callable[..., Any]:
    """Servicer methods may raise domain errors; this answers the caller with their status."""

    async def fail(context: aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        if isinstance(error, FedPftError):
            await refuse(context, error)
        log.error("%s failed", method.__name__, exc_info=error)
        reason = "internal error; the coordinator's log says more"
        await context.abort(StatusCode.INTERNAL, reason, _named(PeerError))

    # An abort itself travels as an exception that must pass: it is no Exception of ours.
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream(
            self: Any, request: Any, context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            _begin(method, context)
            try:
                with tracing.served(method.__name__, context.invocation_metadata()):
                    async for reply in method(self, request, context):
                        yield reply
                reach(Point.REPLY_READY, method.__name__)
            except aio.AbortError:
                raise
            except Exception as error:
                await fail(context, error)

        return stream

    @functools.wraps(method)
    async def unary(self: Any, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        _begin(method, context)
        try:
            with tracing.served(method.__name__, context.invocation_metadata()):
                reply = await method(self, request, context)
            reach(Point.REPLY_READY, method.__name__)
            return reply
        except aio.AbortError:
            raise
        except Exception as error:
            await fail(context, error)

    return unary


def domain_error(error: grpc.RpcError) -> FedPftError:
    """The domain error that a failed call stands for."""
    assert isinstance(error, aio.AioRpcError)
    named = dict(error.trailing_metadata() or ()).get(_ERROR_KEY)
    if isinstance(named, str) and named in _BY_NAME:
        return _BY_NAME[named](error.details() or named)
    return told(error.code(), error.details() or "")


async def call(awaitable: Awaitable[T]) -> T:
    """Await a call, raising domain errors instead of gRPC's."""
    try:
        return readable(await awaitable)
    except aio.AioRpcError as error:
        raise domain_error(error) from None


def readable(message: T | None) -> T:
    """The message that came. Raises BadMessage for one that could not be decoded."""
    if message is None:
        raise BadMessage("an answer cannot be read; the two sides may be of different versions")
    return message
