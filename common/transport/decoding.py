"""Requests that are not what they should be: answered as bad messages, before any servicer sees them.

Left to itself the library would log a traceback for each, and answer with a status that callers take for
a passing trouble.
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from common.errors import BadMessage
from common.transport.rpc import MAX_MESSAGE_BYTES, refuse

# What is not part of a stream of chunks is small.
MAX_REQUEST_BYTES = 64 * 1024

Context = aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a message that could not be decoded."""

    why: str


class Decoding(aio.ServerInterceptor):
    """Stands next to the servicers: they get messages of their type, or none."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The call's handler, behind a decoder that does not raise; None for a call that nobody serves."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        most = MAX_MESSAGE_BYTES if handler.request_streaming else MAX_REQUEST_BYTES
        coders = (_tolerant(handler.request_deserializer, most), handler.response_serializer)
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(_guarded(handler.unary_unary), *coders)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(_guarded(handler.unary_stream), *coders)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(_guarded(handler.stream_unary), *coders)
        return grpc.stream_stream_rpc_method_handler(_guarded(handler.stream_stream), *coders)


def _tolerant(decode: Callable[[bytes], Any], most: int) -> Callable[[bytes], Any]:
    def decoded(content: bytes) -> Any:
        if len(content) > most:
            return _Unreadable(f"a message of this call has at most {most} bytes, got {len(content)}")
        try:
            return decode(content)
        except Exception:
            # Of no narrower class: protobuf's is not known here, and whatever it is must not get further.
            return _Unreadable("the message does not have the protocol's form")

    return decoded


def _guarded(behaviour: Callable[..., Any]) -> Any:
    """A streaming answer may be a generator, or a coroutine that writes to its context."""
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async with contextlib.aclosing(behaviour(_readable(request), context)) as replies:
                    async for reply in replies:
                        yield reply
            except BadMessage as error:
                await refuse(context, error)

        return stream

    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(_readable(request), context)
        except BadMessage as error:
            await refuse(context, error)

    return call


def _readable(request: Any) -> Any:
    """The request, or the stream of them. Raises BadMessage, or lets the stream do so."""
    if isinstance(request, _Unreadable):
        raise BadMessage(request.why)
    return _each_readable(request) if hasattr(request, "__aiter__") else request


async def _each_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Unreadable):
            raise BadMessage(request.why)
        yield request
