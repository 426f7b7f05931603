"""Bytes by worker, round and content, as the database keeps them; `traffic` counts them as they pass."""

from collections.abc import Iterable
from dataclasses import astuple

from common.run_status import Traffic
from coordinator.storage.database import Database


class TrafficTable:
    """What was counted. Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, counts: Iterable[tuple[str, Traffic]]) -> None:
        """Record the bytes counted so far, by worker, round and content."""
        with self._database.transaction("traffic") as db:
            rows = [(worker, *astuple(traffic)) for worker, traffic in counts]
            db.executemany("INSERT OR REPLACE INTO traffic VALUES (?, ?, ?, ?, ?)", rows)

    def in_all(self) -> dict[str, tuple[Traffic, ...]]:
        """Counts of all rounds together, by worker."""
        rows = self._database.rows(
            "SELECT worker, kind, sum(bytes_down), sum(bytes_up) FROM traffic GROUP BY worker, kind "
            "ORDER BY worker, kind"
        )
        counts: dict[str, list[Traffic]] = {}
        for worker, kind, down, up in rows:
            counts.setdefault(worker, []).append(Traffic(0, kind, down, up))
        return {worker: tuple(each) for worker, each in counts.items()}

    def of_round(self, number: int) -> list[tuple[str, Traffic]]:
        """All counts of a round, each with its worker."""
        rows = self._database.rows("SELECT * FROM traffic WHERE round = ? ORDER BY worker, kind", number)
        return [(worker, Traffic(*fields)) for worker, *fields in rows]

    def by_worker(self) -> dict[str, list[Traffic]]:
        """All counts, by worker."""
        counts: dict[str, list[Traffic]] = {}
        for worker, *fields in self._database.rows("SELECT * FROM traffic ORDER BY worker, round, kind"):
            counts.setdefault(worker, []).append(Traffic(*fields))
        return counts
