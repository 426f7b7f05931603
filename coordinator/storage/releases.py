"""Sums with noise that have left the coordinator under a promise of each worker; going back forgets none."""

import sqlite3
from dataclasses import astuple, dataclass

from coordinator.storage.database import Database


@dataclass(frozen=True)
class Release:
    """A round's sum: the clip, the noise of all that was told of the round as a multiple of it; and, where
    the clip follows the norms, the share of updates below it, with noise of its own: it may be outside [0,
    1]."""

    round: int
    clip: float
    noise: float
    below: float | None = None


class Releases:
    """Beside the sums. Raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enter(self, db: sqlite3.Connection, release: Release) -> None:
        """Within the transaction that records the sum."""
        db.execute("INSERT INTO releases (round, clip, noise, below) VALUES (?, ?, ?, ?)", astuple(release))

    def all(self) -> list[Release]:
        """In the order in which they were made, those of rounds that were gone back on among them."""
        if not self._database.has("releases"):
            return []
        query = "SELECT round, clip, noise, below FROM releases ORDER BY number"
        return [Release(*row) for row in self._database.rows(query)]
