"""The Prometheus metrics endpoint."""

import logging
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from common.address import Address, require_loopback
from common.errors import AddressError

log = logging.getLogger(__name__)


class MetricsEndpoint:
    """Serves /metrics from a thread of its own, so that it answers while torch computes.

    `port` is where it listens; 0 when there is none. Raises AddressError.
    """

    def __init__(self, registry: CollectorRegistry, address: Address | None) -> None:
        self.port = 0
        self._server: WSGIServer | None = None
        if address is None:
            return
        try:
            self._server, self._thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            raise AddressError(
                f"cannot serve metrics on {address}: {error.strerror or error}; choose another port"
            ) from error
        self.port = self._server.server_port
        log.info("metrics on http://%s/metrics", Address(address.host, self.port))

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def open_metrics(listen: str | None, registry: CollectorRegistry, insecure: bool) -> MetricsEndpoint:
    """The endpoint at HOST:PORT `listen`, or none. Raises AddressError."""
    if not listen:
        return MetricsEndpoint(registry, None)
    address = Address.parse(listen)
    require_loopback(address, insecure)
    return MetricsEndpoint(registry, address)
