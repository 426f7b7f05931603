"""The classes that a run has, as the database keeps them: of all workers together, never of one."""

import json
from dataclasses import dataclass

from coordinator.storage.database import Database


@dataclass(frozen=True)
class StoredClasses:
    """A run's labels in the order of class indices; how many answers of each `workers` workers have together,
    and their examples in all."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    examples: int
    workers: int


class ClassCountsTable:
    """What the workers told of their classes. Safe to use from several threads. Raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def commit(self, classes: StoredClasses) -> None:
        """Record what the run goes by from now on."""
        statement = "INSERT INTO class_counts VALUES (1, ?, ?, ?, ?)"
        row = json.dumps(classes.labels), json.dumps(classes.counts), classes.examples, classes.workers
        self._database.write("class-counts", statement, *row)

    def get(self) -> StoredClasses | None:
        """None where nobody was asked, or not enough have answered."""
        if not self._database.has("class_counts"):
            return None
        row = self._database.row("SELECT labels, counts, examples, workers FROM class_counts")
        if row is None:
            return None
        return StoredClasses(tuple(json.loads(row[0])), tuple(json.loads(row[1])), row[2], row[3])
