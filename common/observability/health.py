"""`fedpft-health`: whether a service answers, for the health checks of containers.

A coordinator is asked over gRPC's health service, a worker by its metrics endpoint. Imports neither torch
nor typer: a check runs every few seconds.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SECONDS = 5.0
_USAGE = "usage: fedpft-health HOST:PORT | RUN.toml | http://HOST:PORT/metrics"
# What a service listens on and what reaches it from the same host.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def problem(target: str) -> str | None:
    """What is wrong with the service at HOST:PORT (gRPC) or at a URL; None when it is well."""
    if target.startswith("http://"):
        try:
            with urlopen(target, timeout=_SECONDS) as reply:
                reply.read()
        except OSError as error:
            return str(error)
        return None
    if target.endswith(".toml"):
        try:
            target = probed(tomllib.loads(Path(target).read_text()))
        except (OSError, ValueError) as error:
            return str(error)
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS).status
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return f"{error.code().name}: {error.details()}"
    if status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"it reports {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}"


def probed(config: dict[str, Any]) -> str:
    """HOST:PORT where a run's coordinator can be asked from its own host. Raises ValueError."""
    server = config.get("server", {})
    if "health" not in server and config.get("tls"):
        raise ValueError("with [tls] a check needs server.health, such as 127.0.0.1:7073")
    host, _, port = server.get("health", server.get("listen", "127.0.0.1:7070")).rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"


def main() -> None:
    """Exit code 0 when the service answers, 1 when not, 2 for a wrong call."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"{_USAGE}\n")
        sys.exit(2)
    if wrong := problem(sys.argv[1]):
        sys.stderr.write(f"{sys.argv[1]}: {wrong}\n")
        sys.exit(1)
