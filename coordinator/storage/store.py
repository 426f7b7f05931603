"""What was decided in a run, in SQLite (WAL); what is large lies beside it as artifacts."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import StoreError
from common.records import ArtifactKind, ArtifactRef, SubModelRef
from common.run_status import Evaluation, GradientGap, LayerGap, ModelFacts
from coordinator.storage.alignments import Alignments
from coordinator.storage.artifacts import Artifacts
from coordinator.storage.class_counts import ClassCountsTable
from coordinator.storage.corrections import Corrections
from coordinator.storage.database import Database, Row, as_kept
from coordinator.storage.differences import differences
from coordinator.storage.events import Events
from coordinator.storage.secure import SecureTries
from coordinator.storage.traffic_table import TrafficTable
from coordinator.storage.update_targets import UpdateTargets
from coordinator.storage.validations import Validations

# In place of a worker's name, which it cannot be: what masked updates came to.
ALL_WORKERS = "(all workers)"


@dataclass(frozen=True)
class StoredUpdate:
    """An update that a worker holds a receipt for."""

    worker: str
    sha256: str
    examples: int
    loss: float
    seconds: float
    targets: int = 0  # Target tokens: its weight, where the run asks for them.


class Store:
    """A run's directory. Safe to use from several threads.

    Raises StoreError when the directory cannot be used.
    """

    def __init__(self, directory: Path, readonly: bool = False) -> None:
        self.directory = directory
        if not readonly:
            Artifacts.make_folders(directory)
        self.database = Database(directory / "run.sqlite", readonly)
        self.artifacts = Artifacts(directory, self.database)
        self.events = Events(self.database)
        self.traffic = TrafficTable(self.database)
        self.targets = UpdateTargets(self.database)
        self.classes = ClassCountsTable(self.database)
        self.corrections = Corrections(self.database, self.artifacts)
        self.alignments = Alignments(self.database, self.artifacts)
        self.validations = Validations(self.database)
        self.secure = SecureTries(self.database, self.artifacts)

    @classmethod
    def existing(cls, directory: Path) -> "Store":
        """Open the store of a run that must be there, only to look at it. Raises StoreError."""
        if not (directory / "run.sqlite").is_file():
            raise StoreError(f"{directory} holds no run: there is no run.sqlite in it")
        return cls(directory, readonly=True)

    def close(self) -> None:
        """Release the database."""
        self.database.close()

    # --- the run itself ---

    def open_run(self, run_id: str, config: str) -> str:
        """Begin a run, or find it begun; returns its id.

        Raises StoreError when the directory belongs to a run with another configuration.
        """
        row = self._row("SELECT id, config FROM run")
        if row is None:
            now = time.time()
            self._write("run", "INSERT INTO run (id, created, config) VALUES (?, ?, ?)", run_id, now, config)
            return run_id
        different = differences(json.loads(row[1]), json.loads(config))
        if different:
            raise StoreError(
                f"{self.directory} holds a run with another configuration "
                f"({', '.join(different)}); choose another run.directory, or restore the settings"
            )
        if row[1] != config:
            # Things may lie elsewhere now; what they hold is compared by digest.
            self._write("run", "UPDATE run SET config = ?", config)
        return str(row[0])

    def content(self) -> dict[str, dict[str, str]] | None:
        """What the run was begun with: digests by file, of each part by name. None where nobody noted it."""
        rows = self._rows("SELECT name, files FROM content") if self.database.has("content") else []
        return {name: json.loads(files) for name, files in rows} or None

    def commit_content(self, content: Mapping[str, Mapping[str, str]]) -> None:
        """Record what the run is begun with."""
        with self.database.transaction("content") as db:
            rows = [(name, json.dumps(dict(files))) for name, files in content.items()]
            db.executemany("INSERT INTO content VALUES (?, ?)", rows)

    def config(self) -> str:
        """The run's configuration, JSON."""
        return str(self._value("SELECT config FROM run"))

    def run_id(self) -> str:
        """The run's id."""
        return str(self._value("SELECT id FROM run"))

    def end_run(self, outcome: str, reason: str) -> None:
        """Record that the run reached "finished" or "failed", and why."""
        self._write("outcome", "UPDATE run SET outcome = ?, reason = ?", outcome, reason)

    def reopen_run(self) -> None:
        """Forget the outcome: the run goes on."""
        self._write("reopening", "UPDATE run SET outcome = NULL, reason = NULL")

    def outcome(self) -> str | None:
        """ "finished", "failed", or None while the run can go on."""
        value = self._value("SELECT outcome FROM run")
        return None if value is None else str(value)

    def dismissed(self) -> bool:
        """Whether the workers were told of the run's end, since it last entered a phase."""
        query = "SELECT kind FROM events WHERE kind IN ('phase_entered', 'workers_dismissed') "
        row = self._row(query + "ORDER BY sequence DESC LIMIT 1")
        return row is not None and row[0] == "workers_dismissed"

    # --- the sub-FM ---

    def commit_sub_model(self, reference: SubModelRef, plan: ArtifactRef, facts: ModelFacts) -> None:
        """Record the aligned sub-FM with which the rounds begin."""
        self._write(
            "sub-model",
            "INSERT INTO sub_model VALUES (1, ?, ?, ?)",
            json.dumps(asdict(reference)),
            plan.sha256,
            json.dumps(asdict(facts)),
        )

    def sub_model(self, after: int | None = None) -> tuple[SubModelRef, ArtifactRef, ModelFacts] | None:
        """The sub-FM now, or as it was `after` a round, its plan and sizes; None before it is built."""
        row = self._row("SELECT reference, plan, facts FROM sub_model")
        if row is None:
            return None
        fields = json.loads(row[0])
        reference = SubModelRef(
            config_json=fields["config_json"],
            ffn_widths=tuple(fields["ffn_widths"]),
            base=_ref(fields["base"]),
            patches=self.alignments.patches(after),
            processor=tuple(_ref(p) for p in fields["processor"]),
            # Runs of earlier versions did not tune any.
            new_modules=tuple(fields.get("new_modules", ())),
        )
        return reference, self.artifacts.get(row[1]), ModelFacts(**json.loads(row[2]))

    # --- rounds ---

    def commit_adapter(
        self,
        round_number: int,
        adapter: ArtifactRef,
        state: ArtifactRef | None = None,
        made_of: Iterable[str] | None = None,
    ) -> None:
        """Record the adapter after a round, and the server optimiser's state: the round is done.

        `made_of` names the workers whose updates are in it, if these are fewer than were accepted.
        """
        with self.database.transaction("adapter") as db:
            db.execute("INSERT INTO adapters VALUES (?, ?, ?)", (round_number, adapter.sha256, time.time()))
            if state is not None:
                db.execute("INSERT INTO server_states VALUES (?, ?)", (round_number, state.sha256))
            if made_of is not None:
                workers = json.dumps(sorted(made_of))
                db.execute("UPDATE accepted SET workers = ? WHERE round = ?", (workers, round_number))

    def server_state(self, round_number: int) -> ArtifactRef | None:
        """The server optimiser's state after a round, if it keeps one."""
        row = self._row("SELECT sha256 FROM server_states WHERE round = ?", round_number)
        return None if row is None else self.artifacts.get(row[0])

    def latest_adapter(self) -> tuple[int, ArtifactRef] | None:
        """The last round done and its adapter; None before the first adapter."""
        row = self._row("SELECT round, sha256 FROM adapters ORDER BY round DESC LIMIT 1")
        return None if row is None else (row[0], self.artifacts.get(row[1]))

    def adapter_after(self, round_number: int) -> ArtifactRef | None:
        """The adapter after a round; None where its file is not kept."""
        row = self._row("SELECT sha256 FROM adapters WHERE round = ?", round_number)
        held = {artifact.sha256: artifact for artifact in self.artifacts.held()}
        return None if row is None else held.get(row[0])

    def adapters(self) -> dict[int, str]:
        """Digest of the adapter after each round, oldest first."""
        return dict(self._rows("SELECT round, sha256 FROM adapters ORDER BY round"))

    def open_try(self, round_number: int, selected: list[str]) -> int:
        """Record the start of a try at a round; returns its number, from 1."""
        row = self._row("SELECT count(*) FROM tries WHERE round = ?", round_number)
        number = (row[0] if row else 0) + 1
        self._write(
            "try-opened",
            "INSERT INTO tries (round, try, opened, selected, phase) VALUES (?, ?, ?, ?, ?)",
            round_number,
            number,
            time.time(),
            json.dumps(selected),
            "open",
        )
        return number

    def last_try(self, round_number: int) -> int:
        """The number of a round's last try; 0 before the first."""
        row = self._row("SELECT max(try) FROM tries WHERE round = ?", round_number)
        return (row[0] if row else None) or 0

    def interrupted_try(self, round_number: int) -> list[str] | None:
        """The workers selected in a round's last try, when a coordinator ended in the middle of it."""
        row = self._row(
            "SELECT selected, phase FROM tries WHERE round = ? ORDER BY try DESC LIMIT 1", round_number
        )
        return json.loads(row[0]) if row is not None and row[1] == "open" else None

    def last_selected(self) -> list[str]:
        """The workers selected in the run's last try."""
        row = self._row("SELECT selected FROM tries ORDER BY round DESC, try DESC LIMIT 1")
        return json.loads(row[0]) if row is not None else []

    def close_try(
        self, round_number: int, number: int, phase: str, accepted: Iterable[str] | None = None
    ) -> None:
        """Record how a try ended; with `accepted`, the workers whose updates count: the round is closed."""
        with self.database.transaction("try-closed") as db:
            db.execute(
                "UPDATE tries SET closed = ?, phase = ? WHERE round = ? AND try = ?",
                (time.time(), phase, round_number, number),
            )
            if accepted is not None:
                workers = json.dumps(sorted(accepted))
                db.execute("INSERT INTO accepted VALUES (?, ?)", (round_number, workers))

    def accepted(self, round_number: int) -> list[StoredUpdate] | None:
        """The updates that a round closed with, by worker's name; None while it is not closed.

        Of masked ones, once they are summed: their mean, as if one worker had sent it.
        """
        if (total := self.secure.sum_of(round_number)) is not None:
            return [StoredUpdate(ALL_WORKERS, total.sha256, total.examples, total.loss, 0.0)]
        if (workers := self.survivors(round_number)) is None:
            return None
        return [u for u in self.updates(round_number) if u.worker in workers]

    def survivors(self, round_number: int) -> list[str] | None:
        """The workers whose updates a round closed with; None while it is not closed."""
        row = self._row("SELECT workers FROM accepted WHERE round = ?", round_number)
        return None if row is None else json.loads(row[0])

    def commit_update(self, round_number: int, update: StoredUpdate, size: int) -> None:
        """Record a placed file as a worker's update; afterwards it may be acknowledged."""
        now = time.time()
        row = (round_number, *astuple(update)[:-1], now)
        with self.database.transaction("update") as db:
            self.artifacts.enter(db, ArtifactRef(ArtifactKind.UPDATE, update.sha256, size))
            db.execute("INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            if update.targets:
                self.targets.enter(db, round_number, update.worker, update.targets)

    def forget_update(self, round_number: int, worker: str) -> None:
        """Drop a record whose file is damaged, so that the worker is asked again."""
        statement = "DELETE FROM updates WHERE round = ? AND worker = ?"
        self._write("update-forgotten", statement, round_number, worker)

    def updates(self, round_number: int) -> list[StoredUpdate]:
        """The updates received for a round, by worker's name."""
        figures = "worker, sha256, examples, loss, seconds"
        rows = self._rows(f"SELECT {figures} FROM updates WHERE round = ? ORDER BY worker", round_number)
        targets = self.targets.of_round(round_number)
        return [replace(StoredUpdate(*row), targets=targets.get(row[0], 0)) for row in rows]

    # --- gaps, scores, workers ---

    def commit_gap(self, gap: GradientGap) -> None:
        """Record a gradient gap."""
        figures = json.dumps(asdict(gap))
        self._write("gap", "INSERT OR REPLACE INTO gradient_gaps VALUES (?, ?)", gap.round, figures)

    def gaps(self) -> tuple[GradientGap, ...]:
        """All gradient gaps, oldest first."""
        found = [json.loads(row[0]) for row in self._rows("SELECT figures FROM gradient_gaps ORDER BY round")]
        return tuple(
            GradientGap(**g | {"layers": tuple(LayerGap(**layer) for layer in g["layers"])}) for g in found
        )

    def commit_evaluation(self, *evaluations: Evaluation) -> None:
        """Record scores, all or none."""
        rows = [(e.round, e.model, as_kept(e.accuracy), as_kept(e.loss)) for e in evaluations]
        further = [(e.round, e.model, name, as_kept(v)) for e in evaluations for name, v in e.metrics.items()]
        with self.database.transaction("evaluation") as db:
            db.executemany("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", rows)
            db.executemany("INSERT OR REPLACE INTO evaluation_metrics VALUES (?, ?, ?, ?)", further)

    def evaluations(self) -> tuple[Evaluation, ...]:
        """All scores, oldest first."""
        rows = self._rows("SELECT round, model, accuracy, loss FROM evaluations ORDER BY round, model")
        further: dict[tuple[int, str], dict[str, float]] = {}
        if self.database.has("evaluation_metrics"):
            query = "SELECT round, model, name, value FROM evaluation_metrics ORDER BY rowid"
            for number, model, name, value in self._rows(query):
                further.setdefault((number, model), {})[name] = float(value)
        return tuple(
            Evaluation(n, model, float(a), float(b), further.get((n, model), {})) for n, model, a, b in rows
        )

    def remember_worker(self, name: str, examples: int, software: str) -> None:
        """Record that a worker joined."""
        statement = (
            "INSERT INTO workers VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE "
            "SET examples = excluded.examples, software = excluded.software, joined = excluded.joined "
            "WHERE examples != excluded.examples OR software != excluded.software"
        )
        self._write("worker", statement, name, examples, software, time.time())

    def workers(self) -> dict[str, int]:
        """Every worker that ever joined, with its number of examples."""
        return dict(self._rows("SELECT name, examples FROM workers ORDER BY name"))

    # --- SQLite ---

    def _write(self, subject: str, statement: str, *values: object) -> None:
        self.database.write(subject, statement, *values)

    def _rows(self, query: str, *values: object) -> list[Row]:
        return self.database.rows(query, *values)

    def _row(self, query: str, *values: object) -> Row | None:
        return self.database.row(query, *values)

    def _value(self, query: str) -> object:
        return self.database.value(query)


def _ref(fields: dict[str, Any]) -> ArtifactRef:
    return ArtifactRef(ArtifactKind(fields["kind"]), fields["sha256"], fields["size"])
