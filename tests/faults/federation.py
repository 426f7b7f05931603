"""A small, complete federation whose processes may be killed and come back, and what must hold at its end."""

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from common.config.file import template
from common.records import Phase
from common.runtime.fault_points import TRACE_VARIABLE, VARIABLE
from coordinator.campaign.status import open_run
from coordinator.storage.store import Store
from tests import services
from tests.conftest import LABELS, write_table, write_tokenizer
from tests.waiting import sizes, until

WORKERS = ("worker-1", "worker-2")
# Of runs of sums, where two would not do.
MORE_WORKERS = (*WORKERS, "worker-3", "worker-4", "worker-5")

# Everything that a run can do happens in these: both alignments, a server optimiser, gaps, the owner's scores
# and the workers'. Adapter, updates and sub-FM are several chunks long.
SETTINGS: dict[str, Any] = {
    "run.directory": "run",
    "task.labels": LABELS,
    "task.max_length": 16,
    "alignment.steps": 2,
    "alignment.batch_size": 4,
    "alignment.checkpoint_every": 1,
    "realignment.every": 1,
    "realignment.steps": 1,
    "realignment.batch_size": 4,
    "adapter.rank": 384,
    "training.batch_size": 4,
    "aggregation.optimizer": "momentum",
    "aggregation.momentum": 0.5,
    "correction.steps": 2,
    "correction.batch_size": 4,
    "correction.checkpoint_every": 1,
    "correction.least_gain": 0.0,
    "gradient_gap.batches": 1,
    "gradient_gap.batch_size": 4,
    "rounds.kept": 2,
    "rounds.count": 2,
    "rounds.workers": 2,
    "rounds.minimum": 2,
    "rounds.deadline_seconds": 600.0,
    "rounds.grace_seconds": 30.0,
    "validation.every": 1,
    "server.metrics": "127.0.0.1:0",
    "server.heartbeat_seconds": 0.3,
    "server.keepalive_seconds": 1.0,
    "compute.threads": 1,
}


