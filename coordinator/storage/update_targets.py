"""Target tokens of updates, where a run weighs by them."""

import sqlite3

from coordinator.storage.database import Database


class UpdateTargets:
    """Beside the updates, by round and worker. Raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enter(self, db: sqlite3.Connection, round_number: int, worker: str, targets: int) -> None:
        """Within the transaction that records the update."""
        db.execute("INSERT OR REPLACE INTO update_targets VALUES (?, ?, ?)", (round_number, worker, targets))

    def of_round(self, round_number: int) -> dict[str, int]:
        """By worker; none in a run of before."""
        if not self._database.has("update_targets"):
            return {}
        query = "SELECT worker, targets FROM update_targets WHERE round = ?"
        return dict(self._database.rows(query, round_number))

    def lacking(self) -> bool:
        """Whether an update came without."""
        query = "SELECT 1 FROM updates"
        if self._database.has("update_targets"):
            query += " LEFT JOIN update_targets USING (round, worker) WHERE targets IS NULL"
        return bool(self._database.rows(f"{query} LIMIT 1"))
