"""Scores at the workers in the database: each worker's sums while they come, then all together."""

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from common.records import ScoreSums
from common.run_status import Validation
from coordinator.storage.database import Database, as_kept


class Validations:
    """What was scored, and by whom. Safe to use from several threads. Raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- who can ---

    def remember(self, worker: str, examples: int) -> None:
        """Record that a worker keeps so many examples aside; 0: none any more."""
        if self.validators().get(worker, 0) == examples:
            return
        with self._database.transaction("validator") as db:
            db.execute("DELETE FROM validators WHERE name = ?", (worker,))
            if examples:
                db.execute("INSERT INTO validators VALUES (?, ?)", (worker, examples))

    def validators(self) -> dict[str, int]:
        """Every worker that keeps examples aside, as it last joined, with their number."""
        return dict(self._database.rows("SELECT name, examples FROM validators ORDER BY name"))

    # --- one evaluation ---

    def open_try(self, round_number: int, selected: Sequence[str]) -> int:
        """Record that these workers are asked; returns which try of the round it is, behind its trainings'.

        So a worker's trouble with the one is not taken for trouble with the other.
        """
        query = (
            "SELECT (SELECT count(*) FROM tries WHERE round = ?1) + "
            "(SELECT count(*) FROM validation_tries WHERE round = ?1) + 1"
        )
        number = int(self._database.rows(query, round_number)[0][0])
        statement = "INSERT INTO validation_tries VALUES (?, ?, ?, ?)"
        drawn = json.dumps(list(selected))
        self._database.write("validation-opened", statement, round_number, number, time.time(), drawn)
        return number

    def interrupted_try(self, round_number: int) -> list[str] | None:
        """The workers that were asked after a round, when a coordinator ended before they had answered."""
        query = "SELECT selected FROM validation_tries WHERE round = ? ORDER BY try DESC LIMIT 1"
        row = self._database.row(query, round_number)
        return None if row is None or self.done_after(round_number) else json.loads(row[0])

    def commit_scores(self, round_number: int, worker: str, sums: ScoreSums) -> None:
        """Record a worker's sums, in place of earlier ones; afterwards they may be acknowledged."""
        statement = "INSERT OR REPLACE INTO worker_scores VALUES (?, ?, ?)"
        # Mostly zeros: a hundredth remains, of what else would fill the log of a small disk.
        packed = zlib.compress(json.dumps(asdict(sums)).encode())
        self._database.write("scores", statement, round_number, worker, packed)

    def scores(self, round_number: int) -> dict[str, ScoreSums]:
        """The sums of an evaluation that is not closed, by worker's name."""
        query = "SELECT worker, sums FROM worker_scores WHERE round = ? ORDER BY worker"
        packed = self._database.rows(query, round_number)
        rows = {worker: json.loads(zlib.decompress(content)) for worker, content in packed}
        return {
            worker: ScoreSums(**told | {"counts": tuple(told["counts"]), "sums": tuple(told["sums"])})
            for worker, told in rows.items()
        }

    def close(self, together: Validation, each: Iterable[Validation], counted: Iterable[str]) -> None:
        """Record what the sums of the workers in `counted` came to; their own go, but for `each`."""
        names = json.dumps(sorted(counted))
        rows = [
            (
                v.round,
                v.worker,
                v.workers,
                v.examples,
                as_kept(v.accuracy),
                as_kept(v.loss),
                json.dumps({name: as_kept(value) for name, value in v.metrics.items()}),
                names,
            )
            for v in (together, *each)
        ]
        with self._database.transaction("validation-closed") as db:
            db.executemany("INSERT INTO validations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.execute("DELETE FROM worker_scores WHERE round = ?", (together.round,))

    # --- all of them ---

    def done_after(self, round_number: int) -> bool:
        """Whether the evaluation after this round is closed."""
        return self._database.row("SELECT 1 FROM validations WHERE round = ?", round_number) is not None

    def counted(self, round_number: int) -> frozenset[str]:
        """The workers whose sums are in the score after a round."""
        query = "SELECT counted FROM validations WHERE round = ? AND worker = ''"
        row = self._database.row(query, round_number)
        return frozenset() if row is None else frozenset(json.loads(row[0]))

    def all(self) -> tuple[Validation, ...]:
        """All scores, oldest first, and of a round all workers' before each one's."""
        if not self._database.has("validations"):
            return ()
        query = (
            "SELECT round, workers, examples, accuracy, loss, metrics, worker FROM validations "
            "ORDER BY round, worker"
        )
        return tuple(
            Validation(number, workers, examples, float(a), float(b), _floats(json.loads(metrics)), worker)
            for number, workers, examples, a, b, metrics, worker in self._database.rows(query)
        )


def _floats(metrics: Mapping[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
