"""The health check that containers run, against real services."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from common.address import Address
from common.observability.health import probed, problem
from common.observability.metrics_endpoint import MetricsEndpoint


def test_a_serving_coordinator_is_well_and_one_that_stops_is_not() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert problem(f"127.0.0.1:{port}") is None
        checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert problem(f"127.0.0.1:{port}") == "it reports NOT_SERVING"
    finally:
        server.stop(0).wait()
    assert "nothing listens at" in (problem(f"127.0.0.1:{port}") or "")


def test_a_worker_is_well_while_its_metrics_answer() -> None:
    endpoint = MetricsEndpoint(CollectorRegistry(), Address("127.0.0.1", 0))
    url = f"http://127.0.0.1:{endpoint.port}/metrics"
    assert problem(url) is None
    endpoint.close()
    assert "refused" in (problem(url) or "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"), [((), 2, "usage"), (("http://127.0.0.1:1/metrics",), 1, "127.0.0.1:1")]
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], code: int, says: str) -> None:
    command = [sys.executable, "-c", "from common.observability.health import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert says in done.stderr


@pytest.mark.parametrize(
    ("config", "target"),
    [
        ({}, "127.0.0.1:7070"),
        ({"server": {"listen": "0.0.0.0:7000"}}, "127.0.0.1:7000"),
        ({"server": {"listen": "[::]:7000"}}, "[::1]:7000"),
        (
            {"server": {"listen": "0.0.0.0:7000", "health": "10.0.0.1:7073"}, "tls": {"ca": "c"}},
            "10.0.0.1:7073",
        ),
    ],
)
def test_a_runs_configuration_tells_where_to_ask(config: dict[str, Any], target: str) -> None:
    assert probed(config) == target


def test_with_tls_alone_there_is_nowhere_to_ask(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[tls]\nca = "ca.crt"\n')
    assert "needs server.health" in (problem(str(path)) or "")