@dataclass(frozen=True)
class Material:
    """The model and data that all federations of a test session share."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Material":
        """A BERT of 4 small layers and 10,000 words, of which the tokenizer knows some."""
        config = BertConfig(
            vocab_size=10_000,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertForSequenceClassification(config).save_pretrained(folder / "model")
        write_tokenizer(folder / "model")
        write_table(folder / "public.csv", 24, 90, labelled=False)
        write_table(folder / "test.csv", 16, 91)
        for number, name in enumerate(MORE_WORKERS, 1):
            write_table(folder / f"{name}.csv", 8 + 4 * number, number)
            write_table(folder / f"{name}-aside.csv", 4 + number, 50 + number)
        return cls(folder)


@dataclass
class Federation:
    """Processes of one run in `folder`. Whatever dies by SIGKILL is started again, as a supervisor would."""

    folder: Path
    material: Material
    settings: dict[str, Any] = field(default_factory=dict)
    workers: tuple[str, ...] = WORKERS
    routes: dict[str, str] = field(default_factory=dict)
    """Address under which a worker sees the coordinator, where that is not the coordinator's own."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By process, what is armed in it at each of its starts, one after the other."""
    habits: dict[str, Callable[[], None]] = field(default_factory=dict)
    """By process, what is called in it before it begins."""
    processes: dict[str, ForkServerProcess] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    gone: set[str] = field(default_factory=set)
    """Processes that are not started again when they die."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        values = SETTINGS | {
            "model.path": str(self.material.folder / "model"),
            "data.public.path": str(self.material.folder / "public.csv"),
            "data.test.path": str(self.material.folder / "test.csv"),
            "server.listen": self.address,
        }
        (self.folder / "run.toml").write_text(
            template(values | {"run.directory": str(self.run)} | self.settings)
        )

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.folder / "run"

    @property
    def address(self) -> str:
        """Where the coordinator listens."""
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, trace: Path | None = None) -> ForkServerProcess:
        """Start the coordinator or a worker, with its next fault armed; its output goes to NAME.log."""
        fault = self.faults[name].pop(0) if self.faults.get(name) else ""
        environment = {VARIABLE: fault, TRACE_VARIABLE: str(trace or "")}
        service = "coordinator" if name == "coordinator" else "worker"
        log, habit = self.folder / f"{name}.log", self.habits.get(name)
        self.processes[name] = services.start(service, self.arguments(name), log, environment, habit)
        return self.processes[name]

    def arguments(self, name: str) -> list[str]:
        """What a process is started with."""
        if name == "coordinator":
            return ["--config", str(self.folder / "run.toml")]
        arguments = ["--coordinator", self.routes.get(name, self.address), "--name", name]
        arguments += ["--data", str(self.material.folder / f"{name}.csv"), "--threads", "1"]
        arguments += ["--folder", str(self.folder / name), "--join-timeout", "60", "--keepalive", "1"]
        return [*arguments, "--validation", str(self.material.folder / f"{name}-aside.csv")]

    def start_all(self) -> None:
        """Start everything."""
        for name in ("coordinator", *self.workers):
            self.start(name)

    def supervise(self, each: Callable[[], object] = lambda: None, forgive: tuple[str, ...] = ()) -> None:
        """Until every process has ended well; those that die by SIGKILL are started again.

        `each` is called again and again meanwhile. The processes in `forgive` may end as they like, or not.
        """
        for _ in self.until("every process ends"):
            each()
            for name, process in list(self.processes.items()):
                code = process.exitcode
                if code == -signal.SIGKILL and name not in self.gone:
                    self.kills[name] += 1
                    self.start(name)
                elif code not in (None, 0) and name not in self.gone.union(forgive):
                    raise AssertionError(f"{name} ended with {code}\n{self.logs()}")
            if all(p.exitcode is not None for name, p in self.processes.items() if name not in forgive):
                return

    def until(self, what: str) -> Iterator[None]:
        """Look again and again; an AssertionError once no process has written anything for long."""

        def progress() -> object:
            database = [self.run / f"run.sqlite{end}" for end in ("", "-wal")]
            return sizes([*self.folder.glob("*.log"), *database])

        return until(what, progress, told=self.logs)

    def ended(self, name: str) -> int:
        """A process's exit code, once it has ended."""
        process = self.processes[name]
        for _ in self.until(f"{name} ends"):
            if process.exitcode is not None:
                break
        assert process.exitcode is not None
        return process.exitcode

    def kill(self, name: str) -> None:
        """SIGKILL, from outside."""
        process = self.processes[name]
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()

    def log(self, name: str) -> str:
        """What a process and its successors have printed."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def logs(self) -> str:
        """The end of everybody's."""
        return "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in self.processes)

    def receipts(self) -> set[tuple[str, int, str]]:
        """Worker, round and digest of every update that a worker holds a receipt for."""
        return {
            (name, int(number), digest)
            for name in self.workers
            for number, digest in re.findall(r"round (\d+): receipt for update (\w+)", self.log(name))
        }

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The run's store, once its processes have ended."""
        opened, _ = open_run(self.run)
        try:
            yield opened
        finally:
            opened.close()

    def outcome(self) -> "Outcome":
        """How the run ended. Nothing that was acknowledged may be missing, and nothing be left over."""
        with self.store() as store:
            assert store.outcome() == Phase.FINISHED, self.logs()
            latest = store.latest_adapter()
            assert latest is not None
            kept = {
                (update.worker, number, update.sha256)
                for number in range(1, latest[0] + 1)
                for update in store.accepted(number) or []
            }
            assert self.receipts() <= kept, f"acknowledged and lost: {self.receipts() - kept}"
            held = {artifact.sha256 for artifact in store.artifacts.held()}
            files = {path.name for path in (self.run / "artifacts").glob("*/*")}
            assert files == held, "files and what the database names differ"
            assert not store.artifacts.spooled(), "the spool is not empty"
            correction = store.corrections.of(latest[0])
            assert correction is not None and correction.adapter is not None
            return Outcome(
                latest[1].sha256,
                correction.adapter.sha256,
                latest[0],
                tuple((e.round, e.model, e.accuracy, e.loss) for e in store.evaluations()),
                tuple((v.round, v.workers, v.accuracy, v.loss) for v in store.validations.all()),
                tuple(gap.drift for gap in store.gaps()),
                frozenset(kept),
            )

    def end(self) -> None:
        """Kill what still runs."""
        for name in self.processes:
            self.kill(name)

    def endpoint(self) -> dict[str, Any]:
        """What the coordinator writes once it listens."""
        path, process = self.run / "endpoint.json", self.processes["coordinator"]
        for _ in self.until("the coordinator listens"):
            if path.exists() and (found := json.loads(path.read_text()))["pid"] == process.pid:
                return dict(found)
            assert process.exitcode is None, self.logs()
        raise AssertionError


@dataclass(frozen=True)
class Outcome:
    """All that a run decides. Two runs with the same updates must not differ in any of it."""

    adapter: str
    corrected: str
    rounds: int
    scores: tuple[tuple[int, str, float, float], ...]
    validations: tuple[tuple[int, int, float, float], ...]
    drifts: tuple[float, ...]
    updates: frozenset[tuple[str, int, str]]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
