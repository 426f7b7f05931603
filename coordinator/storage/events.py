"""The events of a run, as the database keeps them; `event_log` tells them as they happen."""

import json
from collections.abc import Sequence

from common.run_status import Event
from coordinator.storage.database import Database


class Events:
    """What happened, numbered from 1. Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, event: Event) -> None:
        """Record an event."""
        e = event
        self._database.write(
            "event",
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            e.sequence,
            e.time,
            e.kind,
            e.round,
            e.worker,
            e.text,
            json.dumps(e.values),
        )

    def last(self) -> int:
        """The newest event's sequence number, 0 before the first."""
        row = self._database.row("SELECT max(sequence) FROM events")
        return int(row[0] or 0) if row else 0

    def last_of(self, kinds: Sequence[str], most: int) -> list[Event]:
        """The newest events of these kinds, the newest first."""
        marks = ", ".join("?" * len(kinds))
        return self._found(f"WHERE kind IN ({marks}) ORDER BY sequence DESC LIMIT ?", *kinds, most)

    def all(self, after: int = 0) -> list[Event]:
        """Events with a higher sequence number, in order."""
        return self._found("WHERE sequence > ? ORDER BY sequence", after)

    def _found(self, which: str, *values: object) -> list[Event]:
        rows = self._database.rows(
            f"SELECT sequence, time, kind, text, round, worker, figures FROM events {which}", *values
        )
        return [
            Event(sequence, when, kind, text, number, worker, json.loads(figures))
            for sequence, when, kind, text, number, worker, figures in rows
        ]
