"""The correction of a run's FM, as the database keeps it."""

from dataclasses import dataclass

from common.records import ArtifactRef
from coordinator.storage.artifacts import Artifacts
from coordinator.storage.database import Database, as_kept


@dataclass(frozen=True)
class StoredCorrection:
    """The corrected adapter of the FM, None where the correction was left out; mean KL divergence from the
    teacher on held-out public data, in nats."""

    adapter: ArtifactRef | None
    before: float
    after: float


class Corrections:
    """What was corrected. Safe to use from several threads. Raises StoreError."""

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self._database, self._artifacts = database, artifacts

    def commit(self, round_number: int, correction: StoredCorrection) -> None:
        """Record the correction of the FM after a round."""
        sha256 = None if correction.adapter is None else correction.adapter.sha256
        row = (round_number, sha256, as_kept(correction.before), as_kept(correction.after))
        statement = "INSERT INTO corrections VALUES (?, ?, ?, ?)"
        self._database.write("correction", statement, *row)

    def of(self, round_number: int) -> StoredCorrection | None:
        """The correction of the FM after this round; None where there was none."""
        if not self._database.has("corrections"):
            return None
        query = "SELECT adapter, divergence_before, divergence_after FROM corrections WHERE round = ?"
        if (row := self._database.row(query, round_number)) is None:
            return None
        adapter = None if row[0] is None else self._artifacts.get(row[0])
        return StoredCorrection(adapter, float(row[1]), float(row[2]))
