"""A real federation of processes on loopback, for tests."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.file import template
from common.records import RunStatus, TaskKind
from coordinator.campaign.status import open_run, stored_status
from tests.conftest import LABELS, write_pictures, write_table

ROOT = Path(__file__).parents[2]


@dataclass
class Federation:
    """Starts coordinator and workers as processes in `folder`; everything it started ends with it."""

    folder: Path
    model: Path
    settings: dict[str, Any] = field(default_factory=dict)
    kind: TaskKind = TaskKind.TEXT_CLASSIFICATION
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

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
            "task.labels": () if self.kind is TaskKind.CAUSAL_LM else LABELS,
            "task.max_length": 16,
            "data.public.path": str(self.write_data("public", 64, 90, labelled=False)),
            "data.test.path": str(self.write_data("test", 64, 91)),
            "alignment.steps": 10,
            "realignment.every": 1,
            "realignment.steps": 5,
            "rounds.count": 2,
            "rounds.workers": 3,
            "rounds.minimum": 3,
            "rounds.deadline_seconds": 60.0,
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
        if self.kind is TaskKind.IMAGE_CLASSIFICATION:
            return write_pictures(self.folder / f"{name}.parquet", count, seed)
        return write_table(self.folder / f"{name}.csv", count, seed, labelled)

    def start_coordinator(self, *extra: str) -> dict[str, Any]:
        """Start it and wait until it listens; returns its endpoint file's content."""
        process = self.start("coordinator", "coordinator", "--config", str(self.write_config()), *extra)
        return self.endpoint(process)

    def endpoint(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What a coordinator writes once it listens."""
        path = self.run / "endpoint.json"
        for _ in until(90, f"coordinator listens; {self.log('coordinator')}"):
            assert process.poll() is None, self.log("coordinator")
            if path.exists() and (found := json.loads(path.read_text()))["pid"] == process.pid:
                return dict(found)
        raise AssertionError

    def start_worker(self, number: int, address: str, *extra: str) -> subprocess.Popen[bytes]:
        """Start worker `number` on data of its own."""
        name = f"worker-{number}"
        data = self.write_data(name, 30 + 10 * number, number)
        arguments = ["--coordinator", address, "--data", str(data), "--name", name]
        folder = str(self.folder / name)
        return self.start(name, "worker", *arguments, "--folder", folder, "--threads", "1", *extra)

    def place(self, name: str) -> list[str]:
        """What comes before a process's command, so that it runs where it belongs."""
        return []

    def start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python -m module`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.place(name), sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.processes[name] = process
        return process

    def wait(self, seconds: float = 90, **codes: int) -> None:
        """Until every process has ended, each with its exit code (0 unless named)."""
        ends = time.monotonic() + seconds
        for name, process in self.processes.items():
            try:
                code = process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{name} still runs:\n{self.log(name)}") from None
            assert code == codes.get(name.replace("-", "_"), 0), f"{name}: {code}\n{self.log(name)}"

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
    folder: Path, model: Path, kind: TaskKind = TaskKind.TEXT_CLASSIFICATION, **settings: Any
) -> Iterator[Federation]:
    """Settings are run.toml's, with "__" for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    running = Federation(folder, model, dotted, kind)
    try:
        yield running
    finally:
        running.end()


def until(seconds: float, what: str) -> Iterator[None]:
    """Look again and again; an AssertionError when `what` has not come after `seconds`."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        yield
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


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
