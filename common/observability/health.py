"""`fedpft-health`: whether a service answers, for the health checks of containers.

A coordinator is asked over gRPC's health service, a worker by its metrics endpoint. Imports neither torch
nor typer: a check runs every few seconds.
"""

import socket
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import Address
from common.errors import FedPftError
from common.failures import told

_SECONDS = 5.0
_USAGE = "usage: fedpft-health HOST:PORT | RUN.toml | http://HOST:PORT/metrics"


def problem(target: str) -> str | None:
    """What is wrong with the service at HOST:PORT (gRPC) or at a URL; None when it is well."""
    try:
        if target.startswith("http://"):
            return _over_http(target)
        if target.endswith(".toml"):
            target = probed(tomllib.loads(Path(target).read_text(encoding="utf-8")))
        return _over_grpc(Address.parse(target).from_here)
    except (FedPftError, OSError, ValueError) as error:
        return " ".join(str(error).split())


def _over_http(url: str) -> str | None:
    parts = urlsplit(url)
    address = Address.parse(parts.netloc).from_here
    # A service's own host is asked, never by way of a proxy from the environment.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(urlunsplit(parts._replace(netloc=str(address))), timeout=_SECONDS) as reply:
            reply.read()
    except HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except URLError as error:
        if isinstance(error.reason, socket.gaierror):
            return f"the name {address.host} has no address here"
        return f"nothing answers there: {getattr(error.reason, 'strerror', None) or error.reason}"
    except TimeoutError:
        return f"no answer within {_SECONDS:.0f} s"
    except OSError:
        return "it breaks the connection off"
    except Exception:  # Of what is no HTTP the library makes errors of many kinds.
        return "what answers there speaks no HTTP"
    return None


def _over_grpc(address: Address) -> str | None:
    with grpc.insecure_channel(address.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS).status
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return str(told(error.code(), error.details() or ""))
    if status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"it reports {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}"


def probed(config: dict[str, Any]) -> str:
    """HOST:PORT where a run's coordinator can be asked from its own host. Raises ValueError."""
    server = config.get("server", {})
    if "health" not in server and config.get("tls"):
        raise ValueError("with [tls] a check needs server.health, such as 127.0.0.1:7073")
    return str(Address.parse(server.get("health", server.get("listen", "127.0.0.1:7070"))).from_here)


def main() -> None:
    """Exit code 0 when the service answers, 1 when not, 2 for a wrong call."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"{_USAGE}\n")
        sys.exit(2)
    if wrong := problem(sys.argv[1]):
        sys.stderr.write(f"{sys.argv[1]}: {wrong}\n")
        sys.exit(1)
