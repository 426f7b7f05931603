"""SQLite under the store: one connection, transactions that are durable when they return."""

import math
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import StoreError
from common.runtime.fault_points import Point, reach
from common.storage.files import disk_problem

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id TEXT PRIMARY KEY, created REAL NOT NULL, config TEXT NOT NULL,
    outcome TEXT, reason TEXT
);
-- What the run was begun with, by digest of file: the foundation model, the owner's data.
CREATE TABLE IF NOT EXISTS content (name TEXT PRIMARY KEY, files TEXT NOT NULL);
-- The run's classes, where workers were asked for theirs: JSON, of all of them together.
CREATE TABLE IF NOT EXISTS class_counts (
    one INTEGER PRIMARY KEY CHECK (one = 1), labels TEXT NOT NULL, counts TEXT NOT NULL,
    examples INTEGER NOT NULL, workers INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS artifacts (
    sha256 TEXT PRIMARY KEY, kind TEXT NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL
);
-- Artifacts whose files are gone, because nothing needs them any more.
CREATE TABLE IF NOT EXISTS collected (sha256 TEXT PRIMARY KEY REFERENCES artifacts);
-- Artifacts of which a worker has asked for a part, and when first. What an audit goes by.
CREATE TABLE IF NOT EXISTS served (sha256 TEXT PRIMARY KEY REFERENCES artifacts, first REAL NOT NULL);
-- The sub-FM before the first round: its description as JSON, the plan it was cut by, sizes.
CREATE TABLE IF NOT EXISTS sub_model (
    one INTEGER PRIMARY KEY CHECK (one = 1), reference TEXT NOT NULL,
    plan TEXT NOT NULL REFERENCES artifacts, facts TEXT NOT NULL
);
-- Neuron-level alignments, by the round that they followed.
CREATE TABLE IF NOT EXISTS alignments (
    round INTEGER PRIMARY KEY, patch TEXT NOT NULL REFERENCES artifacts,
    error_before REAL NOT NULL, error_after REAL NOT NULL
);
-- Of these, those whose patch holds what all before it changed, too.
CREATE TABLE IF NOT EXISTS whole_patches (round INTEGER PRIMARY KEY);
-- Corrections, by the round whose FM they corrected: the FM's adapter, none where it was left out, and the
-- divergence from the teacher on held-out public data.
CREATE TABLE IF NOT EXISTS corrections (
    round INTEGER PRIMARY KEY, adapter TEXT REFERENCES artifacts,
    divergence_before REAL NOT NULL, divergence_after REAL NOT NULL
);
-- The adapter after each round; round 0 is the first.
CREATE TABLE IF NOT EXISTS adapters (
    round INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES artifacts, created REAL NOT NULL
);
-- The server optimiser's state after a round.
CREATE TABLE IF NOT EXISTS server_states (
    round INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES artifacts
);
-- The gradient gap after a round, as JSON; round 0 is before the first.
CREATE TABLE IF NOT EXISTS gradient_gaps (round INTEGER PRIMARY KEY, figures TEXT NOT NULL);
-- Every try at a round.
CREATE TABLE IF NOT EXISTS tries (
    round INTEGER NOT NULL, try INTEGER NOT NULL, opened REAL NOT NULL, selected TEXT NOT NULL,
    closed REAL, phase TEXT NOT NULL, PRIMARY KEY (round, try)
);
-- The workers whose updates a round closed with, as JSON: what its adapter is made of.
CREATE TABLE IF NOT EXISTS accepted (round INTEGER PRIMARY KEY, workers TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER NOT NULL, worker TEXT NOT NULL, sha256 TEXT NOT NULL REFERENCES artifacts,
    examples INTEGER NOT NULL, loss REAL NOT NULL, seconds REAL NOT NULL, received REAL NOT NULL,
    PRIMARY KEY (round, worker)
);
-- Secure aggregation: what the workers of a try were told, as JSON.
CREATE TABLE IF NOT EXISTS secure_tries (
    round INTEGER NOT NULL, try INTEGER NOT NULL, task TEXT NOT NULL, opened REAL NOT NULL,
    PRIMARY KEY (round, try)
);
-- What they brought in each step, as JSON; masked updates are among the updates.
CREATE TABLE IF NOT EXISTS secure_said (
    round INTEGER NOT NULL, try INTEGER NOT NULL, step TEXT NOT NULL, worker TEXT NOT NULL,
    content TEXT NOT NULL, PRIMARY KEY (round, try, step, worker)
);
-- The workers decided on after each step, as JSON.
CREATE TABLE IF NOT EXISTS secure_sets (
    round INTEGER NOT NULL, try INTEGER NOT NULL, which TEXT NOT NULL, workers TEXT NOT NULL,
    PRIMARY KEY (round, try, which)
);
-- What a round's updates came to where their sum alone counts: masked, or with noise.
CREATE TABLE IF NOT EXISTS secure_sums (
    round INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES artifacts, workers INTEGER NOT NULL,
    examples INTEGER NOT NULL, loss REAL NOT NULL, clipped INTEGER NOT NULL
);
-- Sums with noise that were told under a promise of each worker; they stay when a run goes back.
CREATE TABLE IF NOT EXISTS releases (
    number INTEGER PRIMARY KEY, round INTEGER NOT NULL, clip REAL NOT NULL, noise REAL NOT NULL, below REAL
);
-- Target tokens of those that were asked for them.
CREATE TABLE IF NOT EXISTS update_targets (
    round INTEGER NOT NULL, worker TEXT NOT NULL, targets INTEGER NOT NULL, PRIMARY KEY (round, worker)
);
CREATE TABLE IF NOT EXISTS evaluations (
    round INTEGER NOT NULL, model TEXT NOT NULL, accuracy REAL NOT NULL, loss REAL NOT NULL,
    PRIMARY KEY (round, model)
);
-- What an evaluation tells beside these.
CREATE TABLE IF NOT EXISTS evaluation_metrics (
    round INTEGER NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (round, model, name)
);
-- Workers that keep examples aside, and how many.
CREATE TABLE IF NOT EXISTS validators (name TEXT PRIMARY KEY, examples INTEGER NOT NULL);
-- Every time that workers were asked for scores after a round; round 0 is before the first.
CREATE TABLE IF NOT EXISTS validation_tries (
    round INTEGER NOT NULL, try INTEGER NOT NULL, opened REAL NOT NULL, selected TEXT NOT NULL,
    PRIMARY KEY (round, try)
);
-- What has come of them, as compressed JSON, until they are added up.
CREATE TABLE IF NOT EXISTS worker_scores (
    round INTEGER NOT NULL, worker TEXT NOT NULL, sums BLOB NOT NULL, PRIMARY KEY (round, worker)
);
-- The score of all workers together, whose names are `counted`; under a worker's name its own.
CREATE TABLE IF NOT EXISTS validations (
    round INTEGER NOT NULL, worker TEXT NOT NULL, workers INTEGER NOT NULL, examples INTEGER NOT NULL,
    accuracy REAL NOT NULL, loss REAL NOT NULL, metrics TEXT NOT NULL, counted TEXT NOT NULL,
    PRIMARY KEY (round, worker)
);
CREATE TABLE IF NOT EXISTS workers (
    name TEXT PRIMARY KEY, examples INTEGER NOT NULL, software TEXT NOT NULL, joined REAL NOT NULL
);
-- Workers that take no part, in which state of theirs, and why.
CREATE TABLE IF NOT EXISTS declined (
    worker TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS traffic (
    worker TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
    bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL, PRIMARY KEY (worker, round, kind)
);
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, round INTEGER NOT NULL,
    worker TEXT NOT NULL, text TEXT NOT NULL, figures TEXT NOT NULL
);
"""

_MISTAKES = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)

# So long a lock that another process holds is waited for.
_BUSY_MILLISECONDS = 5000

# Of whatever the query names.
Row = tuple[Any, ...]


class Database:
    """A run's run.sqlite. Safe to use from several threads. Raises StoreError."""

    def __init__(self, path: Path, readonly: bool = False) -> None:
        """`readonly`: for who looks, also where nothing may be written: another user, a backup."""
        self._path = path
        self._lock = threading.RLock()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        if readonly:
            self._db = self._looked_at()
            return
        try:
            self._db = sqlite3.connect(path, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            # What is deleted is overwritten: shares that workers opened, for one.
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._problem(error) from error

    def _looked_at(self) -> sqlite3.Connection:
        """A connection that writes nothing, not even beside the file."""
        try:
            return _readable(self._path)
        except sqlite3.OperationalError:
            # WAL wants a file beside the database even for reading. Where there is none and none can be made
            # nobody writes either, so a copy is as good; it holds what the log beside it has, too.
            try:
                self._copy = tempfile.TemporaryDirectory(prefix="fedpft-")
                for file in self._path.parent.glob(f"{self._path.name}*"):
                    if not file.name.endswith("-shm"):
                        shutil.copyfile(file, Path(self._copy.name) / file.name)
                return _readable(Path(self._copy.name) / self._path.name)
            except (OSError, sqlite3.Error) as error:
                raise self._problem(error) from error
        except (OSError, sqlite3.Error) as error:
            raise self._problem(error) from error

    def has(self, table: str) -> bool:
        """Whether there is such a table: one that is only read may be of an older version."""
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", table))

    def close(self) -> None:
        """Release the database."""
        with self._lock:
            self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    @contextmanager
    def transaction(self, subject: str) -> Iterator[sqlite3.Connection]:
        """All of what is executed within, durably, or nothing of it. `subject` is for fault points."""
        with self._lock:
            try:
                yield self._db
                reach(Point.TRANSACTION_MADE, subject)
                self._db.commit()
            except _MISTAKES:
                # Of this program's: no owner can mend it, so it is not told as a problem of the disk.
                self._roll_back()
                raise
            except (OSError, sqlite3.Error) as error:
                self._roll_back()
                raise self._problem(error) from error
            except BaseException:
                self._roll_back()
                raise
            reach(Point.TRANSACTION_COMMITTED, subject)

    def _roll_back(self) -> None:
        # SQLite has rolled back by itself after some errors.
        with suppress(sqlite3.Error):
            self._db.rollback()

    def write(self, subject: str, statement: str, *values: object) -> None:
        """A transaction of one statement."""
        with self.transaction(subject) as db:
            db.execute(statement, values)

    def settle(self) -> None:
        """Move what is in the log beside the file into it, so that what was deleted is nowhere any more.

        Who reads meanwhile is not waited for: then it is for the next time, or for the end of the process.
        """
        try:
            with self._lock:
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        except sqlite3.Error as error:
            raise self._problem(error) from error

    def rows(self, query: str, *values: object) -> list[Row]:
        """What a query finds."""
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._problem(error) from error

    def row(self, query: str, *values: object) -> Row | None:
        """The first row that a query finds, if any."""
        found = self.rows(query, *values)
        return found[0] if found else None

    def value(self, query: str) -> object:
        """The one value that a query finds. Raises StoreError when it finds none."""
        found = self.row(query)
        if found is None:
            raise StoreError(f"{self._path.parent} holds no run")
        return found[0]

    def _problem(self, error: Exception) -> StoreError:
        folder = self._path.parent
        match error:
            case OSError():
                told = disk_problem(error, folder)
            case sqlite3.Error() if "disk is full" in str(error):
                told = f"{error}; free space on the file system of {folder}, then start again"
            case sqlite3.Error() if "readonly" in str(error) or "unable to open" in str(error):
                told = f"{error}; make {folder} writable for this user, then start again"
            case sqlite3.DatabaseError() if "malformed" in str(error) or "not a database" in str(error):
                told = f"{error}; restore the run's directory from a copy"
            case _:
                told = str(error)
        return StoreError(f"{self._path}: {told}")


def as_kept(figure: float) -> float | str:
    """A figure as the database holds it: SQLite knows no NaN, and infinities only by name."""
    return figure if math.isfinite(figure) else str(figure)


def _readable(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error unless the database can be read there."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db
