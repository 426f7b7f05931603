"""The compose file's services as real containers, by docker, or by a command that has its own ways."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.waiting import until

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
PROJECT = "fedpft-test"
# Grafana has no part: what it would ask is asked of Prometheus.
SERVICES = (
    "files",
    "certificates",
    "coordinator",
    "worker-1",
    "worker-2",
    "worker-3",
    "prometheus",
)
IMAGES = {
    "fedpft-coordinator": ("coordinator", "coordinator"),
    "fedpft-worker": ("worker", "worker"),
    "fedpft-demo": ("coordinator", "demo"),
}


@dataclass(frozen=True)
class Engine:
    """The commands that build, compose, and do the rest."""

    build: tuple[str, ...]
    compose: tuple[str, ...]
    call: tuple[str, ...]

    @classmethod
    def find(cls) -> "Engine":
        """CONTAINERS names a command with the subcommands build, compose and podman; else it is docker."""
        if named := os.environ.get("CONTAINERS"):
            return cls((named, "build"), (named, "compose"), (named, "podman"))
        if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
            return cls(("docker", "build"), ("docker", "compose"), ("docker",))
        pytest.skip("no docker here; set CONTAINERS")


@dataclass
class Federation:
    """The compose project; ports are free ones, so that it may run beside another."""

    engine: Engine
    over: tuple[Path, ...] = ()
    """Further compose files, over the first."""
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("FEDPFT_PORT", "PAGE_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.ports[name] = free.getsockname()[1]

    def run(self, *command: str, check: bool = True, given: str | None = None) -> str:
        """Standard output of a command; a failure shows all of its output."""
        environment = os.environ | {name: str(port) for name, port in self.ports.items()}
        # Of podman's two forms the one that has health checks.
        environment |= {"BUILDAH_FORMAT": "docker"}
        done = subprocess.run(command, capture_output=True, text=True, input=given, env=environment, cwd=ROOT)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def build(self) -> None:
        """All images, of this tree."""
        index = os.environ.get("TORCH_INDEX", "")
        for tag, (file, target) in IMAGES.items():
            options = ("-f", f"deploy/{file}.Dockerfile", "--target", target, "-t", tag)
            self.run(*self.engine.build, *options, "--build-arg", f"TORCH_INDEX={index}", ".")

    def compose(self, *arguments: str, check: bool = True) -> str:
        """`compose ARGUMENTS` in this project."""
        files = [word for path in (COMPOSE, *self.over) for word in ("-f", str(path))]
        return self.run(*self.engine.compose, *files, "-p", PROJECT, *arguments, check=check)

    def container(self, service: str) -> str:
        """The service's container."""
        found = self.run(*self.engine.call, "ps", "--all", "--format", "{{.Names}}").split()
        (name,) = [
            name for name in found if name.replace("-", "_") == f"{PROJECT}_{service}_1".replace("-", "_")
        ]
        return name

    def call(self, verb: str, service: str) -> None:
        """`kill` or `start` a service's container, as from outside."""
        self.run(*self.engine.call, verb, self.container(service))

    def exec(self, service: str, *command: str, check: bool = True, given: str | None = None) -> str:
        """Standard output of a command in a service's container."""
        return self.run(
            *self.engine.call,
            "exec",
            "--interactive",
            self.container(service),
            *command,
            check=check,
            given=given,
        )

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container."""
        (found,) = json.loads(self.run(*self.engine.call, "inspect", self.container(service)))
        return dict(found)

    def metrics(self, service: str, port: int) -> str:
        """A service's metrics, as its neighbour in the network sees them."""
        code = (
            f"import urllib.request as r; print(r.urlopen('http://{service}:{port}/metrics').read().decode())"
        )
        return self.exec("worker-1", "python", "-c", code)

    def prometheus(self, path: str, **parameters: object) -> Any:
        """Prometheus's answer to an API call."""
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=30) as reply:
            return json.load(reply)["data"]

    def value(self, query: str) -> float:
        """The newest value of a query's first series; -1 while there is none."""
        try:
            result = self.prometheus("query", query=query)["result"]
        except OSError:
            return -1.0
        return float(result[0]["value"][1]) if result else -1.0

    def owner(self, *command: str) -> str:
        """A command of the run's owner."""
        return self.compose("--profile", "owner", "run", "--rm", "-T", "owner", *command)

    def logs(self) -> str:
        """The ends of all logs, for a failure."""
        texts = []
        for service in SERVICES:
            done = subprocess.run(
                [*self.engine.call, "logs", "--tail", "15", self.container(service)],
                capture_output=True,
                text=True,
            )
            texts.append(f"--- {service}\n{done.stdout}{done.stderr}")
        return "\n".join(texts)

    def until(self, what: str) -> Iterator[None]:
        """Look again and again; an AssertionError with the logs once nothing moves for long.

        A step of a computation moves the run's own time of progress; before there is one, containers
        write logs.
        """
        return until(what, self._progress, told=self.logs, patience=300, pause=2)

    def _progress(self) -> object:
        moved = self.value("fedpft_progress_timestamp_seconds")
        return moved if moved > 0 else self.logs()
