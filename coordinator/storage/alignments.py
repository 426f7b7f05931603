"""The neuron-level alignments of a run, and what brings a sub-FM to where they brought it."""

import math
from dataclasses import dataclass

from common.records import ArtifactRef
from coordinator.storage.artifacts import Artifacts
from coordinator.storage.database import Database, as_kept

# That a worker may have to lay one over the other; then one that holds them all replaces them.
MOST_PATCHES = 16


@dataclass(frozen=True)
class StoredPatch:
    """The file of an alignment; a whole one holds what all before it changed, too."""

    file: ArtifactRef
    whole: bool = False


class Alignments:
    """What was aligned. Safe to use from several threads. Raises StoreError."""

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self._database, self._artifacts = database, artifacts

    def commit(self, round_number: int, patch: StoredPatch, before: float, after: float) -> None:
        """Record the alignment that follows a round, with the hidden-state error before and after."""
        row = (round_number, patch.file.sha256, as_kept(before), as_kept(after))
        with self._database.transaction("alignment") as db:
            db.execute("INSERT INTO alignments VALUES (?, ?, ?, ?)", row)
            if patch.whole:
                db.execute("INSERT INTO whole_patches VALUES (?)", (round_number,))

    def all(self) -> list[tuple[int, float, float]]:
        """The round that each followed, the hidden-state error before and after."""
        rows = self._database.rows("SELECT round, error_before, error_after FROM alignments ORDER BY round")
        return [(number, float(before), float(after)) for number, before, after in rows]

    def done_after(self, round_number: int) -> bool:
        """Whether the alignment that follows this round is committed."""
        return self._database.row("SELECT 1 FROM alignments WHERE round = ?", round_number) is not None

    def patches(self, after_round: int | None = None) -> tuple[ArtifactRef, ...]:
        """What brings the sub-FM to where it was after this round, or is now: a whole one and those since."""
        number = math.inf if after_round is None else after_round
        begin = 0
        if self._database.has("whole_patches"):
            row = self._database.row("SELECT max(round) FROM whole_patches WHERE round <= ?", number)
            begin = (row and row[0]) or 0
        query = "SELECT patch FROM alignments WHERE round BETWEEN ? AND ? ORDER BY round"
        return tuple(self._artifacts.get(patch) for (patch,) in self._database.rows(query, begin, number))
