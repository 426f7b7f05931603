"""A real federation of processes on loopback, for tests."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.file import template
from common.records import TaskKind
from common.run_status import RunStatus
from coordinator.campaign.status import open_run, stored_status
from tests.conftest import labels_of, write_data
from tests.services import ROOT, Service
from tests.waiting import sizes, until

Running = Service | subprocess.Popen[bytes]


@dataclass
class Federation:
    """Starts coordinator and workers as processes in `folder`; everything it started ends with it."""

    folder: Path
    model: Path
    settings: dict[str, Any] = field(default_factory=dict)
    kind: TaskKind = TaskKind.TEXT_CLASSIFICATION
    cold: bool = False
    """Start everything as a user would, by a new interpreter; else by forks that have imported torch."""
    processes: dict[str, Running] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        """The FM's family."""
        return str(json.loads((self.model / "config.json").read_text())["model_type"])

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.folder / "run"

    def write_config(self) -> Path:
        """A run of two rounds, three workers, with one neuron-level alignment."""
        values = {
            "run.directory": "run",
            "model.path": str(self.model),
            "task.kind": str(self.kind),
            "task.labels": labels_of(self.kind),
            "task.max_length": 16,
            "data.public.path": str(self.write_data("public", 64, 90, labelled=False)),
            "data.test.path": str(self.write_data("test", 64, 91)),
            "alignment.steps": 10,
            "realignment.every": 1,
            "realignment.steps": 5,
            "rounds.count": 2,
            "rounds.workers": 3,
            "rounds.minimum": 3,
            "rounds.deadline_seconds": 600.0,
            "server.listen": "127.0.0.1:0",
            "server.metrics": "127.0.0.1:0",
            "server.heartbeat_seconds": 0.3,
            "compute.threads": 1,
        }
        config = self.folder / "run.toml"
        config.write_text(template(values | self.settings))
        return config

    def write_data(self, name: str, count: int, seed: int, labelled: bool = True) -> Path:
        """Examples for the federation's kind of task."""
        return write_data(self.folder / name, self.kind, count, seed, labelled)

    def start_coordinator(self, *extra: str) -> dict[str, Any]:
        """Start it and wait until it listens; returns its endpoint file's content."""
        process = self.start("coordinator", "coordinator", "--config", str(self.write_config()), *extra)
        return self.endpoint(process)

    def endpoint(self, process: Running) -> dict[str, Any]:
        """What a coordinator writes once it listens."""
        path = self.run / "endpoint.json"
        for _ in self.until("the coordinator listens"):
            assert process.poll() is None, self.log("coordinator")
            if path.exists() and (found := json.loads(path.read_text()))["pid"] == process.pid:
                return dict(found)
        raise AssertionError

    def start_worker(self, number: int, address: str, *extra: str) -> Running:
        """Start worker `number` on data of its own."""
        name = f"worker-{number}"
        data = self.write_data(name, 30 + 10 * number, number)
        arguments = ["--coordinator", address, "--data", str(data), "--name", name]
        folder = str(self.folder / name)
        return self.start(name, "worker", *arguments, "--folder", folder, "--threads", "1", *extra)

    def place(self, name: str) -> list[str]:
        """What comes before a cold process's command, so that it runs where it belongs."""
        return []

    def start(self, name: str, module: str, *arguments: str) -> Running:
        """Start `python -m module`."""
        log = self.folder / f"{name}.log"
        if self.cold:
            command = [*self.place(name), sys.executable, "-m", module, *arguments]
            with log.open("ab") as file:
                self.processes[name] = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        else:
            self.processes[name] = Service(module, list(arguments), log)
        return self.processes[name]

    def wait(self, **codes: int) -> None:
        """Until every process has ended, each with its exit code (0 unless named)."""
        for name, process in self.processes.items():
            for _ in self.until(f"{name} ends"):
                if process.poll() is not None:
                    break
            code = process.returncode
            assert code == codes.get(name.replace("-", "_"), 0), f"{name}: {code}\n{self.log(name)}"

    def until(self, what: str) -> Iterator[None]:
        """Look again and again; an AssertionError once no process has written anything for long."""

        def progress() -> object:
            database = [self.run / f"run.sqlite{end}" for end in ("", "-wal")]
            return sizes([*self.folder.glob("*.log"), *database])

        return until(what, progress, told=lambda: "\n".join(map(self.log, self.processes)))

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self.folder / f"{name}.log").read_text()

    def status(self) -> RunStatus:
        """The run as its directory tells it."""
        store, config = open_run(self.run)
        try:
            return stored_status(store, config)
        finally:
            store.close()

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


@contextmanager
def federation(
    folder: Path,
    model: Path,
    kind: TaskKind = TaskKind.TEXT_CLASSIFICATION,
    cold: bool = False,
    **settings: Any,
) -> Iterator[Federation]:
    """Settings are run.toml's, with "__" for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    running = Federation(folder, model, dotted, kind, cold)
    try:
        yield running
    finally:
        running.end()


def children_of(pid: int) -> list[int]:
    """Process ids whose parent is `pid`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(folder.name))
    return found
