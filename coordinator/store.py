"""The run's memory: SQLite (WAL) for what was decided, content-addressed files for what is large.

An artifact is durable before the transaction that names it, so what the database says is there.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import StoreError, UnknownArtifact
from common.files import publish, write_atomically
from common.records import (
    ArtifactKind,
    ArtifactRef,
    Evaluation,
    Event,
    GradientGap,
    LayerGap,
    ModelFacts,
    SubModelRef,
    Traffic,
)
from common.tensors import to_bytes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id TEXT PRIMARY KEY, created REAL NOT NULL, config TEXT NOT NULL,
    outcome TEXT, reason TEXT
);
CREATE TABLE IF NOT EXISTS artifacts (
    sha256 TEXT PRIMARY KEY, kind TEXT NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL
);
-- The sub-FM before the first round: its description as JSON, the plan it was cut by, sizes.
CREATE TABLE IF NOT EXISTS sub_model (
    one INTEGER PRIMARY KEY CHECK (one = 1), reference TEXT NOT NULL,
    plan TEXT NOT NULL REFERENCES artifacts, facts TEXT NOT NULL
);
-- Neuron-level alignments, by the round that they followed.
CREATE TABLE IF NOT EXISTS alignments (
    round INTEGER PRIMARY KEY, patch TEXT NOT NULL REFERENCES artifacts,
    error_before REAL NOT NULL, error_after REAL NOT NULL
);
-- The adapter after each round; round 0 is the first.
CREATE TABLE IF NOT EXISTS adapters (
    round INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES artifacts, created REAL NOT NULL
);
-- The server optimiser's state after a round.
CREATE TABLE IF NOT EXISTS server_states (
    round INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES artifacts
);
-- The gradient gap after a round, as JSON; round 0 is before the first.
CREATE TABLE IF NOT EXISTS gradient_gaps (round INTEGER PRIMARY KEY, figures TEXT NOT NULL);
-- Every try at a round.
CREATE TABLE IF NOT EXISTS tries (
    round INTEGER NOT NULL, try INTEGER NOT NULL, opened REAL NOT NULL, selected TEXT NOT NULL,
    closed REAL, phase TEXT NOT NULL, PRIMARY KEY (round, try)
);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER NOT NULL, worker TEXT NOT NULL, sha256 TEXT NOT NULL REFERENCES artifacts,
    examples INTEGER NOT NULL, loss REAL NOT NULL, seconds REAL NOT NULL, received REAL NOT NULL,
    PRIMARY KEY (round, worker)
);
CREATE TABLE IF NOT EXISTS evaluations (
    round INTEGER NOT NULL, model TEXT NOT NULL, accuracy REAL NOT NULL, loss REAL NOT NULL,
    PRIMARY KEY (round, model)
);
CREATE TABLE IF NOT EXISTS workers (
    name TEXT PRIMARY KEY, examples INTEGER NOT NULL, software TEXT NOT NULL, joined REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS traffic (
    worker TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
    bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL, PRIMARY KEY (worker, round, kind)
);
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, round INTEGER NOT NULL,
    worker TEXT NOT NULL, text TEXT NOT NULL, figures TEXT NOT NULL
);
"""

_ADD_ARTIFACT = "INSERT OR IGNORE INTO artifacts VALUES (?, ?, ?, ?)"


@dataclass(frozen=True)
class StoredUpdate:
    """An update that a worker holds a receipt for."""

    worker: str
    sha256: str
    examples: int
    loss: float
    seconds: float


