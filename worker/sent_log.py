"""What this worker has sent, byte by byte: a log on its own disk, for the owner of the data.

One line of JSON per message, written before the message goes out. Each line holds the digest of the line
before it, so that a line that was changed or taken out shows.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import StoreError
from common.storage.files import disk_problem

SENT_FILE = "sent.jsonl"


@dataclass(frozen=True)
class Sent:
    """A message: which call, what kind of content, bytes on the connection before TLS, SHA-256 of the
    message; of an update's header also the digest of the update's file, else empty."""

    time: float
    call: str
    kind: str
    bytes: int
    sha256: str
    update: str
    before: str
    """Digest of the line before; empty for the first."""


class SentLog:
    """Appends to the log in a worker's folder. Raises StoreError when it cannot be written: then nothing
    is sent either."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SENT_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._before = self._resume()
        except OSError as error:
            raise self._problem(error) from error

    def _resume(self) -> str:
        """Digest of the last line. A line that broke off stands for a message that was not sent."""
        with self._path.open("rb") as file:
            size = os.fstat(self._file).st_size
            # A line is far shorter than this.
            file.seek(max(0, size - 65536))
            tail = file.read()
        whole = tail[: tail.rfind(b"\n") + 1]
        os.ftruncate(self._file, size - len(tail) + len(whole))
        lines = whole.splitlines()
        return hashlib.sha256(lines[-1]).hexdigest() if lines else ""

    def record(self, call: str, kind: str, message: bytes, size: int, update: str = "") -> None:
        """Note a message of `size` bytes, framing included, that is about to go out."""
        digest = hashlib.sha256(message).hexdigest()
        line = json.dumps(asdict(Sent(time.time(), call, kind, size, digest, update, self._before))).encode()
        try:
            written = os.write(self._file, line + b"\n")
        except OSError as error:
            raise self._problem(error) from error
        if written <= len(line):
            raise StoreError(f"cannot write {self._path}: only a part of a line was taken")
        self._before = hashlib.sha256(line).hexdigest()

    def _problem(self, error: OSError) -> StoreError:
        return StoreError(f"cannot write {self._path}: {disk_problem(error, self._path.parent)}")

    def close(self) -> None:
        """Take no more."""
        os.close(self._file)


@dataclass(frozen=True)
class Total:
    """Messages of one call and kind."""

    call: str
    kind: str
    messages: int
    bytes: int


@dataclass(frozen=True)
class DataOwnerAudit:
    """All that a worker sent; `updates` are the digests of the updates' files, oldest first."""

    totals: tuple[Total, ...]
    updates: tuple[str, ...]
    first: float
    last: float

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(total.bytes for total in self.totals)


def read_sent(folder: Path) -> Iterator[Sent]:
    """The log's lines, checked. Raises StoreError at the first that is not what was written."""
    path = folder / SENT_FILE
    before = ""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removesuffix(b"\n")
                try:
                    sent = Sent(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise StoreError(f"{path}, line {number} is not what was written: {error}") from None
                if sent.before != before:
                    raise StoreError(f"{path}, line {number}: a line before it was changed or taken out")
                before = hashlib.sha256(line).hexdigest()
                yield sent
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error


def audit_worker(folder: Path) -> DataOwnerAudit:
    """Add up what a worker's log says. Raises StoreError."""
    sums: dict[tuple[str, str], list[int]] = {}
    updates: dict[str, None] = {}
    first = last = 0.0
    for sent in read_sent(folder):
        count = sums.setdefault((sent.call, sent.kind), [0, 0])
        count[0] += 1
        count[1] += sent.bytes
        if sent.update:
            updates[sent.update] = None
        first, last = first or sent.time, sent.time
    totals = tuple(Total(*key, *sums[key]) for key in sorted(sums))
    return DataOwnerAudit(totals, tuple(updates), first, last)
