"""Content-addressed files: an artifact is immutable and named by its SHA-256.

It is durable before the transaction that names it, so what the database says is there.
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from common.errors import StoreError, UnknownArtifact
from common.records import ArtifactKind, ArtifactRef
from common.storage.files import disk_problem, publish, write_atomically
from coordinator.storage.database import Database

if TYPE_CHECKING:
    # torch takes seconds to import; who reads what a run has come to needs none of its tensors.
    from torch import Tensor

    from common.storage.schema import Schema


class Artifacts:
    """The artifacts of a run's directory, and the spool in which files are received.

    Safe to use from several threads. Raises StoreError when the directory cannot be used.
    """

    def __init__(self, directory: Path, database: Database) -> None:
        self._directory, self._database = directory, database

    @staticmethod
    def make_folders(directory: Path) -> None:
        """For a run that writes. Raises StoreError."""
        try:
            (directory / "artifacts").mkdir(parents=True, exist_ok=True)
            (directory / "spool").mkdir(exist_ok=True)
        except OSError as error:
            problem = disk_problem(error, directory)
            raise StoreError(f"run directory {directory} cannot be used: {problem}") from error

    def path(self, sha256: str) -> Path:
        """Where the artifact of this digest lies."""
        return self._directory / "artifacts" / sha256[:2] / sha256

    def spool(self, name: str) -> Path:
        """Where a file is received before it is complete."""
        return self._directory / "spool" / name

    def spooled(self, worker: str | None = None) -> list[Path]:
        """Files being received, of one worker or of all."""
        files = list((self._directory / "spool").iterdir())
        # SHA256-ROUND-WORKER, or SHA256.part-ROUND-WORKER; a worker's name may hold a "-" itself.
        return [p for p in files if worker is None or p.name.split("-", 2)[2:] == [worker]]

    def add(self, kind: ArtifactKind, content: bytes) -> ArtifactRef:
        """Keep `content` durably under its digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.path(sha256).exists():
            write_atomically(self.path(sha256), content, kind)
        return self._named(ArtifactRef(kind, sha256, len(content)))

    def _named(self, artifact: ArtifactRef) -> ArtifactRef:
        """Record an artifact whose file is in its place."""
        with self._database.transaction(f"artifact-{artifact.kind}") as db:
            self.enter(db, artifact)
        return artifact

    def enter(self, db: sqlite3.Connection, artifact: ArtifactRef) -> None:
        """Record, within a transaction, an artifact whose file is in its place."""
        row = (artifact.sha256, artifact.kind, artifact.size, time.time())
        db.execute("INSERT OR IGNORE INTO artifacts VALUES (?, ?, ?, ?)", row)
        db.execute("DELETE FROM collected WHERE sha256 = ?", (artifact.sha256,))

    def add_tensors(self, kind: ArtifactKind, tensors: "Mapping[str, Tensor]") -> ArtifactRef:
        """Keep tensors as a safetensors file."""
        from common.storage.schema import schema_of
        from common.storage.tensor_header import in_file_order

        schema = schema_of(tensors)
        return self.add_each(kind, schema, ((name, tensors[name]) for name in in_file_order(schema)))

    def add_each(
        self, kind: ArtifactKind, schema: "Schema", tensors: "Iterable[tuple[str, Tensor]]"
    ) -> ArtifactRef:
        """Keep tensors as a safetensors file that is written as they come, in the order of `in_file_order`.

        Memory is needed for one of them at a time.
        """
        from common.storage.tensors import TensorFileWriter

        temporary = self.spool(f"{uuid4().hex}.part")
        try:
            with temporary.open("wb") as file:
                writer = TensorFileWriter(file, schema)
                for name, tensor in tensors:
                    writer.write(name, tensor)
            sha256 = writer.finish()
            if not self.path(sha256).exists():
                publish(temporary, self.path(sha256), kind)
        except OSError as error:
            raise StoreError(f"cannot write {temporary}: {disk_problem(error, temporary.parent)}") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return self._named(ArtifactRef(kind, sha256, writer.size))

    def get(self, sha256: str) -> ArtifactRef:
        """The artifact of this digest. Raises UnknownArtifact."""
        row = self._database.row("SELECT kind, size FROM artifacts WHERE sha256 = ?", sha256)
        if row is None:
            raise UnknownArtifact(f"there is no artifact {sha256[:12]}…")
        return ArtifactRef(ArtifactKind(row[0]), sha256, row[1])

    def sizes(self, kind: ArtifactKind) -> list[int]:
        """Bytes of all artifacts of a kind, oldest first."""
        rows = self._database.rows("SELECT size FROM artifacts WHERE kind = ? ORDER BY created, sha256", kind)
        return [size for (size,) in rows]

    def held(self) -> list[ArtifactRef]:
        """All artifacts whose files are to be there."""
        rows = self._database.rows(
            "SELECT kind, sha256, size FROM artifacts WHERE sha256 NOT IN (SELECT sha256 FROM collected)"
        )
        return [ArtifactRef(ArtifactKind(kind), sha256, size) for kind, sha256, size in rows]

    def give_up(self, digests: Iterable[str]) -> None:
        """Record that these artifacts' files are not needed any more, before they are deleted."""
        with self._database.transaction("collection") as db:
            db.executemany("INSERT OR IGNORE INTO collected VALUES (?)", [(d,) for d in digests])

    def record_served(self, sha256: str) -> None:
        """Record, before its first byte leaves, that a worker gets an artifact."""
        if self._database.row("SELECT 1 FROM served WHERE sha256 = ?", sha256) is None:
            self._database.write("served", "INSERT OR IGNORE INTO served VALUES (?, ?)", sha256, time.time())

    def served(self) -> dict[str, ArtifactRef]:
        """Every artifact that a worker has asked for, by digest, also those deleted since."""
        rows = self._database.rows("SELECT kind, sha256, size FROM artifacts JOIN served USING (sha256)")
        return {sha256: ArtifactRef(ArtifactKind(kind), sha256, size) for kind, sha256, size in rows}

    def place(self, received: Path, sha256: str) -> None:
        """Move a received and checked file among the artifacts, durably."""
        try:
            publish(received, self.path(sha256), ArtifactKind.UPDATE)
        except OSError as error:
            problem = disk_problem(error, self._directory)
            raise StoreError(f"cannot keep {received.name}: {problem}") from error

    def discard(self, sha256: str) -> None:
        """Delete a placed file, unless a transaction named it."""
        if self._database.row("SELECT 1 FROM artifacts WHERE sha256 = ?", sha256) is None:
            self.path(sha256).unlink(missing_ok=True)
