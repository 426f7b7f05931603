"""A receiver of traces, as OpenTelemetry's collector is one: OTLP over HTTP, on loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Value = str | int


@dataclass(frozen=True)
class Received:
    """A span, and who sent it; ids in hexadecimal, `parent` is "" for a trace's first."""

    service: str
    instance: str
    name: str
    trace: str
    span: str
    parent: str
    seconds: float
    served: bool
    failed: bool
    attributes: dict[str, Value]
    resource: dict[str, Value]


class Receiver:
    """Takes what comes to /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                receiver.spans += _spans(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Not to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def of(self, service: str, name: str, **attributes: Value) -> list[Received]:
        """Spans of a service under a name, with these attributes of ours."""
        wanted = {(f"fedpft.{key}", value) for key, value in attributes.items()}
        return [
            span
            for span in self.spans
            if (span.service, span.name) == (service, name) and wanted <= span.attributes.items()
        ]

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Receive meanwhile."""
        self._thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for of_process in request.resource_spans:
        resource = _values(of_process.resource.attributes)
        for scope in of_process.scope_spans:
            for span in scope.spans:
                yield Received(
                    str(resource["service.name"]),
                    str(resource.get("service.instance.id", "")),
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    span.kind == Span.SPAN_KIND_SERVER,
                    span.status.code == Status.STATUS_CODE_ERROR,
                    _values(span.attributes) | ({"events": len(span.events)} if span.events else {}),
                    resource,
                )


def _values(pairs: list[KeyValue]) -> dict[str, Value]:
    return {
        p.key: p.value.int_value if p.value.HasField("int_value") else p.value.string_value for p in pairs
    }
