"""Traces by OpenTelemetry: spans of rounds, phases and tasks, and which span another process's belong below.

Off unless OpenTelemetry's own variables name an endpoint and its packages (extra `tracing`) are installed;
then nothing is imported and a span costs nothing. Spans tell names, numbers and durations: no text of an
exception, which could hold private data, and nothing that is secret.
"""

import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

from common.observability.logs import log_about

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"
# W3C Trace Context, version 0: trace, span, flags.
_HEADER = "traceparent"
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# A process that ends waits so long at most for its last spans to be taken.
_FLUSH_SECONDS = 2.0
# Calls of a round that has closed may still be under way.
_REMEMBERED_TRACES = 8


class _Tracing:
    """What the process exports by; it is the whole process's, as log lines are."""

    def __init__(self, tracer: "Tracer") -> None:
        self.tracer = tracer
        self.begun: deque[int] = deque(maxlen=_REMEMBERED_TRACES)


_tracing: _Tracing | None = None


def well_formed(traceparent: str) -> str:
    """It, or "" when it is none: what another process says of its trace must not stop any work."""
    return traceparent if _TRACEPARENT.fullmatch(traceparent) else ""


@contextmanager
def exporting(service: str, instance: str = "") -> Iterator[None]:
    """Export spans of this service while inside, if an endpoint is configured.

    `instance` tells workers apart.
    """
    global _tracing
    if not _configured():
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces are wanted, but OpenTelemetry is not installed: pip install 'fedpft[tracing]'")
        yield
        return
    about = {"service.name": service, "service.version": version("fedpft")}
    about |= {"service.instance.id": instance} if instance else {}
    # What the environment says of the process goes first.
    resource = Resource.create(about).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracing = _Tracing(provider.get_tracer("fedpft"))
    try:
        yield
    finally:
        _tracing = None
        # An endpoint that is gone must not keep the process: its exporter would try for half a minute.
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)


def _configured() -> bool:
    """Whether the environment wants traces, and by the protocol that is spoken here."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return False
    told = next((name for name in _PROTOCOLS if os.environ.get(name)), None)
    if told and os.environ[told] != _HTTP:
        log.warning("%s is %s; traces are sent as %s only", told, os.environ[told], _HTTP)
        return False
    return True


def span(name: str, parent: str = "", **attributes: str | int) -> AbstractContextManager[None]:
    """A span around a block, below the one around it, or below `parent` of another process.

    The outermost of a process gives its trace's id to the log lines meanwhile.
    """
    return nullcontext() if _tracing is None else _span(_tracing, name, parent, attributes)


@contextmanager
def _span(tracing: _Tracing, name: str, parent: str, attributes: Attributes) -> Iterator[None]:
    from opentelemetry import trace

    outermost = not trace.get_current_span().get_span_context().is_valid
    span = tracing.tracer.start_span(name, _context(parent), attributes=_named(attributes))
    if outermost:
        identity = span.get_span_context().trace_id
        tracing.begun.append(identity)
        log_about(trace=trace.format_trace_id(identity))
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except Exception as error:
        _fail(span, error)
        raise
    finally:
        span.end()
        if outermost:
            log_about(trace="")


def begin(name: str, **attributes: str | int) -> Callable[[], None]:
    """Begin a span below the present one, if there is one; what is returned ends it."""
    if _tracing is not None:
        from opentelemetry import trace

        if trace.get_current_span().get_span_context().is_valid:
            return _tracing.tracer.start_span(name, attributes=_named(attributes)).end
    return lambda: None


def traceparent() -> str:
    """The present span as W3C Trace Context has it; "" when there is none."""
    if _tracing is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_HEADER, "")


def metadata() -> tuple[tuple[str, str], ...] | None:
    """What a call carries, so that its server's span hangs below the present one."""
    present = traceparent()
    return ((_HEADER, present),) if present else None


@contextmanager
def served(method: str, received: Iterable[tuple[str, str | bytes]] | None) -> Iterator[None]:
    """The span of a call, below the caller's that its metadata names.

    Only in a trace that this process began: a caller must not fill others, nor make new ones.
    """
    tracing = _tracing
    if tracing is None:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind

    told = next((value for key, value in received or () if key == _HEADER), "")
    context = _context(told) if isinstance(told, str) else None
    if context is None or trace.get_current_span(context).get_span_context().trace_id not in tracing.begun:
        yield
        return
    about = {"rpc.system.name": "grpc", "rpc.method": method}
    # Not made the present one: a stream's messages may be asked for in another context each.
    span = tracing.tracer.start_span(method, context, SpanKind.SERVER, about)
    try:
        yield
    except Exception as error:
        _fail(span, error)
        raise
    finally:
        span.end()


def _context(traceparent: str) -> "Context | None":
    """Where a span of another process is the present one; None for none."""
    if not well_formed(traceparent):
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({_HEADER: traceparent})


def _named(attributes: Attributes) -> dict[str, str | int]:
    return {f"fedpft.{name}": value for name, value in attributes.items()}


def _fail(span: "Span", error: Exception) -> None:
    """The kind of error, without its text."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", type(error).__name__)
    span.set_status(StatusCode.ERROR)
