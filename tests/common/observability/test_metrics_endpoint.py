"""The metrics endpoint."""

from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.address import Address
from common.errors import AddressError
from common.observability.metrics_endpoint import MetricsEndpoint, open_metrics


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("fedpft_round", "Round", registry=registry).set(3)
    return registry


def read(endpoint: MetricsEndpoint) -> str:
    with urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=5) as reply:
        return reply.read().decode()


def test_metrics_are_served_on_a_free_port(registry: CollectorRegistry) -> None:
    endpoint = open_metrics("127.0.0.1:0", registry, insecure=False)
    assert endpoint.port > 0
    assert "fedpft_round 3.0" in read(endpoint)
    endpoint.close()


def test_a_closed_endpoint_frees_its_port(registry: CollectorRegistry) -> None:
    endpoint = MetricsEndpoint(registry, Address("127.0.0.1", 0))
    endpoint.close()
    again = MetricsEndpoint(registry, Address("127.0.0.1", endpoint.port))
    assert again.port == endpoint.port
    again.close()


def test_a_taken_port_is_an_address_error(registry: CollectorRegistry) -> None:
    first = MetricsEndpoint(registry, Address("127.0.0.1", 0))
    with pytest.raises(AddressError, match=f"127.0.0.1:{first.port}: .*another port"):
        MetricsEndpoint(registry, Address("127.0.0.1", first.port))
    first.close()


@pytest.mark.parametrize("listen", [None, ""])
def test_without_an_address_nothing_is_served(registry: CollectorRegistry, listen: str | None) -> None:
    endpoint = open_metrics(listen, registry, insecure=False)
    assert endpoint.port == 0
    endpoint.close()


def test_metrics_are_not_shown_to_others_unasked(registry: CollectorRegistry) -> None:
    with pytest.raises(AddressError, match="--insecure"):
        open_metrics("0.0.0.0:0", registry, insecure=False)
