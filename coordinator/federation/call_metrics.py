"""How long calls take, and with which status they end, by method."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc import StatusCode, aio

_OURS = "/fedpft.v1."


class CallMetrics(aio.ServerInterceptor):
    """Tells `observe` the method, the status and the seconds of every call of our own services."""

    def __init__(self, observe: Callable[[str, str, float], None]) -> None:
        self._observe = observe

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        name: str = handler_call_details.method
        if handler is None or not name.startswith(_OURS):
            return handler
        method = name.rpartition("/")[2]
        inner = (handler.stream_unary or handler.unary_unary) or (
            handler.stream_stream or handler.unary_stream
        )

        async def answer(request: Any, context: Any) -> Any:
            with self._measured(method, context):
                return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._measured(method, context):
                async for reply in inner(request, context):
                    yield reply

        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, handler.request_deserializer, handler.response_serializer)
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(answer, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _measured(self, method: str, context: Any) -> Iterator[None]:
        begun, code = time.monotonic(), "OK"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            # The caller went away, or this process stops.
            code = StatusCode.CANCELLED.name
            raise
        except BaseException:
            told = context.code()
            code = told.name if isinstance(told, StatusCode) else StatusCode.UNKNOWN.name
            raise
        finally:
            self._observe(method, code, time.monotonic() - begun)