class Store:
    """A run's directory. Safe to use from several threads.

    Raises StoreError when the directory cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        try:
            (directory / "artifacts").mkdir(parents=True, exist_ok=True)
            (directory / "spool").mkdir(exist_ok=True)
            self._db = sqlite3.connect(directory / "run.sqlite", check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"run directory {directory} cannot be used: {error}") from error

    @classmethod
    def existing(cls, directory: Path) -> "Store":
        """Open the store of a run that must be there. Raises StoreError."""
        if not (directory / "run.sqlite").is_file():
            raise StoreError(f"{directory} holds no run: there is no run.sqlite in it")
        return cls(directory)

    def close(self) -> None:
        """Release the database."""
        with self._lock:
            self._db.close()

    # --- the run itself ---

    def open_run(self, run_id: str, config: str) -> str:
        """Begin a run, or find it begun; returns its id.

        Raises StoreError when the directory belongs to a run with another configuration.
        """
        with self._lock, self._db:
            row = self._db.execute("SELECT id, config FROM run").fetchone()
            if row is None:
                self._db.execute(
                    "INSERT INTO run (id, created, config) VALUES (?, ?, ?)",
                    (run_id, time.time(), config),
                )
                return run_id
        if different := _differences(json.loads(row[1]), json.loads(config)):
            raise StoreError(
                f"{self.directory} holds a run with another configuration "
                f"({', '.join(different)}); choose another run.directory, or restore the settings"
            )
        return str(row[0])

    def config(self) -> str:
        """The run's configuration, JSON."""
        return str(self._value("SELECT config FROM run"))

    def run_id(self) -> str:
        """The run's id."""
        return str(self._value("SELECT id FROM run"))

    def end_run(self, outcome: str, reason: str) -> None:
        """Record that the run reached "finished" or "failed", and why."""
        self._write("UPDATE run SET outcome = ?, reason = ?", outcome, reason)

    def reopen_run(self) -> None:
        """Forget the outcome: the run goes on."""
        self._write("UPDATE run SET outcome = NULL, reason = NULL")

    def outcome(self) -> str | None:
        """ "finished", "failed", or None while the run can go on."""
        value = self._value("SELECT outcome FROM run")
        return None if value is None else str(value)

    # --- artifacts ---

    def path(self, sha256: str) -> Path:
        """Where the artifact of this digest lies."""
        return self.directory / "artifacts" / sha256[:2] / sha256

    def spool(self, name: str) -> Path:
        """Where a file is received before it is complete."""
        return self.directory / "spool" / name

    def add(self, kind: ArtifactKind, content: bytes) -> ArtifactRef:
        """Keep `content` durably under its digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.path(sha256).exists():
            write_atomically(self.path(sha256), content)
        self._write(_ADD_ARTIFACT, sha256, kind, len(content), time.time())
        return ArtifactRef(kind, sha256, len(content))

    def add_tensors(self, kind: ArtifactKind, tensors: Mapping[str, Tensor]) -> ArtifactRef:
        """Keep tensors as a safetensors file."""
        return self.add(kind, to_bytes(tensors))

    def artifact(self, sha256: str) -> ArtifactRef:
        """Raises UnknownArtifact."""
        row = self._row("SELECT kind, size FROM artifacts WHERE sha256 = ?", sha256)
        if row is None:
            raise UnknownArtifact(f"there is no artifact {sha256[:12]}…")
        return ArtifactRef(ArtifactKind(row[0]), sha256, row[1])

    def sizes(self, kind: ArtifactKind) -> list[int]:
        """Bytes of all artifacts of a kind, oldest first."""
        rows = self._rows("SELECT size FROM artifacts WHERE kind = ? ORDER BY created, sha256", kind)
        return [size for (size,) in rows]

    # --- the sub-FM ---

    def commit_sub_model(self, reference: SubModelRef, plan: ArtifactRef, facts: ModelFacts) -> None:
        """Record the aligned sub-FM with which the rounds begin."""
        self._write(
            "INSERT INTO sub_model VALUES (1, ?, ?, ?)",
            json.dumps(asdict(reference)),
            plan.sha256,
            json.dumps(asdict(facts)),
        )

    def sub_model(self) -> tuple[SubModelRef, ArtifactRef, ModelFacts] | None:
        """The sub-FM with all patches so far, its plan and sizes; None before it is built."""
        row = self._row("SELECT reference, plan, facts FROM sub_model")
        if row is None:
            return None
        fields = json.loads(row[0])
        patches = self._rows("SELECT patch FROM alignments ORDER BY round")
        reference = SubModelRef(
            config_json=fields["config_json"],
            ffn_widths=tuple(fields["ffn_widths"]),
            base=_ref(fields["base"]),
            patches=tuple(self.artifact(patch) for (patch,) in patches),
            processor=tuple(_ref(p) for p in fields["processor"]),
        )
        return reference, self.artifact(row[1]), ModelFacts(**json.loads(row[2]))

    def commit_alignment(self, round_number: int, patch: ArtifactRef, before: float, after: float) -> None:
        """Record a neuron-level alignment, with the hidden-state error before and after."""
        self._write("INSERT INTO alignments VALUES (?, ?, ?, ?)", round_number, patch.sha256, before, after)

    def alignments(self) -> list[tuple[int, float, float]]:
        """Neuron-level alignments: the round that each followed, the hidden-state error before and after."""
        return self._rows("SELECT round, error_before, error_after FROM alignments ORDER BY round")

    def aligned_after(self, round_number: int) -> bool:
        """Whether the alignment that follows this round is committed."""
        row = self._row("SELECT 1 FROM alignments WHERE round = ?", round_number)
        return row is not None

    # --- rounds ---

    def commit_adapter(
        self, round_number: int, adapter: ArtifactRef, state: ArtifactRef | None = None
    ) -> None:
        """Record the adapter after a round, and the server optimiser's state: the round is done."""
        try:
            with self._lock, self._db:
                self._db.execute(
                    "INSERT INTO adapters VALUES (?, ?, ?)", (round_number, adapter.sha256, time.time())
                )
                if state is not None:
                    self._db.execute("INSERT INTO server_states VALUES (?, ?)", (round_number, state.sha256))
        except sqlite3.Error as error:
            raise StoreError(f"{self.directory / 'run.sqlite'}: {error}") from error

    def server_state(self, round_number: int) -> ArtifactRef | None:
        """The server optimiser's state after a round, if it keeps one."""
        row = self._row("SELECT sha256 FROM server_states WHERE round = ?", round_number)
        return None if row is None else self.artifact(row[0])

    def latest_adapter(self) -> tuple[int, ArtifactRef] | None:
        """The last round done and its adapter; None before the first adapter."""
        row = self._row("SELECT round, sha256 FROM adapters ORDER BY round DESC LIMIT 1")
        return None if row is None else (row[0], self.artifact(row[1]))

    def open_try(self, round_number: int, selected: list[str]) -> int:
        """Record the start of a try at a round; returns its number, from 1."""
        with self._lock:
            row = self._row("SELECT count(*) FROM tries WHERE round = ?", round_number)
            number = (row[0] if row else 0) + 1
            self._write(
                "INSERT INTO tries (round, try, opened, selected, phase) VALUES (?, ?, ?, ?, ?)",
                round_number,
                number,
                time.time(),
                json.dumps(selected),
                "open",
            )
        return number

    def close_try(self, round_number: int, number: int, phase: str) -> None:
        """Record how a try ended."""
        self._write(
            "UPDATE tries SET closed = ?, phase = ? WHERE round = ? AND try = ?",
            time.time(),
            phase,
            round_number,
            number,
        )

    def place(self, received: Path, sha256: str) -> None:
        """Move a received and checked file among the artifacts, durably."""
        try:
            publish(received, self.path(sha256))
        except OSError as error:
            raise StoreError(f"cannot keep {received.name}: {error.strerror or error}") from error

    def commit_update(self, round_number: int, update: StoredUpdate, size: int) -> None:
        """Record a placed file as a worker's update; afterwards it may be acknowledged."""
        now = time.time()
        row = (round_number, *astuple(update), now)
        try:
            with self._lock, self._db:
                self._db.execute(_ADD_ARTIFACT, (update.sha256, ArtifactKind.UPDATE, size, now))
                self._db.execute("INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise StoreError(f"{self.directory / 'run.sqlite'}: {error}") from error

    def updates(self, round_number: int) -> list[StoredUpdate]:
        """The updates received for a round, by worker's name."""
        rows = self._rows(
            "SELECT worker, sha256, examples, loss, seconds FROM updates WHERE round = ? ORDER BY worker",
            round_number,
        )
        return [StoredUpdate(*row) for row in rows]

    # --- gaps, scores, workers, traffic, events ---

    def commit_gap(self, gap: GradientGap) -> None:
        """Record a gradient gap."""
        self._write("INSERT OR REPLACE INTO gradient_gaps VALUES (?, ?)", gap.round, json.dumps(asdict(gap)))

    def gaps(self) -> tuple[GradientGap, ...]:
        """All gradient gaps, oldest first."""
        found = [json.loads(row[0]) for row in self._rows("SELECT figures FROM gradient_gaps ORDER BY round")]
        return tuple(
            GradientGap(**g | {"layers": tuple(LayerGap(**layer) for layer in g["layers"])}) for g in found
        )

    def commit_evaluation(self, evaluation: Evaluation) -> None:
        """Record a score."""
        e = evaluation
        self._write(
            "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)",
            e.round,
            e.model,
            e.accuracy,
            e.loss,
        )

    def evaluations(self) -> tuple[Evaluation, ...]:
        """All scores, oldest first."""
        rows = self._rows("SELECT round, model, accuracy, loss FROM evaluations ORDER BY round, model")
        return tuple(Evaluation(*row) for row in rows)

    def remember_worker(self, name: str, examples: int, software: str) -> None:
        """Record that a worker joined."""
        self._write(
            "INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?)",
            name,
            examples,
            software,
            time.time(),
        )

    def workers(self) -> dict[str, int]:
        """Every worker that ever joined, with its number of examples."""
        return dict(self._rows("SELECT name, examples FROM workers ORDER BY name"))

    def save_traffic(self, worker: str, traffic: Traffic) -> None:
        """Record the bytes counted so far for a worker, round and content."""
        self._write("INSERT OR REPLACE INTO traffic VALUES (?, ?, ?, ?, ?)", worker, *astuple(traffic))

    def traffic(self) -> dict[str, list[Traffic]]:
        """All counts, by worker."""
        counts: dict[str, list[Traffic]] = {}
        for worker, *fields in self._rows("SELECT * FROM traffic ORDER BY worker, round, kind"):
            counts.setdefault(worker, []).append(Traffic(*fields))
        return counts

    def add_event(self, event: Event) -> None:
        """Record an event."""
        e = event
        self._write(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            e.sequence,
            e.time,
            e.kind,
            e.round,
            e.worker,
            e.text,
            json.dumps(e.values),
        )

    def events(self, after: int = 0) -> list[Event]:
        """Events with a higher sequence number, in order."""
        rows = self._rows(
            "SELECT sequence, time, kind, text, round, worker, figures FROM events "
            "WHERE sequence > ? ORDER BY sequence",
            after,
        )
        return [
            Event(sequence, when, kind, text, number, worker, json.loads(figures))
            for sequence, when, kind, text, number, worker, figures in rows
        ]

    # --- SQLite ---

    def _write(self, statement: str, *values: object) -> None:
        try:
            with self._lock, self._db:
                self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise StoreError(f"{self.directory / 'run.sqlite'}: {error}") from error

    def _rows(self, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _row(self, query: str, *values: object) -> tuple | None:  # type: ignore[type-arg]
        rows = self._rows(query, *values)
        return rows[0] if rows else None

    def _value(self, query: str) -> object:
        row = self._row(query)
        if row is None:
            raise StoreError(f"{self.directory} holds no run")
        return row[0]


def _ref(fields: dict[str, Any]) -> ArtifactRef:
    return ArtifactRef(ArtifactKind(fields["kind"]), fields["sha256"], fields["size"])


def _differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Dotted keys with different values."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{inner}" for inner in _differences(a, b)]
        elif a != b:
            found.append(key)
    return found
