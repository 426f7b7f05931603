"""Workers that declined a run, as the database keeps them."""

import time

from common.run_offers import Declined
from coordinator.storage.database import Database


class DeclinedTable:
    """The last answer of each worker. Safe to use from several threads. Raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def commit(self, worker: str, state: str, reason: str) -> None:
        """The worker takes no part, as it is now."""
        statement = "INSERT OR REPLACE INTO declined VALUES (?, ?, ?, ?)"
        self._database.write("declined", statement, worker, state, reason, time.time())

    def forget(self, worker: str) -> None:
        """The worker takes part after all."""
        self._database.write("declined", "DELETE FROM declined WHERE worker = ?", worker)

    def states(self) -> dict[str, str]:
        """In which state each worker has declined."""
        return dict(self._database.rows("SELECT worker, state FROM declined"))

    def all(self) -> tuple[Declined, ...]:
        """By name; none in a run of an earlier version."""
        if not self._database.has("declined"):
            return ()
        query = "SELECT worker, reason, time FROM declined ORDER BY worker"
        return tuple(Declined(*row) for row in self._database.rows(query))
