"""The Prometheus metrics endpoint."""

import logging

from prometheus_client import CollectorRegistry, make_wsgi_app

from common.address import Address, require_loopback
from common.observability.http_server import HttpServer

log = logging.getLogger(__name__)


class MetricsEndpoint:
    """Serves /metrics from a thread of its own, so that it answers while torch computes.

    `port` is where it listens; 0 when there is none. Raises AddressError.
    """

    def __init__(self, registry: CollectorRegistry, address: Address | None) -> None:
        self.port = 0
        self._server: HttpServer | None = None
        if address is None:
            return
        self._server = HttpServer(address, make_wsgi_app(registry), "metrics")
        self.port = self._server.port
        log.info("metrics on http://%s/metrics", Address(address.host, self.port))

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()


def open_metrics(listen: str | None, registry: CollectorRegistry, insecure: bool) -> MetricsEndpoint:
    """The endpoint at HOST:PORT `listen`, or none. Raises AddressError."""
    if not listen:
        return MetricsEndpoint(registry, None)
    address = Address.parse(listen)
    require_loopback(address, insecure)
    return MetricsEndpoint(registry, address)
