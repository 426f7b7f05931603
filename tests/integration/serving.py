"""A server that holds many runs, as a process, with workers beside it."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from common.address import Address
from common.config.file import template
from common.hosted_runs import RunEntry, RunState, Submission
from common.records import TaskKind
from common.runtime import computing_turns
from common.trust.identity import Role
from common.trust.tls import Tls, open_tls
from coordinator.owner.runs_client import Runs
from tests.conftest import labels_of, write_data
from tests.services import Service
from tests.waiting import sizes, until

KIND = TaskKind.TEXT_CLASSIFICATION


@dataclass
class Serving:
    """`fedpft serve` on `folder`/runs."""

    folder: Path
    model: Path
    options: tuple[str, ...] = ()
    certificates: Path | None = None
    """Folder of folders of certificates by ROLE-NAME: then all speak TLS."""
    processes: dict[str, Service] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """Where all runs lie."""
        return self.folder / "runs"

    @property
    def _tls(self) -> Tls | None:
        """The owner's."""
        return self.certificates and open_tls(self.certificates / "admin-owner", Role.ADMIN)

    def _shown(self, who: str) -> list[str]:
        """The option by which a process shows its certificate."""
        return ["--tls", str(self.certificates / who)] if self.certificates else []

    @property
    def address(self) -> Address:
        """Of the running server."""
        return Address.parse(json.loads((self.runs / "endpoint.json").read_text())["address"])

    def configuration(self, workers: tuple[int, ...], **settings: Any) -> str:
        """A run.toml for these workers; settings as dotted keys, with "__" for the dot."""
        for name, labelled, seed in (("public", False, 90), ("test", True, 91)):
            if not list(self.folder.glob(f"{name}.*")):
                write_data(self.folder / name, KIND, 64, seed, labelled)
        # Relative: to the folder that the runs' folder lies in.
        values = {
            "model.path": str(self.model),
            "task.kind": str(KIND),
            "task.labels": labels_of(KIND),
            "task.max_length": 16,
            "data.public.path": next(self.folder.glob("public.*")).name,
            "data.test.path": next(self.folder.glob("test.*")).name,
            "alignment.steps": 10,
            "rounds.count": 2,
            "rounds.workers": len(workers),
            "rounds.minimum": len(workers),
            "rounds.deadline_seconds": 600.0,
            "admission.workers": [f"worker-{n}" for n in workers],
            "compute.threads": 1,
        }
        whole = template(values | {key.replace("__", "."): value for key, value in settings.items()})
        return without_sections(whole, "server", "tls")

    def start(self, port: int = 0) -> Address:
        """Start the server, and wait until it listens."""
        (self.folder / "serve.toml").write_text(
            f'[server]\nlisten = "127.0.0.1:{port}"\nmetrics = "127.0.0.1:0"\nheartbeat_seconds = 0.3\n'
        )
        arguments = ["serve", "--runs", str(self.runs), "--config", str(self.folder / "serve.toml")]
        arguments += self._shown("coordinator-hub")
        log = self.folder / "server.log"
        process = Service("cli", [*arguments, *self.options], log, habit=take_short_turns)
        self.processes["server"] = process
        endpoint = self.runs / "endpoint.json"
        for _ in self.until("the server listens"):
            assert process.poll() is None, self.log("server")
            if endpoint.exists() and json.loads(endpoint.read_text())["pid"] == process.pid:
                return self.address
        raise AssertionError

    def start_worker(self, number: int, *extra: str) -> Service:
        """Worker `number`, on data of its own."""
        name = f"worker-{number}"
        data = write_data(self.folder / name, KIND, 30 + 10 * number, number)
        arguments = ["--coordinator", str(self.address), "--data", str(data), "--name", name]
        arguments += ["--folder", str(self.folder / f"{name}-files"), "--threads", "1", *extra]
        arguments += self._shown(f"worker-{name}")
        self.processes[name] = Service("worker", arguments, self.folder / f"{name}.log")
        return self.processes[name]

    def submit(self, configuration: str, priority: int = 0, request: str = "", *settings: str) -> str:
        """A run's id."""

        async def ask() -> str:
            async with Runs(self.address, self._tls) as runs:
                told = Submission(request or uuid4().hex, configuration, settings, priority)
                return await runs.submit(told)

        return asyncio.run(ask())

    def cancel(self, run: str) -> None:
        """End it for good."""

        async def ask() -> None:
            async with Runs(self.address, self._tls) as runs:
                await runs.cancel(run)

        asyncio.run(ask())

    def resume(self, run: str) -> None:
        """Have one that failed or was cancelled go on."""

        async def ask() -> None:
            async with Runs(self.address, self._tls) as runs:
                await runs.resume(run)

        asyncio.run(ask())

    def entries(self) -> dict[str, RunEntry]:
        """Every run, by id."""

        async def ask() -> list[RunEntry]:
            async with Runs(self.address, self._tls) as runs:
                return await runs.entries()

        return {entry.run: entry for entry in asyncio.run(ask())}

    def wait_for(self, run: str, *states: RunState) -> RunEntry:
        """Until the run is in one of these states."""
        for _ in self.until(f"{run} is {' or '.join(states)}"):
            entry = self.entries()[run]
            if entry.state in states:
                return entry
            assert not entry.state.over, (entry, self.log("server"))
        raise AssertionError

    def until(self, what: str) -> Iterator[None]:
        """Look again and again; an AssertionError once nothing has moved for long."""

        def progress() -> object:
            return sizes([*self.folder.glob("*.log"), *self.runs.glob("*/*")])

        return until(what, progress, told=lambda: "\n".join(map(self.log, self.processes)))

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def take_short_turns() -> None:
    """In the server: whenever another run waits, the turn passes on at the next look."""
    computing_turns.SLICE_SECONDS = 0.0


def without_sections(text: str, *names: str) -> str:
    """A configuration without these tables, and without run.directory."""
    kept, skipped = [], False
    for line in text.splitlines():
        if line.startswith("["):
            skipped = line.strip("[]") in names
        if not skipped and not line.startswith("directory ="):
            kept.append(line)
    return "\n".join(kept) + "\n"
